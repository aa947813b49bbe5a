"""The transport's classification of every failure of an exchange, on real TLS sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from service.providers.http.connections import IDLE_LIMIT_S
from service.providers.http.transport import (
    ANSWER_BYTES_MAX,
    NotSent,
    ProviderAnswer,
    SentUnknown,
    Transport,
    TransportError,
    causes_of,
)
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.processes.fault_server import (
    FaultServer,
    Peer,
    always,
    answer,
    certificate,
    fault_server,
)
from tests.support.processes.slow_peers import HEAD, SLOW_ANSWERS, SLOW_HANDSHAKES, hang

# For an exchange that must fail by its deadline.
BUDGET_S = 0.4
# For an exchange that is answered, on a busy machine.
PATIENT_S = 60.0
# The delay that a loaded machine may add to a deadline; without a deadline it is a minute.
SLACK_S = 30.0

OK = answer(200, b'{"ok": true}')


@contextlib.contextmanager
def transport_to(url: str, **more: Any) -> Iterator[Transport]:
    settings: dict[str, Any] = {"ca_file": certificate(), "connect_timeout_s": PATIENT_S, **more}
    transport = Transport(base_url=url, max_connections=4, watchdog=Watchdog(), **settings)
    try:
        yield transport
    finally:
        transport.close()


def post(transport: Transport, budget_s: float = PATIENT_S, **more: Any) -> ProviderAnswer:
    return transport.exchange(
        "POST",
        "/v1/things",
        form={"amount": "100"},
        headers={"Idempotency-Key": "key"},
        deadline=Deadline.after(budget_s),
        **more,
    )


def failure_at(url: str, budget_s: float = BUDGET_S, **more: Any) -> TransportError:
    """The failure of one exchange with `url`; the exchange must also end by its deadline."""
    with transport_to(url, **{"connect_timeout_s": BUDGET_S, **more}) as transport:
        began_s = monotonic()
        with pytest.raises(TransportError) as caught:
            post(transport, budget_s)
        assert monotonic() - began_s < budget_s + SLACK_S
    return caught.value


def failure_of(behave: Any, budget_s: float = 2.0, **server: Any) -> TransportError:
    with fault_server(behave, **server) as running:
        return failure_at(running.url, budget_s)


# --- Certainly not sent -----------------------------------------------------------------------


def test_a_refused_connection_was_not_sent():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    failure = failure_at(f"https://127.0.0.1:{port}")

    assert isinstance(failure, NotSent)
    assert failure.kind == "refused"


def test_a_name_that_does_not_resolve_was_not_sent():
    failure = failure_at("https://no-such-host.invalid", budget_s=5.0)

    assert isinstance(failure, NotSent)
    assert failure.kind == "dns"


def test_hung_name_server_costs_at_most_the_connect_timeout(monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(60) and [])

    failure = failure_at("https://provider.example")
    answered.set()

    assert isinstance(failure, NotSent)
    assert failure.kind == "dns"


@contextlib.contextmanager
def full_accept_queue() -> Iterator[int]:
    """A port with a full queue: the next connection is neither accepted nor refused."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_connection_that_is_not_taken_in_time_was_not_sent():
    with full_accept_queue() as port:
        failure = failure_at(f"https://127.0.0.1:{port}", budget_s=5.0)

    assert isinstance(failure, NotSent)
    assert failure.kind == "connect_timeout"


def test_a_certificate_that_we_do_not_trust_was_not_sent():
    requests: list[bytes] = []
    with fault_server(lambda peer: requests.append(peer.read_request())) as server:
        failure = failure_at(server.url, ca_file=None)

    assert isinstance(failure, NotSent)
    assert failure.kind == "tls"
    assert requests == []


def test_a_certificate_for_another_host_was_not_sent():
    with fault_server(always(OK)) as server:
        failure = failure_at(f"https://localhost:{server.port}", budget_s=5.0)

    assert isinstance(failure, NotSent)


def test_a_spent_deadline_sends_nothing():
    with fault_server(always(OK)) as server:
        failure = failure_at(server.url, budget_s=0.0)

        assert isinstance(failure, NotSent)
        assert failure.kind == "deadline"
        assert server.accepted == 0


# --- Doubt ------------------------------------------------------------------------------------


@pytest.mark.parametrize("behave", SLOW_ANSWERS)
def test_an_answer_that_does_not_come_is_doubt_at_the_deadline(behave):
    failure = failure_of(behave, BUDGET_S)

    assert isinstance(failure, SentUnknown)
    assert failure.kind == "timeout"


@pytest.mark.parametrize("behave", SLOW_HANDSHAKES)
def test_a_handshake_that_does_not_end_is_doubt_at_the_deadline(behave):
    failure = failure_of(behave, BUDGET_S, handshake=False)

    assert isinstance(failure, SentUnknown)
    assert failure.kind == "timeout"


@pytest.mark.parametrize("behave", [*SLOW_ANSWERS, *SLOW_HANDSHAKES])
def test_every_timeout_speaks_with_the_words_of_requests(behave):
    with fault_server(behave, handshake=behave in SLOW_ANSWERS) as server:
        failures = [failure_at(server.url, budget_s=0.25) for _ in range(4)]

    host = f"HTTPSConnectionPool(host='127.0.0.1', port={server.port})"
    expected = f"{host}: Read timed out. (read timeout=0.25)"
    said = [(failure.detail, *map(str, list(causes_of(failure))[1:2])) for failure in failures]
    assert said == [(expected, expected)] * 4


def test_a_lost_connection_is_named_as_in_the_incident():
    failure = failure_of(reset)

    assert [f"{type(cause).__name__}: {cause}" for cause in causes_of(failure)][1] == (
        "ConnectionError: HTTPSConnectionPool timeout"
    )


def leave(peer: Peer) -> None:
    peer.read_request()


def reset(peer: Peer) -> None:
    peer.read_request()
    peer.reset()


def say(*content: bytes) -> Any:
    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"".join(content))

    return behave


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

BROKEN_ANSWERS = {
    "closed without an answer": (leave, "reset"),
    "reset": (reset, "reset"),
    "cut in the status line": (say(b"HTTP/1.1 2"), "garbage"),
    "cut in the head": (say(HEAD), "truncated"),
    "cut in a header": (say(HEAD, b"Content-Len"), "truncated"),
    "no end mark": (say(HEAD, b'\r\n{"ok": true}'), "truncated"),
    "shorter than it said": (say(HEAD, b"Content-Length: 50\r\n\r\n{}"), "truncated"),
    "cut in a chunk": (say(CHUNKED, b"50\r\n{}"), "truncated"),
    "cut between chunks": (say(CHUNKED, b"2\r\n{}\r\n"), "truncated"),
    "cut in a chunk's size": (say(CHUNKED, b"2\r\n{}\r\n1"), "truncated"),
    "a chunk size that is none": (say(CHUNKED, b"zz\r\n{}\r\n"), "truncated"),
    "no HTTP": (say(b"\x00\x01garbage\r\n\r\n"), "garbage"),
    "two lengths": (say(HEAD, b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), "garbage"),
    "an endless header": (say(HEAD, b"X: " + b"x" * 70000 + b"\r\n\r\n"), "garbage"),
    "a thousand headers": (say(HEAD, b"X: x\r\n" * 1000, b"\r\n"), "garbage"),
    "too large by its length": (
        say(HEAD, f"Content-Length: {ANSWER_BYTES_MAX + 1}\r\n\r\n".encode()),
        "too_large",
    ),
    "too large in chunks": (
        say(CHUNKED, (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 9, b"0\r\n\r\n"),
        "too_large",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ANSWERS)
def test_an_answer_that_is_not_whole_is_doubt(case):
    behave, kind = BROKEN_ANSWERS[case]

    failure = failure_of(behave)

    assert isinstance(failure, SentUnknown)
    assert failure.kind == kind


def test_a_reset_within_the_body_is_doubt():
    def reset_in_body(peer: Peer) -> None:
        peer.read_request()
        peer.send(HEAD + b"Content-Length: 50\r\n\r\n{}")
        peer.reset()

    assert isinstance(failure_of(reset_in_body), SentUnknown)


def test_a_handshake_that_breaks_off_is_doubt():
    def reset_at_hello(peer: Peer) -> None:
        peer.sock.recv(1)
        peer.reset()

    failure = failure_of(reset_at_hello, handshake=False)

    assert isinstance(failure, SentUnknown)
    assert failure.kind == "tls"


def test_an_answer_after_the_deadline_is_refused():
    # The last byte arrives between the deadline and the watchdog's end.
    deadline = Deadline.after(BUDGET_S)

    def answer_late(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK[:-1])
        peer.stopping.wait(deadline.remaining_s() + 0.002)
        peer.send(OK[-1:])

    with (
        fault_server(answer_late) as server,
        transport_to(server.url) as transport,
        pytest.raises(SentUnknown) as caught,
    ):
        transport.exchange("GET", "/v1/things", headers={}, deadline=deadline)

    assert caught.value.kind == "timeout"


# --- Whole answers ----------------------------------------------------------------------------


def test_a_whole_answer_is_given_back_with_its_headers():
    refusal = answer(402, b"{}", more="Request-Id: req_1\r\n")
    with fault_server(always(refusal)) as server, transport_to(server.url) as transport:
        got = post(transport)

    assert (got.status, got.body, got.headers["request-id"]) == (402, b"{}", "req_1")
    assert 0 <= got.ms < 1000 * PATIENT_S


def test_the_form_and_the_headers_arrive():
    requests: list[bytes] = []

    def record(peer: Peer) -> None:
        requests.append(peer.read_request())
        peer.send(OK)

    with fault_server(record) as server, transport_to(server.url) as transport:
        post(transport)

    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/things HTTP/1.1\r\n")
    assert b"Idempotency-Key: key" in head
    assert body == b"amount=100"


def test_a_chunked_answer_of_the_largest_size_is_whole():
    body = b" " * ANSWER_BYTES_MAX
    chunks = say(CHUNKED, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    with fault_server(chunks) as server, transport_to(server.url) as transport:
        assert post(transport).body == body


def test_1xx_answers_are_skipped_and_the_connection_is_kept():
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    with fault_server(always(early + OK)) as server, transport_to(server.url) as transport:
        answers = [post(transport) for _ in range(3)]

    assert [(each.status, each.body) for each in answers] == [(200, b'{"ok": true}')] * 3
    assert server.accepted == 1


@pytest.mark.parametrize(
    ("before", "kind"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + OK, "garbage"),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 17 + OK, "garbage"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + OK, "garbage"),
    ],
)
def test_protocol_switch_or_endless_1xx_is_doubt(before, kind):
    failure = failure_of(always(before))

    assert (type(failure), failure.kind) == (SentUnknown, kind)


def test_interim_answer_without_a_final_one_is_doubt():
    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n")

    assert isinstance(failure_of(behave), SentUnknown)


def test_a_redirect_is_an_answer_and_is_not_followed():
    elsewhere = FaultServer(always(OK))
    redirect = answer(302, b"{}", more=f"Location: {elsewhere.url}/\r\n")
    with fault_server(always(redirect)) as server, transport_to(server.url) as transport:
        got = post(transport)
    elsewhere.close()

    assert got.status == 302
    assert elsewhere.accepted == 0


def test_the_environment_changes_neither_the_way_nor_the_trust(monkeypatch, tmp_path):
    (tmp_path / "empty.pem").write_text("")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "empty.pem"))

    with fault_server(always(OK)) as server, transport_to(server.url) as transport:
        assert post(transport).status == 200


# --- Kept connections -------------------------------------------------------------------------


def test_a_connection_is_kept_for_the_next_exchange():
    with fault_server(always(OK)) as server, transport_to(server.url) as transport:
        post(transport)
        post(transport)

        assert server.accepted == 1


def test_later_deadline_does_not_touch_the_idle_connection():
    with fault_server(always(OK)) as server, transport_to(server.url) as transport:
        early = Deadline.after(BUDGET_S)
        transport.exchange("GET", "/v1/things", headers={}, deadline=early)
        threading.Event().wait(early.remaining_s() + 0.05)
        post(transport)

        assert server.accepted == 1


def test_closed_connection_is_replaced_before_its_next_use():
    closed = threading.Event()

    def answer_once(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK)
        peer.sock.close()
        closed.set()

    with fault_server(answer_once) as server, transport_to(server.url) as transport:
        post(transport)
        assert closed.wait(60)

        assert post(transport).status == 200
        assert server.accepted == 2


def test_a_connection_that_idled_too_long_is_replaced(monkeypatch):
    with fault_server(always(OK)) as server, transport_to(server.url) as transport:
        post(transport)
        monkeypatch.setattr(
            "service.providers.http.connections.monotonic", lambda: monotonic() + IDLE_LIMIT_S + 1
        )
        post(transport)

        assert server.accepted == 2


def test_reused_connection_that_is_reset_is_doubt_without_retry():
    requests: list[bytes] = []

    def answer_once_then_reset(peer: Peer) -> None:
        requests.append(peer.read_request())
        peer.send(OK)
        requests.append(peer.read_request())
        peer.reset()

    with fault_server(answer_once_then_reset) as server, transport_to(server.url) as transport:
        post(transport)
        with pytest.raises(SentUnknown) as caught:
            post(transport)

    assert caught.value.kind == "reset"
    assert len(requests) == 2


def test_two_exchanges_at_once_do_not_wait_for_each_other():
    together = threading.Barrier(2, timeout=60)

    def answer_together(peer: Peer) -> None:
        peer.read_request()
        together.wait()
        peer.send(OK)

    with fault_server(answer_together) as server, transport_to(server.url) as transport:
        threads = [threading.Thread(target=post, args=(transport,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert server.accepted == 2


# --- Through an egress proxy ------------------------------------------------------------------


def tunnel_to(port: int) -> Any:
    """A CONNECT proxy to a port on loopback."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        with socket.create_connection(("127.0.0.1", port)) as upstream:
            peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(upstream, peer.sock), daemon=True)
            back.start()
            pump(peer.sock, upstream)
            back.join(60)

    return behave


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def test_a_proxy_carries_the_exchange_and_sees_only_tls():
    with (
        fault_server(always(OK)) as server,
        fault_server(tunnel_to(server.port), tls=False) as proxy,
        transport_to(server.url, proxy_url=proxy.url) as transport,
    ):
        assert post(transport).status == 200
        assert post(transport).status == 200
        assert (proxy.accepted, server.accepted) == (1, 1)


def test_a_proxy_that_is_down_was_not_sent():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    failure = failure_at("https://127.0.0.1:1", proxy_url=f"http://127.0.0.1:{port}")

    assert isinstance(failure, NotSent)
    assert failure.kind == "refused"


def test_a_tunnel_that_the_proxy_refuses_was_not_sent():
    refuse = say(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
    with fault_server(refuse, tls=False) as proxy:
        failure = failure_at("https://127.0.0.1:1", proxy_url=proxy.url, budget_s=2.0)

    assert isinstance(failure, NotSent)
    assert failure.kind == "refused"


@pytest.mark.parametrize(
    ("behave", "kind"), [(reset, "reset"), (leave, "garbage"), (hang, "timeout")]
)
def test_a_tunnel_that_breaks_without_an_answer_is_doubt(behave, kind):
    with fault_server(behave, tls=False) as proxy:
        failure = failure_at("https://127.0.0.1:1", proxy_url=proxy.url)

    assert isinstance(failure, SentUnknown)
    assert failure.kind in (kind, "reset")


def test_a_provider_that_resets_behind_the_proxy_is_doubt():
    with (
        fault_server(reset) as server,
        fault_server(tunnel_to(server.port), tls=False) as proxy,
    ):
        failure = failure_at(server.url, proxy_url=proxy.url, budget_s=2.0)

    assert isinstance(failure, SentUnknown)


def test_a_proxy_without_tls_to_the_provider_is_refused_at_once():
    with (
        pytest.raises(ValueError, match="https"),
        transport_to("http://127.0.0.1:1", proxy_url="http://127.0.0.1:2"),
    ):
        pass
