"""Webhooks never connect to private addresses, and connect to the exact address that was checked."""

from __future__ import annotations

import socket
import ssl
from time import monotonic

import pytest

from service.providers.http import webhook_sender
from service.providers.http.transport import NotSent, SentUnknown, TransportError
from service.providers.http.webhook_sender import (
    RETRY_AFTER_MAX_S,
    Receipt,
    WebhookSender,
    refusal_of,
)
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.processes.fault_server import Peer, always, answer, certificate, fault_server
from tests.support.processes.webhook_receiver import webhook_receiver

FORBIDDEN = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1"),  # noqa: S104
    *("::1", "::", "fe80::1", "fd00::1", "ff02::1", "2001:db8::1"),
    # The same IPv4 addresses in IPv6 notation: mapped, compatible gateways, 6to4, Teredo.
    *("::ffff:127.0.0.1", "::ffff:a00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"),
    # Public to `ipaddress` of some Pythons: tests/unit/providers/test_public_addresses.py has the whole list.
    *("fec0::1", "192.88.99.1", "168.63.129.16", "192.0.0.192", "64:ff9b:1::1", "5f00::1"),
]


@pytest.fixture
def strict() -> WebhookSender:
    return WebhookSender(watchdog=Watchdog(), allow_private=False)


@pytest.fixture
def lenient() -> WebhookSender:
    return WebhookSender(watchdog=Watchdog(), allow_private=True, ca_file=certificate())


def post(sender: WebhookSender, url: str, within_s: float = 2.0) -> int:
    return receipt(sender, url, within_s).status


def receipt(sender: WebhookSender, url: str, within_s: float = 2.0) -> Receipt:
    return sender.post(url, b"{}", {"webhook-id": "evt_1"}, Deadline.after(within_s))


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Make `hooks.example` resolve to these in turn; returns the list of resolved names."""
    asked: list[str] = []
    real = socket.getaddrinfo
    left = list(answers)

    def getaddrinfo(host, *args, **options):
        if host != "hooks.example":
            return real(host, *args, **options)
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("address", FORBIDDEN)
def test_no_address_that_is_not_public_is_called(strict, address):
    host = f"[{address}]" if ":" in address else address

    with pytest.raises(NotSent) as refused:
        post(strict, f"https://{host}/")

    assert refused.value.kind == "address_refused"


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["::ffff:10.0.0.1"]]
)
def test_no_name_that_leads_to_such_an_address_is_called(strict, monkeypatch, addresses):
    resolving(monkeypatch, addresses)

    with pytest.raises(NotSent) as refused:
        post(strict, "https://hooks.example/")

    assert refused.value.kind == "address_refused"


@pytest.mark.parametrize("host", ["localhost", "0x7f.1", "0177.0.0.1"])
def test_no_spelling_of_loopback_gets_through(strict, host):
    with fault_server(always(answer(204, b""))) as server, pytest.raises(NotSent) as refused:
        post(strict, f"https://{host}:{server.port}/")

    assert refused.value.kind == "address_refused"
    assert server.accepted == 0


def test_a_name_is_resolved_once_and_the_connection_goes_there(lenient, monkeypatch):
    with webhook_receiver() as receiver:
        # A name server with another answer to the second query.
        asked = resolving(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])

        status = post(lenient, f"http://hooks.example:{receiver.server.port}/")

    assert (status, asked) == (204, ["hooks.example"])
    assert receiver.got[0][0]["host"] == f"hooks.example:{receiver.server.port}"


def test_tls_asks_for_the_name_and_believes_no_other(lenient, monkeypatch):
    resolving(monkeypatch, ["127.0.0.1"])
    names: list[str | None] = []

    def handshake(peer: Peer) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate())
        context.sni_callback = lambda _sock, name, _context: names.append(name)
        context.wrap_socket(peer.sock.dup(), server_side=True).close()

    with (
        fault_server(handshake, handshake=False) as server,
        pytest.raises(TransportError) as refused,
    ):
        post(lenient, f"https://hooks.example:{server.port}/")

    assert (names, refused.value.kind) == (["hooks.example"], "tls")


def test_a_verified_receiver_is_told_over_tls(lenient):
    with fault_server(always(answer(200, b"thanks"))) as server:
        assert post(lenient, server.url) == 200


def test_answers_of_1xx_are_passed_over(lenient):
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    for status in (204, 500):
        with fault_server(
            always(b"HTTP/1.1 100 Continue\r\n\r\n" + early + answer(status, b""))
        ) as server:
            assert post(lenient, server.url) == status


@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 17,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17,
    ],
)
def test_protocol_switch_or_endless_1xx_is_no_answer(lenient, before):
    with (
        fault_server(always(before + answer(200, b""))) as server,
        pytest.raises(SentUnknown) as refused,
    ):
        post(lenient, server.url)

    assert refused.value.kind == "garbage"


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "120", 120.0),
        (503, "0", 0.0),
        (503, "999999999", RETRY_AFTER_MAX_S),
        (503, "Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_MAX_S),
        (429, "Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        (500, "120", None),
        (200, "120", None),
        *((503, header, None) for header in ("", "-1", "1.5", "soon", "9" * 4000, "\xb2")),
        *((503, header, None) for header in ("Fri, 99 Foo 9999 23:59:59 GMT", "1e3", "0x10")),
    ],
)
def test_retry_after_is_read_within_bounds(lenient, status, header, seconds):
    with fault_server(always(answer(status, b"", more=f"Retry-After: {header}\r\n"))) as server:
        assert receipt(lenient, server.url) == Receipt(status, seconds)


def test_a_redirect_is_not_followed(lenient):
    with webhook_receiver() as elsewhere:
        moved = answer(307, b"", more=f"Location: {elsewhere.url}\r\n")
        with fault_server(always(moved)) as server:
            assert post(lenient, server.url) == 307

    assert elsewhere.got == []


@pytest.mark.parametrize("drip", [False, True])
def test_hanging_or_dripping_receiver_costs_only_the_deadline(lenient, drip):
    def behave(peer: Peer) -> None:
        peer.read_request()
        if drip:
            peer.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000, every_s=0.02)
        peer.hold()

    with fault_server(behave) as server:
        began_s = monotonic()
        with pytest.raises(SentUnknown) as late:
            post(lenient, server.url, within_s=0.3)

    assert late.value.kind == "timeout"
    assert monotonic() - began_s < 30


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/",
        "ftp://hooks.example/",
        "https://user:secret@hooks.example/",
        "https://hooks.example/#part",
        "https://hooks.example:22/",
        "https://hooks.example:99999/",
        "https://2130706433/",
        "https://127.1/",
        "https:///path",
        "https://hooks.example/a b",
        "https://hooks.example/\r\nHost: x",
        "https://hööks.example/",
        "https://[::1/",
        # URL parsers differ on the text beside brackets and inside them.
        "https://[2a01::1]x/",
        "https://[2a01::1].internal.example/",
        "https://127.0.0.1[2a01::1]/",
        "https://[v1.hooks.example]/",
        "https://[hooks.example]/",
        "https://2a01::1/",
        "https://hooks..example/",
        "https://" + "x" * 64 + ".example/",
        "https://hooks.example/" + "x" * webhook_sender.URL_LENGTH_MAX,
        "",
    ],
)
def test_an_address_that_is_wrong_as_written_is_refused_at_once(strict, url):
    assert refusal_of(url, allow_private=False) is not None
    with pytest.raises(NotSent):
        post(strict, url)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example",
        "https://hooks.example:8443/a?b=c",
        "HTTPS://Hooks.EXAMPLE:/",
        "https://" + "x" * 63 + ".example/",
        "https://1.1.1.1/",
        "https://[2606:4700:4700::1111]:8443/",
    ],
)
def test_an_ordinary_address_is_taken(url):
    assert refusal_of(url, allow_private=False) is None
