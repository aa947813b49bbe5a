"""Tells from the bytes received so far whether a whole request has arrived. Pure."""

from __future__ import annotations

import re
from enum import Enum, auto

MAX_HEAD_BYTES = 32 * 1024
MAX_BODY_BYTES = 64 * 1024
# Chunks carry their own lengths; this much room for them still fits any sane client's chunks.
_MAX_CHUNKED_BYTES = 2 * MAX_BODY_BYTES

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect[ \t]*:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
_PROBES = (b"GET /healthz", b"GET /readyz", b"HEAD /healthz", b"HEAD /readyz")
_READS = (b"GET ", b"HEAD ", b"OPTIONS ")


class Verdict(Enum):
    """What to do with a request that is arriving."""

    WAIT = auto()
    WHOLE = auto()
    # The client waits for `100 Continue` before it sends the body.
    CONTINUE = auto()
    HEAD_TOO_LARGE = auto()
    BODY_TOO_LARGE = auto()


def judge(received: bytearray) -> Verdict:
    """What the bytes so far amount to. WHOLE may be followed by the next request's beginning.

    It need not be right about malformed requests: those are WHOLE, and the parser refuses them.
    """
    end = received.find(_END)
    if end > MAX_HEAD_BYTES or (end < 0 and len(received) > MAX_HEAD_BYTES):
        return Verdict.HEAD_TOO_LARGE
    if end < 0:
        return Verdict.WAIT
    head = bytes(received[: end + 2])
    body_bytes = len(received) - end - len(_END)
    if _CHUNKED.search(head):
        is_whole = _is_last_chunk_here(received, end)
        is_too_large = body_bytes > _MAX_CHUNKED_BYTES
    else:
        length = _LENGTH.search(head)
        # Cut, since Python reads no number of any length; so long a one is too large in any case.
        announced = int(length[1].lstrip(b"0")[:18] or b"0") if length is not None else 0
        is_whole = body_bytes >= announced
        is_too_large = announced > MAX_BODY_BYTES
    if is_too_large:
        return Verdict.BODY_TOO_LARGE
    if is_whole:
        return Verdict.WHOLE
    return Verdict.CONTINUE if _EXPECT.search(head) else Verdict.WAIT


def _is_last_chunk_here(received: bytearray, end: int) -> bool:
    """Whether the body may be over. A body that only looks so is read on by the thread."""
    return received.endswith(_END) and received.rfind(b"\r\n0", end + 2) >= 0


def without_expectation(received: bytearray) -> bytearray:
    """The same request for the parser, which would else answer `100 Continue` once more."""
    return bytearray(_EXPECT.sub(b"", bytes(received), count=1))


def is_probe(received: bytearray) -> bool:
    """Whether it asks for /healthz or /readyz."""
    return received.startswith(_PROBES)


def is_read(received: bytearray) -> bool:
    """Whether it changes nothing: those are the last to be refused."""
    return received.startswith(_READS)


def method_of(received: bytearray) -> str:
    """The method as typed, for counting; whoever counts maps it to a closed set."""
    return bytes(received[:16]).partition(b" ")[0].decode("latin-1")
