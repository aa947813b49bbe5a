"""Receives one request in pieces: parses its head once and frames its body incrementally. Pure.

The parser behind it gets whole requests with a plain Content-Length, so that the end of a request
is unambiguous. Each byte is examined once, however small the pieces are.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from service.web.http.header_rules import MAX_BODY_BYTES, Head, Malformed, check_trailer, read_head

MAX_HEAD_BYTES = 32 * 1024
# Stripe names no limit for events that it sends by webhook; those that it sends by EventBridge end
# at 256 KiB. Only malicious requests exceed four times that size.
MAX_EVENT_BYTES = 1024 * 1024
_EVENTS = b"/v1/webhooks/"
# A chunk's size line and the trailers: usual clients send a few bytes of one, none of the other.
_MAX_SIZE_LINE_BYTES = 256
_MAX_TRAILER_BYTES = 8190
# Chunks carry their own lengths; this overhead suffices for any usual client's chunks.
_CHUNKING_OVERHEAD_BYTES = 64 * 1024

_END = b"\r\n\r\n"
# Controls, and line ends that only some readers recognize (RFC 9112, section 2.2).
_ALLOWED = bytes(byte for byte in range(256) if byte in b"\t\r\n" or 32 <= byte != 127)
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")
_NO_HEAD = Head(b"", (), b"", 0, expects_continue=False)
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[ \t]*"
    + _TOKEN
    + rb"(?:[ \t]*=[ \t]*(?:"
    + _TOKEN
    + rb'|"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"))?)*'
)
_PROBES = (b"GET /healthz", b"GET /readyz", b"HEAD /healthz", b"HEAD /readyz")
_READS = (b"GET ", b"HEAD ", b"OPTIONS ")


class Verdict(Enum):
    """The next action for a request that is arriving."""

    WAIT = auto()
    WHOLE = auto()
    # The client waits for `100 Continue` before it sends the body.
    CONTINUE = auto()
    # `refusal` has the reason; the rest of the connection cannot be read.
    REFUSE = auto()


class _Part(Enum):
    HEAD = auto()
    BODY = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    TRAILERS = auto()
    DONE = auto()


class Arrival:
    """The request that is arriving on a connection, and the bytes of those behind it."""

    def __init__(self) -> None:
        self.refusal: Malformed | None = None
        self._received = bytearray()
        self._reset()

    def _reset(self) -> None:
        self._part = _Part.HEAD
        self._head = _NO_HEAD
        self._body = bytearray()
        # The bytes parsed so far, and the bytes already searched for a line's end.
        self._at = 0
        self._searched = 0
        self._chunk_bytes = 0
        self._part_began = 0
        self._was_told_to_continue = False

    @property
    def has_begun(self) -> bool:
        """Whether a part of a request has arrived."""
        return bool(self._received)

    @property
    def is_large(self) -> bool:
        """Whether it exceeds the size limit of requests that are no events."""
        return len(self._received) > MAX_HEAD_BYTES + MAX_BODY_BYTES + _CHUNKING_OVERHEAD_BYTES

    @property
    def method(self) -> str:
        """The method as sent, for counting; the caller maps it to a closed set."""
        return method_of(self._received)

    def feed(self, piece: bytes) -> Verdict:
        """Add received bytes; after WHOLE they may include the next request's beginning."""
        self._received += piece
        return self.judge()

    def judge(self) -> Verdict:
        """The next action after the bytes so far."""
        try:
            return self._read_on()
        except Malformed as refusal:
            self.refusal = refusal
            return Verdict.REFUSE

    def take(self) -> bytes:
        """The whole request for the parser, after WHOLE; the bytes behind it begin the next one."""
        if self._head.length is None or self._head.expects_continue:
            request = self._head.reframed(len(self._body)) + self._body
        else:
            request = bytes(self._received[: self._at])
        del self._received[: self._at]
        self._reset()
        return request

    def _read_on(self) -> Verdict:
        if self._part is _Part.HEAD and not self._read_head():
            return Verdict.WAIT
        if self._part is _Part.BODY:
            self._read_plain(self._head)
        while self._part not in (_Part.BODY, _Part.DONE) and self._read_chunked():
            pass
        if self._part is _Part.DONE:
            return Verdict.WHOLE
        if self._head.expects_continue and not self._was_told_to_continue:
            self._was_told_to_continue = True
            return Verdict.CONTINUE
        return Verdict.WAIT

    def _read_head(self) -> bool:
        received = self._received
        if self._searched < 2 and received[:2] == b"\r\n":
            # One empty line before a request is skipped (RFC 9112, section 2.2).
            del received[:2]
            self._searched = 0
        end = received.find(_END, max(0, self._searched - 3))
        limit = end + 2 if end >= 0 else len(received)
        if limit > MAX_HEAD_BYTES:
            raise Malformed("headers_too_large", f"The headers exceed {MAX_HEAD_BYTES} bytes.")
        if not self._is_clean(limit):
            raise Malformed("bad_request", "The request is not valid HTTP.")
        self._searched = len(received)
        if end < 0:
            return False
        self._head = read_head(bytes(received[:end]))
        if self._head.is_rewritten:
            received[:end] = self._head.text()
            end = len(self._head.text())
            self._searched = len(received)
        self._at = self._searched = self._part_began = end + len(_END)
        self._part = _Part.BODY if self._head.length is not None else _Part.CHUNK_SIZE
        if (self._head.length or 0) > self._max_body_bytes:
            raise self._too_large()
        return True

    def _is_clean(self, limit: int) -> bool:
        """Whether the bytes since the last piece, up to `limit`, are free of forbidden ones."""
        if not self._searched:
            # The usual request arrives in one piece: counting is ten times as fast as the pattern.
            piece = self._received[:limit]
            if not piece.translate(None, _ALLOWED) and (
                piece.count(b"\r\n") == piece.count(b"\n") == piece.count(b"\r")
            ):
                return True
        begin = max(0, self._searched - 1)
        return _FORBIDDEN.search(self._received, begin, limit) is None

    @property
    def _max_body_bytes(self) -> int:
        return MAX_EVENT_BYTES if self._head.target.startswith(_EVENTS) else MAX_BODY_BYTES

    def _too_large(self) -> Malformed:
        return Malformed("body_too_large", f"The body is larger than {self._max_body_bytes} bytes.")

    def _read_plain(self, head: Head) -> None:
        length = head.length or 0
        if len(self._received) - self._at < length:
            return
        if head.expects_continue:
            self._body += self._received[self._at : self._at + length]
        self._at += length
        self._part = _Part.DONE

    def _read_chunked(self) -> bool:
        """One step; False when it needs more bytes. Raises Malformed for an invalid chunked body."""
        if self._at - self._part_began > self._max_body_bytes + _CHUNKING_OVERHEAD_BYTES:
            raise self._too_large()
        if self._part is _Part.CHUNK_SIZE:
            return self._read_size()
        if self._part is _Part.CHUNK:
            return self._read_chunk()
        return self._read_trailer()

    def _read_size(self) -> bool:
        line = self._line(_MAX_SIZE_LINE_BYTES)
        if line is None:
            return False
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise Malformed("bad_request", "A chunk's size is malformed.")
        self._chunk_bytes = int(match[1], 16)
        if len(self._body) + self._chunk_bytes > self._max_body_bytes:
            raise self._too_large()
        self._part = _Part.CHUNK if self._chunk_bytes else _Part.TRAILERS
        if self._part is _Part.TRAILERS:
            self._part_began = self._at
        return True

    def _read_chunk(self) -> bool:
        end = self._at + self._chunk_bytes
        mark = self._received[end : end + 2]
        if not b"\r\n".startswith(mark):
            raise Malformed("bad_request", "A chunk's end does not match its size.")
        if len(mark) < 2:
            return False
        self._body += self._received[self._at : end]
        self._at = self._searched = end + 2
        self._part = _Part.CHUNK_SIZE
        return True

    def _read_trailer(self) -> bool:
        if self._at - self._part_began > _MAX_TRAILER_BYTES:
            raise Malformed("headers_too_large", f"Trailers exceed {_MAX_TRAILER_BYTES} bytes.")
        line = self._line(_MAX_TRAILER_BYTES)
        if line is None:
            return False
        if line:
            check_trailer(line)
        else:
            self._part = _Part.DONE
        return True

    def _line(self, limit: int) -> bytes | None:
        """The next whole line without its end; None until it has arrived."""
        received = self._received
        begin = max(self._at, self._searched - 1)
        end = received.find(b"\r\n", begin)
        stop = end + 2 if end >= 0 else len(received)
        if stop - self._at > limit or _FORBIDDEN.search(received, begin, stop) is not None:
            raise Malformed("bad_request", "A line of the chunked body is malformed.")
        self._searched = len(received)
        if end < 0:
            return None
        line = bytes(received[self._at : end])
        self._at = self._searched = end + 2
        return line


def is_probe(request: bytes) -> bool:
    """Whether the path is /healthz or /readyz."""
    return request.startswith(_PROBES)


def is_read(request: bytes) -> bool:
    """Whether the request only reads: reads are the last to be refused."""
    return request.startswith(_READS)


def method_of(request: bytes | bytearray) -> str:
    """The method as typed."""
    return bytes(request[:16]).partition(b" ")[0].decode("latin-1")
