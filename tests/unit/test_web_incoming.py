"""When a request that arrives in pieces is whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web.incoming import MAX_HEAD_BYTES, Verdict, judge, without_expectation

HEAD = b"POST /v1/payments HTTP/1.1\r\nHost: x\r\n"


def request(headers: bytes = b"", body: bytes = b"") -> bytearray:
    return bytearray(HEAD + headers + b"\r\n" + body)


@pytest.mark.parametrize(
    ("received", "verdict"),
    [
        (bytearray(), Verdict.WAIT),
        (bytearray(HEAD), Verdict.WAIT),
        (request(), Verdict.WHOLE),
        (request(b"Content-Length: 3\r\n", b"ab"), Verdict.WAIT),
        (request(b"Content-Length: 3\r\n", b"abc"), Verdict.WHOLE),
        (request(b"content-length:3\r\n", b"abcGET "), Verdict.WHOLE),
        (request(b"Content-Length: 65536\r\n"), Verdict.WAIT),
        (request(b"Content-Length: 65537\r\n"), Verdict.BODY_TOO_LARGE),
        (request(b"Content-Length: " + b"9" * 20 + b"\r\n"), Verdict.BODY_TOO_LARGE),
        (request(b"Content-Length: " + b"9" * 9000 + b"\r\n"), Verdict.BODY_TOO_LARGE),
        (request(b"Content-Length: " + b"0" * 30 + b"3\r\n", b"ab"), Verdict.WAIT),
        (request(b"Content-Length: 000\r\n"), Verdict.WHOLE),
        (request(b"Content-Length: 3\r\nExpect: 100-continue\r\n"), Verdict.CONTINUE),
        (request(b"Content-Length: 3\r\nExpect: 100-continue\r\n", b"abc"), Verdict.WHOLE),
        (request(b"Content-Length: x\r\n"), Verdict.WHOLE),
        (request(b"Transfer-Encoding: chunked\r\n"), Verdict.WAIT),
        (request(b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n"), Verdict.WAIT),
        (request(b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"), Verdict.WHOLE),
        (request(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"), Verdict.WHOLE),
        (request(b"Transfer-Encoding: chunked\r\n", b"0\r\nA: b\r\n\r\n"), Verdict.WHOLE),
        (request(b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n" * 30000), Verdict.BODY_TOO_LARGE),
        (bytearray(b"GET /" + b"a" * MAX_HEAD_BYTES), Verdict.HEAD_TOO_LARGE),
        (request(b"A: " + b"a" * MAX_HEAD_BYTES + b"\r\n"), Verdict.HEAD_TOO_LARGE),
        (bytearray(b"\x16\x03\x01\x02\x00\r\n\r\n"), Verdict.WHOLE),
    ],
)
def test_the_verdict_on_what_has_arrived(received: bytearray, verdict: Verdict) -> None:
    assert judge(received) is verdict


@given(st.binary(max_size=200), st.integers(min_value=0))
def test_no_part_of_a_request_is_taken_for_the_whole(body: bytes, cut: int) -> None:
    whole = request(b"Content-Length: %d\r\n" % len(body), body)

    assert judge(whole) is Verdict.WHOLE
    assert judge(whole[: cut % len(whole)]) is Verdict.WAIT


def test_only_the_expectation_is_taken_out() -> None:
    received = request(b"Expect: 100-continue\r\nContent-Length: 3\r\n", b"a")

    assert without_expectation(received) == request(b"Content-Length: 3\r\n", b"a")
