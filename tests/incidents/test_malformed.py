"""Malformed requests over raw sockets, to both planes: refused at once by the rules of HTTP, never 500."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.support.stack.running_stack import RunningStack, running_stack

# A request that was taken for an unfinished one is dropped after ten seconds, without an answer.
ANSWER_S = 90.0
CHUNKED = b"Transfer-Encoding: chunked\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("local_stack")) as local_stack:
        yield local_stack


@pytest.fixture(params=["data", "ops"])
def plane(request: pytest.FixtureRequest, local_stack: RunningStack) -> str:
    return local_stack.url if request.param == "data" else local_stack.ops_url


def exchange(plane: str, raw: bytes, *, answers: int = 1) -> list[tuple[int, bytes]]:
    """The answers to these exact bytes: `answers` answers, or all until the end."""
    where = urlsplit(plane)
    client = socket.create_connection((where.hostname or "", where.port or 0), timeout=ANSWER_S)
    received = b""
    with client:
        client.sendall(raw.replace(b"{host}", where.netloc.encode()))
        while True:
            found = _answers(received)
            if len(found) >= answers or not (piece := client.recv(65536)):
                return found
            received += piece


def _answers(received: bytes) -> list[tuple[int, bytes]]:
    found = []
    while b"\r\n\r\n" in received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            break
        found.append((int(head[9:12]), rest[:size]))
        received = rest[size:]
    return found


def head(line: bytes, *fields: bytes) -> bytes:
    return line + b" HTTP/1.1\r\nHost: {host}\r\n" + b"".join(fields) + b"\r\n"


ROUTES = (
    b"POST /v1/payments",
    b"POST /v1/webhooks/stripe",
    b"GET /healthz",
    b"GET /metrics",
    b"POST /x",
)
CHUNKS = (
    *(b"\r\n", b"x\r\n", b" 3\r\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\n", b"+3\r\nabc\r\n"),
    *(b"-3\r\nabc\r\n", b"0x3\r\nabc\r\n", b"3\nabc\n0\n\n", b"3\r\nabcd\r\n0\r\n\r\n"),
    *(b"3\r\nabc0\r\n\r\n", b"3;\r\nabc\r\n0\r\n\r\n", b"fffffffffffffffff\r\n", b"3_0\r\n"),
    *(b"0\r\nno colon\r\n\r\n", b"0\r\n a: b\r\n\r\n", b"3;a\x00b\r\n", b"\xb3\r\n", b"3\r\r\n"),
    *(b"0\r\nA: b\nC: d\r\n\r\n", b"0" * 300),
)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_malformed_chunks_are_400_on_every_route(plane: str, chunks: bytes) -> None:
    for route in ROUTES:
        ((status, body),) = exchange(plane, head(route, CHUNKED, JSON) + chunks)

        assert status == 400, (route, body)
        assert json.loads(body)["code"] == "bad_request"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Transfer-Encoding: identity\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 400),
        (b"Transfer-Encoding: \r\n", 400),
        (b"Transfer-Encoding: chunked, identity\r\n", 400),
        (b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"Transfer-Encoding: wat\r\n", 501),
        (CHUNKED + CHUNKED, 400),
        (CHUNKED + b"Content-Length: 3\r\n", 400),
        (b"Content-Length: 3\r\nContent-Length: 3\r\n", 400),
        (b"Content-Length: 3, 3\r\n", 400),
        (b"Content-Length: -1\r\n", 400),
        (b"Content-Length: 9999999999999999999999\r\n", 413),
        (b"Content_Length: 3\r\n", 400),
        (b"Host: other\r\n", 400),
        (b"Expect: miracles\r\n", 417),
        (b"Name : value\r\n", 400),
        (b" folded: value\r\n", 400),
        (b"Name: a\r\n folded\r\n", 400),
        (b"Name: a\rb\r\n", 400),
        (b"Name: a\nb: c\r\n", 400),
        (b"Name: \x00\r\n", 400),
        (b"X: y\r\n" * 100, 431),
    ],
)
def test_malformed_framing_is_refused_at_once(plane: str, fields: bytes, status: int) -> None:
    for route in ROUTES:
        ((given, body),) = exchange(plane, head(route, fields))

        assert (given, json.loads(body)["status"]) == (status, status), route


@pytest.mark.parametrize(
    "name",
    [
        *(b"Authorization", b"Content-Type", b"Idempotency-Key", b"Stripe-Signature", b"Origin"),
        *(b"X-Request-Id", b"X-Request-Timeout-Ms", b"traceparent", b"If-Modified-Since"),
        *(b"Range", b"User-Agent", b"Cookie", b"Sec-Fetch-Site"),
    ],
)
def test_repeated_header_is_400_on_every_route(plane: str, name: bytes) -> None:
    for route in ROUTES:
        for other in (name, name.lower(), name.replace(b"-", b"_")):
            twice = name + b": same\r\n" + other + b":same \r\n"
            if b"_" in other and b"_" not in name and other == name:
                continue
            ((status, body),) = exchange(plane, head(route, twice, b"Content-Length: 0\r\n"))

            assert (status, json.loads(body)["code"]) == (400, "header_repeated"), (route, other)


@pytest.mark.parametrize(
    "field",
    [
        *(b'Accept: application/openmetrics-text; version="1.0.0"', b"Accept: ;;,,=;q=x"),
        *(b"Accept: application/openmetrics-text; version=x", b"Accept: */*;q=\xff", b'Accept: "'),
        *(b"Accept: text/plain; version=..", b"Accept: " + b"a/b;q=0.1," * 700),
        *(b"Content-Type: ;;;", b'Content-Type: a/b; charset="', b"Content-Type: \xff/\xfe"),
        *(b"Content-Type: application/json; charset=utf-7", b"Content-Type: multipart/form-data"),
        *(b"Prefer: wait=999999999999999999", b'Prefer: wait="', b"Prefer: " + b" ," * 4000),
        *(
            b"Range: bytes=0-0,1-1,-1",
            b"Range: bytes=9-1",
            b"Range: x",
            b"Range: bytes=" + b"0-," * 900,
        ),
        *(
            b'If-None-Match: W/"',
            b"If-None-Match: a" + b" " * 8000 + b"b",
            b'If-None-Match: "' * 400,
        ),
        *(b"If-Modified-Since: never", b"If-Modified-Since: Fri, 99 Foo 99999 99:99:99 GMT"),
        *(b"If-Range: x", b"Accept-Encoding: gzip;q=x", b"Accept-Encoding: " + b",;" * 4000),
        *(b"Accept-Language: " + b"-" * 8000, b"Accept-Charset: \xff", b"Cookie: " + b'a="' * 2000),
        *(b"traceparent: 00-" + b"f" * 8000, b"X-Forwarded-For: \xff, x", b"Forwarded: for=\xff"),
        *(b"Authorization: Bearer \xff\xfe", b"Authorization: Basic " + b"=" * 8000),
        *(b"Authorization: Basic \xff", b'Authorization: Digest a=b, c="', b"X-Request-Id: \xff"),
        *(b"X-Request-Timeout-Ms: 1e9", b"X-Request-Timeout-Ms: " + b"9" * 8000),
        *(b"Stripe-Signature: t=" + b"9" * 8000, b"Stripe-Signature: " + b"v1=a," * 1600),
        *(b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk",),
        *(b"Content-Encoding: gzip", b"TE: trailers, x", b"Trailer: Host", b"Connection: \xff"),
        *(
            b"Origin: \xff",
            b"Origin: null",
            b"Referer: \xff",
            b"Access-Control-Request-Method: \xff",
        ),
        *(b"SCRIPT_NAME: /x", b"X-HTTP-Method-Override: DELETE", b"Max-Forwards: -1"),
    ],
)
def test_odd_header_is_answered_and_never_500(
    local_stack: RunningStack, plane: str, field: bytes
) -> None:
    key = f"Authorization: Bearer {local_stack.api_key}\r\n".encode()
    key = b"" if field.startswith(b"Authorization") else key
    routes = (
        *(b"GET /metrics", b"GET /healthz", b"GET /", b"GET /docs", b"GET /openapi.json"),
        *(b"GET /v1/payments", b"GET /v1/payments/pay_" + b"0" * 32, b"OPTIONS /v1/payments"),
        *(b"POST /v1/payments", b"POST /v1/webhooks/stripe", b"GET /static/console/api.js"),
        *(b"GET /diagnostics/statistics", b"POST /drills", b"DELETE /simulate"),
    )
    for route in routes:
        found = exchange(plane, head(route, key, field + b"\r\n", b"Content-Length: 0\r\n"))

        assert found, (route, field[:40])
        assert all(status < 500 or status in (501, 503) for status, _ in found), (route, found)


@pytest.mark.parametrize(
    "target",
    [
        *(
            b"/%",
            b"/%zz",
            b"/%00",
            b"/%ff%fe",
            b"//",
            b"/..%2f..",
            b"*",
            b"http://x/",
            b"/?%ff=%zz",
        ),
        *(b"/v1/payments?limit=" + b"9" * 3900, b"/v1/payments?" + b"a&" * 1900, b"/?a[]=%F0%28"),
        *(b"/v1/payments?cursor=" + b"9" * 17 + b"-" + b"f" * 32, b"/v1/payments?created_gte=\x7e"),
        *(b"/v1/events?cursor=" + b"9" * 3000, b"/v1/payments/pay_%F0%9F", b"/v1/webhooks/%00"),
        *(b"/metrics?name[]=%ff", b"/drills/%ff", b"x", b"http://[::1", b"http://[x]/"),
        *(b"/v1/payments;a=b", b"/v1/payments#f", b"/\\", b"/v1/payments?limit=%D9%A4"),
    ],
)
def test_odd_target_is_answered_and_never_500(
    local_stack: RunningStack, plane: str, target: bytes
) -> None:
    key = f"Authorization: Bearer {local_stack.api_key}\r\n".encode()
    for method in (b"GET", b"POST", b"OPTIONS", b"PROPFIND", b"CONNECT", b"TRACE"):
        found = exchange(plane, head(method + b" " + target, key, b"Content-Length: 0\r\n"))

        assert found, (method, target[:40])
        assert all(status < 500 or status in (501, 503) for status, _ in found), (method, found)


def test_payment_behind_a_chunked_one_is_served(local_stack: RunningStack) -> None:
    key = f"Authorization: Bearer {local_stack.api_key}\r\n".encode()
    body = b'{"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa"}'
    chunked = b"%x\r\n%s\r\n0\r\nSome: trailer\r\n\r\n" % (len(body), body)
    named = [b"Idempotency-Key: " + uuid4().hex.encode() + b"\r\n" for _ in range(3)]
    plain = b"Content-Length: %d\r\n" % len(body)
    stream = (
        head(b"POST /v1/payments", key, JSON, named[0], CHUNKED) + chunked
        + head(b"POST /v1/payments", key, JSON, named[1], plain) + body
        + head(b"POST /v1/payments", key, JSON, named[2], CHUNKED) + chunked
    )  # fmt: skip

    found = exchange(local_stack.url, stream, answers=3)

    assert [status for status, _ in found] == [201, 201, 201]
    assert len({json.loads(body)["id"] for _, body in found}) == 3


def test_key_that_is_repeated_charges_nothing(local_stack: RunningStack) -> None:
    key = f"Authorization: Bearer {local_stack.api_key}\r\n".encode()
    reference = uuid4().hex.encode()
    body = (
        b'{"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa", "reference": "r-%s"}'
        % reference
    )
    for named in (
        *(b"Idempotency-Key: K\r\nIdempotency-Key: K\r\n", b"Idempotency-Key: K,K\r\n"),
        *(b"idempotency-key: K\r\nIDEMPOTENCY-KEY: L\r\n", b"Idempotency-Key: K, K\r\n"),
        *(b"Idempotency_Key: K\r\nIdempotency-Key: K\r\n", b'Idempotency-Key: "K", "K"\r\n'),
    ):
        length = b"Content-Length: %d\r\n" % len(body)
        ((status, answer),) = exchange(
            local_stack.url, head(b"POST /v1/payments", key, JSON, named, length) + body
        )

        assert (status, json.loads(answer)["code"]) == (400, "header_repeated"), named
    assert local_stack.charges(f"r-{reference.decode()}") == []


@pytest.mark.parametrize(
    ("size", "status"), [(200_000, 400), (1_048_576, 400), (1_048_577, 413), (10**12, 413)]
)
def test_events_have_a_limit_of_their_own(
    local_stack: RunningStack, size: int, status: int
) -> None:
    length = b"Content-Length: %d\r\n" % size
    body = b" " * min(size, 1_048_576)

    ((given, _),) = exchange(local_stack.url, head(b"POST /v1/webhooks/stripe", length) + body)

    assert given == status
