"""A request that arrives in pieces: when it is whole, where it ends, and what is refused at once."""

from __future__ import annotations

from time import thread_time

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from hypothesis import given
from hypothesis import strategies as st

from service.web.http.header_rules import (
    MAX_BODY_BYTES,
    STAND_ONCE,
)
from service.web.server.framing import (
    MAX_EVENT_BYTES,
    MAX_HEAD_BYTES,
    Arrival,
    Verdict,
)

HEAD = b"POST /v1/payments HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
WAIT, WHOLE, CONTINUE = Verdict.WAIT, Verdict.WHOLE, Verdict.CONTINUE


def request(headers: bytes = b"", body: bytes = b"") -> bytes:
    return HEAD + headers + b"\r\n" + body


def judged(received: bytes) -> Verdict | str:
    """The verdict, or the code of the refusal."""
    arrival = Arrival()
    verdict = arrival.feed(received)
    return arrival.refusal.code if arrival.refusal is not None else verdict


@pytest.mark.parametrize(
    ("received", "verdict"),
    [
        (b"", WAIT),
        (HEAD, WAIT),
        (request(), WHOLE),
        (b"\r\n" + request(), WHOLE),
        (request(b"Content-Length: 3\r\n", b"ab"), WAIT),
        (request(b"Content-Length: 3\r\n", b"abc"), WHOLE),
        (request(b"content-length:3\r\n", b"abcGET "), WHOLE),
        (request(b"Content-Length: 65536\r\n"), WAIT),
        (request(b"Content-Length: 65537\r\n"), "body_too_large"),
        (request(b"Content-Length: " + b"9" * 20 + b"\r\n"), "body_too_large"),
        (request(b"Content-Length: " + b"0" * 30 + b"3\r\n", b"ab"), WAIT),
        (request(b"Content-Length: 000\r\n"), WHOLE),
        (request(b"Content-Length: 3\r\nExpect: 100-continue\r\n"), CONTINUE),
        (request(b"Content-Length: 3\r\nExpect: 100-continue\r\n", b"abc"), WHOLE),
        (request(CHUNKED), WAIT),
        (request(CHUNKED, b"3\r\nabc\r\n"), WAIT),
        (request(CHUNKED, b"3\r\nabc\r\n0\r\n\r\n"), WHOLE),
        (request(CHUNKED, b"0\r\n\r\n"), WHOLE),
        (request(CHUNKED, b"0\r\nA: b\r\n\r\n"), WHOLE),
        (request(CHUNKED, b'3;a=b ; c="d;\\""\r\nabc\r\n000\r\n\r\nGET /'), WHOLE),
        (request(CHUNKED, b"1\r\na\r\n" * 30000), "body_too_large"),
        (request(CHUNKED, b"10001\r\n"), "body_too_large"),
        (b"GET /" + b"a" * MAX_HEAD_BYTES, "headers_too_large"),
        (request(b"A: " + b"a" * MAX_HEAD_BYTES + b"\r\n"), "headers_too_large"),
        (request(b"A: b\r\n" * 64), "headers_too_large"),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", "uri_too_long"),
        (b"GET / HTTP/1.0\r\n\r\n", WHOLE),
    ],
)
def test_the_verdict_on_what_has_arrived(received: bytes, verdict: Verdict | str) -> None:
    assert judged(received) == verdict


@pytest.mark.parametrize(
    "received",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\rHost: x",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G\xc3\xa9T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        request(b"no colon\r\n"),
        request(b": no name\r\n"),
        request(b"Name : value\r\n"),
        request(b" Name: value\r\n"),
        request(b"Idempotency-Key: K\r\n folded\r\n"),
        request(b"Idempotency-Key: K\r\n\tfolded\r\n"),
        *(
            request(b"Content-Length: %s\r\n" % length, b"abc")
            for length in (b"x", b"", b"+3", b"-3", b"3 3", b"0x3", b"3.0", b"\xb3", b"3_0")
        ),
        request(b"Content_Length: 3\r\n", b"abc"),
        request(b"Transfer_Encoding: chunked\r\n", b"0\r\n\r\n"),
        request(CHUNKED + b"Content-Length: 3\r\n", b"0\r\n\r\n"),
        request(b"Content-Length: 3\r\n" + CHUNKED, b"0\r\n\r\n"),
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        *(
            request(b"Transfer-Encoding: %s\r\n" % coding)
            for coding in (b"identity", b"gzip", b"", b"chunked, identity", b"chunked, chunked")
        ),
        request(b"Transfer-Encoding: identity, chunked\r\n"),
        request(b"Transfer-Encoding: chunked,\r\n"),
        request(CHUNKED + CHUNKED),
        *(
            request(CHUNKED, body)
            for body in (
                *(b"\r\n", b"x\r\n", b" 3\r\n", b"3 \r\n", b"+3\r\n", b"-3\r\n", b"0x3\r\n"),
                *(b"3\nabc\r\n", b"3\r\nabcd\r\n", b"3\r\nabc\n", b"3\r\nabc0\r\n\r\n"),
                *(b"3;\r\n", b"3;a=\r\n", b'3;a="b\r\n', b"3;a\x00\r\n", b"3\r\r\n", b"3_0\r\n"),
                *(b"f" * 17 + b"\r\n", b"0" * 300, b"0\r\nno colon\r\n", b"0\r\n a: b\r\n"),
                *(b"0\r\nA: b\nC: d\r\n\r\n", b"0\r\n: b\r\n", b"0\r\n\n", b"0\r\nX: \x00\r\n"),
            )
        ),
    ],
)
def test_malformed_request_is_refused_and_not_waited_for(received: bytes) -> None:
    assert judged(received) == "bad_request"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (b"Transfer-Encoding: wat\r\n", "not_implemented"),
        (b"Transfer-Encoding: chunked;q=1\r\n", "not_implemented"),
        (b"Transfer-Encoding: gzip, chunked\r\n", "not_implemented"),
        (b"Transfer-Encoding: gzip\r\n" + CHUNKED, "not_implemented"),
        (b"Content-Length: 3\r\nExpect: miracles\r\n", "expectation_failed"),
    ],
)
def test_unmet_wish_is_refused_before_the_body_comes(headers: bytes, code: str) -> None:
    assert judged(request(headers)) == code


@pytest.mark.parametrize("name", sorted(STAND_ONCE))
def test_header_that_must_stand_once_is_refused_twice(name: str) -> None:
    value = {"content-length": b"0", "expect": b"100-continue", "host": b"x"}.get(name, b"a")
    field = name.encode()

    for other in (field, field.upper(), field.title(), field.replace(b"-", b"_")):
        received = request(field + b": " + value + b"\r\n" + other + b":" + value + b"\r\n")
        assert judged(received) in ("header_repeated", "bad_request")
        if other.replace(b"_", b"-") == other:
            assert judged(received) == "header_repeated"


@pytest.mark.parametrize(
    "field",
    [
        *(b"Content-Length: 0, 0", b"X-Request-Timeout-Ms: 5,5", b"traceparent: a, b"),
        *(b"Content-Type: text/plain, text/html", b"Authorization: Bearer a, Bearer b"),
        *(b"Origin: null, null",),
    ],
)
def test_header_that_a_proxy_joined_counts_as_repeated(field: bytes) -> None:
    assert judged(request(field + b"\r\n")) == "header_repeated"


@pytest.mark.parametrize(
    "name",
    [b"Accept", b"Prefer", b"If-None-Match", b"X-Forwarded-For", b"Via", b"tracestate", b"X-Other"],
)
def test_header_that_is_a_list_may_repeat(name: bytes) -> None:
    assert judged(request(2 * (name + b": a, b\r\n"))) is WHOLE


@given(st.binary(max_size=200), st.integers(min_value=0))
def test_no_part_of_a_request_is_taken_for_the_whole(body: bytes, cut: int) -> None:
    whole = request(b"Content-Length: %d\r\n" % len(body), body)

    assert judged(whole) is WHOLE
    assert judged(whole[: cut % len(whole)]) is WAIT


@given(
    st.lists(st.binary(min_size=1, max_size=60), max_size=5),
    st.booleans(),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_any_pieces_make_the_same_requests(
    chunks: list[bytes], asks_first: bool, sizes: list[int]
) -> None:
    expect = b"Expect: 100-continue\r\n" if asks_first else b""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    stream = 2 * request(CHUNKED + expect, body) + request(b"Content-Length: 2\r\n", b"{}")
    arrival, taken, at = Arrival(), [], 0

    while at < len(stream):
        size = sizes[at % len(sizes)]
        verdict = arrival.feed(stream[at : at + size])
        at += size
        while verdict is WHOLE:
            taken.append(arrival.take())
            verdict = arrival.judge()

    assert not arrival.has_begun
    bodies = [b"".join(chunks), b"".join(chunks), b"{}"]
    for one, content in zip(taken, bodies, strict=True):
        message = next(RequestParser(Config(), iter([one]), ("127.0.0.1", 1)))
        assert message.body.read() == content
        assert not {"TRANSFER-ENCODING", "EXPECT"} & {name for name, _ in message.headers}


@pytest.mark.parametrize(
    "received",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 8000 + b"\r\n",
        (b"A: b\r\n" * 5000)[:32000],
        request(CHUNKED, b"0\r\nA: " + b"b" * 8000),
        request(CHUNKED, b"1\r\na\r\n" * 20_000),
        request(b"Content-Length: 65536\r\n", b"a" * 65_535),
    ],
)
def test_request_byte_by_byte_costs_linear_time(received: bytes) -> None:
    arrival, began_s = Arrival(), thread_time()

    for place in range(len(received)):
        arrival.feed(received[place : place + 1])

    # About 1 us a byte on an idle machine; parsing the head again each time took 30 times that.
    assert thread_time() - began_s < 10e-6 * len(received) + 0.2


@pytest.mark.parametrize("framing", [b"", CHUNKED])
def test_request_of_a_later_minor_version_is_read_as_ours(framing: bytes) -> None:
    # The parser repeats the version that it receives, and we support 1.1 (RFC 9110, 2.5).
    arrival = Arrival()
    later = request(framing, b"0\r\n\r\n" if framing else b"").replace(b"HTTP/1.1", b"HTTP/1.9")

    assert arrival.feed(later + b"GET") is WHOLE
    assert arrival.take().startswith(HEAD)
    assert arrival.has_begun


def test_events_may_be_larger_than_other_requests() -> None:
    head = b"POST /v1/webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"

    assert MAX_EVENT_BYTES > 4 * MAX_BODY_BYTES
    assert judged(head % MAX_EVENT_BYTES) is WAIT
    assert judged(head % (MAX_EVENT_BYTES + 1)) == "body_too_large"


SIBLINGS = {
    "two codings": (CHUNKED + CHUNKED, b"0\r\n\r\n", "bad_request"),
    "a coding and a comma": (b"Transfer-Encoding: chunked,\r\n", b"0\r\n\r\n", "bad_request"),
    "a quoted coding": (b'Transfer-Encoding: "chunked"\r\n', b"", "not_implemented"),
    "a coding and no-break space": (b"Transfer-Encoding: chunked\xa0\r\n", b"", "not_implemented"),
    "a coding and vertical tab": (b"Transfer-Encoding: \x0bchunked\r\n", b"", "bad_request"),
    "two lengths, two cases": (
        b"Content-Length: 3\r\ncontent-length: 4\r\n",
        b"abcd",
        "header_repeated",
    ),
    "an empty length": (b"Content-Length:\r\n", b"", "bad_request"),
    "a name and no-break space": (b"Content-Length\xa0: 3\r\n", b"abc", "bad_request"),
    "a folded key": (b"Idempotency-Key: K\r\n L\r\n", b"", "bad_request"),
    "two keys, two cases": (
        b"IDEMPOTENCY-KEY: K\r\nidempotency-key: K\r\n",
        b"",
        "header_repeated",
    ),
    "two keys, underscores": (
        b"Idempotency_Key: K\r\nIdempotency_Key: K\r\n",
        b"",
        "header_repeated",
    ),
    "a folded trailer": (CHUNKED, b"0\r\nA: b\r\n c\r\n\r\n", "bad_request"),
    "a line end in a chunk's extension": (
        CHUNKED,
        b'3;a="\r\n"\r\nabc\r\n0\r\n\r\n',
        "bad_request",
    ),
}


@pytest.mark.parametrize(("headers", "body", "code"), SIBLINGS.values(), ids=SIBLINGS)
def test_no_spelling_makes_two_readings(headers: bytes, body: bytes, code: str) -> None:
    assert judged(request(headers, body)) == code


@pytest.mark.parametrize(
    ("target", "host"),
    [
        *((b"http://evil/", b"x"), (b"HTTPS://x:1/", b"x"), (b"http://a@x/", b"x")),
        *((b"http://x//v1/payments", b"x"), (b"//v1/payments", b"x"), (b"//x/v1", b"x")),
        *((b"/v1/payments#a", b"x"), (b"/v1/payments?a#b", b"x"), (b"http://x#y/", b"x")),
        *((b"/v1%2Fpayments", b"x"), (b"/v1%2fpayments?a", b"x"), (b"/v1/x%5C..", b"x")),
    ],
)
def test_address_that_can_be_read_in_two_ways_is_refused(target: bytes, host: bytes) -> None:
    received = b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, host)

    assert judged(received) == "bad_request"


@pytest.mark.parametrize(
    "target",
    [b"/", b"/a//b?c=//d%2Fe", b"http://x/v1", b"HTTP://X/v1?a=http://y/", b"*", b"/%2e"],
)
def test_address_with_one_reading_is_taken(target: bytes) -> None:
    assert judged(b"OPTIONS %s HTTP/1.1\r\nHost: x\r\n\r\n" % target) is WHOLE
    assert judged(b"OPTIONS %s HTTP/1.0\r\n\r\n" % target) is WHOLE


@pytest.mark.parametrize("framing", [b"Content-Length: 2\r\n", CHUNKED])
@pytest.mark.parametrize(
    ("fields", "closes"),
    [
        ((b"close",), True),
        ((b"Close",), True),
        ((b"close, keep-alive",), True),
        ((b"keep-alive, close",), True),
        ((b"Upgrade,close,",), True),
        ((b"keep-alive", b"close"), True),
        ((b"close", b"keep-alive"), True),
        ((b"keep-alive",), False),
        ((b"closed",), False),
        ((b'"close"',), False),
        ((b"Upgrade, HTTP2-Settings",), False),
    ],
)
def test_close_anywhere_in_the_list_closes_the_connection(
    fields: tuple[bytes, ...], closes: bool, framing: bytes
) -> None:
    arrival = Arrival()
    headers = b"".join(b"CONNECTION: " + field + b"\r\n" for field in fields) + b"X: y\r\n"
    body = b"2\r\n{}\r\n0\r\n\r\n" if framing is CHUNKED else b"{}"

    assert arrival.feed(request(headers + framing, body) + b"GET /") is WHOLE
    message = next(RequestParser(Config(), iter([arrival.take()]), ("127.0.0.1", 1)))
    assert message.should_close() is closes
    assert message.body.read() == b"{}"
    assert ("X", "y") in message.headers
    assert arrival.has_begun


def test_fields_of_the_trailers_are_not_read() -> None:
    arrival = Arrival()
    trailers = b"0\r\nIdempotency-Key: K\r\nContent-Length: 5\r\n\r\n"

    assert arrival.feed(request(CHUNKED, trailers)) is WHOLE
    assert arrival.take() == HEAD + b"Content-Length: 0\r\n\r\n"
