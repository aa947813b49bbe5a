"""Reads a request's head strictly: which headers appear once, and what frames the body. Pure."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

MAX_BODY_BYTES = 64 * 1024
MAX_LINE_BYTES = 4094
MAX_FIELDS = 64
MAX_FIELD_BYTES = 8190
# A length of so many digits is always too large; Python parses no integer of any length.
_MAX_LENGTH_DIGITS = 18

# Fields whose grammar is one item, by the documents that define them. A repeated one has no meaning:
# servers and proxies pick the first, the last, or both with a comma. All others are lists (RFC 9110,
# section 5.3) or unknown to us, and may repeat: Accept*, Cache-Control, Connection, Content-Encoding,
# Forwarded, If-Match, If-None-Match, Prefer (RFC 7240), Transfer-Encoding, Via, X-Forwarded-For,
# tracestate, baggage and so on.
STAND_ONCE = frozenset(
    {
        # RFC 9110
        *("authorization", "content-length", "content-location", "content-range", "content-type"),
        *("date", "expect", "from", "host", "if-modified-since", "if-range"),
        *("if-unmodified-since", "max-forwards", "proxy-authorization", "range", "referer"),
        *("user-agent", "last-modified", "etag", "location", "retry-after"),
        # RFC 6454, RFC 6265, Fetch, Fetch Metadata, HTML
        *("origin", "cookie", "access-control-request-method", "sec-fetch-dest"),
        *("sec-fetch-mode", "sec-fetch-site", "sec-fetch-user", "upgrade-insecure-requests"),
        # The IETF draft on Idempotency-Key, W3C Trace Context
        *("idempotency-key", "traceparent"),
        # Our own fields, and those of providers
        *("x-request-id", "x-request-timeout-ms", "stripe-signature"),
    }
)
# Fields of this set that allow no comma outside quotes: a comma means a repeat that was joined.
_NEVER_JOINED = frozenset(
    {
        *(b"content-length", b"content-type", b"host", b"origin", b"traceparent"),
        b"x-request-timeout-ms",
    }
)
# An underscore in place of a dash is dropped by gunicorn but read by other servers; where the body
# ends and which host the request is for must not depend on the reader.
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})
_ONCE = frozenset(name.encode("ascii") for name in STAND_ONCE)

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}) ([\x21-\x7e]+) HTTP/1\.([0-9])")
_ABSOLUTE = re.compile(rb"https?://([^/]*)", re.IGNORECASE)
_ENCODED_SLASH = re.compile(rb"%(?:2f|5c)", re.IGNORECASE)
_PLAIN_CLOSE = re.compile(rb"connection:[ \t]*close[ \t]*", re.IGNORECASE)
# The lists that frame the body or the connection.
_LISTS_READ = frozenset({b"transfer-encoding", b"connection"})
_TOKEN_BYTES = b"!#$%&'*+.^_`|~-" + string.digits.encode() + string.ascii_letters.encode()
_QUOTED = re.compile(rb'"[^"]*"')
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.vV]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(?::[0-9]{0,5})?")
_CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress", b"identity"})
# Fields that the parser behind us must not read again: we have framed the body already.
_REFRAMED = frozenset({b"transfer-encoding", b"content-length", b"trailer", b"expect"})


class Malformed(Exception):
    """The request is refused; `code` is the problem's, `detail` contains nothing of the request."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Head:
    """The head, and the framing of the body."""

    request_line: bytes
    fields: tuple[bytes, ...]
    target: bytes
    # None: chunked.
    length: int | None
    expects_continue: bool
    # The version or the Connection header is written in another way than it arrived.
    is_rewritten: bool = False

    def text(self) -> bytes:
        """The head without its empty line, as the next parser gets it."""
        return b"\r\n".join([self.request_line, *self.fields])

    def reframed(self, length: int) -> bytes:
        """The same head for an unchunked body of `length` bytes, without `Expect`."""
        kept = [line for line in self.fields if line.partition(b":")[0].lower() not in _REFRAMED]
        framing = [b"Content-Length: %d" % length] if length or self.length is None else []
        return b"\r\n".join([self.request_line, *kept, *framing, b"", b""])


def check_trailer(line: bytes) -> None:
    """Raise Malformed unless the line is a field; trailers are discarded (RFC 9110, 6.5.1)."""
    _split(line)


def read_head(head: bytes) -> Head:
    """The head without its empty line; raises Malformed."""
    request_line, *fields = head.split(b"\r\n")
    if len(request_line) > MAX_LINE_BYTES:
        raise Malformed("uri_too_long", "The request line is too long.")
    if len(fields) > MAX_FIELDS or any(len(line) > MAX_FIELD_BYTES for line in fields):
        raise Malformed("headers_too_large", "The request has too many headers, or a too long one.")
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        raise Malformed("bad_request", "The request line is not HTTP/1 as we read it.")
    is_old = match[3] == b"0"
    # A later minor version is treated as the version that we support (RFC 9110, 2.5).
    understood = request_line if is_old else request_line[:-1] + b"1"
    values = _values(fields)
    if not is_old and b"host" not in values:
        raise Malformed("bad_request", "A request of HTTP/1.1 needs a Host header.")
    _check_target(match[2], values.get(b"host"))
    kept = _with_one_close(fields) if _closes(values) else fields
    return Head(
        understood,
        tuple(kept),
        target=match[2],
        length=_length(values, is_old=is_old),
        expects_continue=_expects_continue(values, is_old=is_old),
        is_rewritten=understood != request_line or kept is not fields,
    )


def _check_target(target: bytes, host: list[bytes] | None) -> None:
    """Refuse an address that two parsers read differently; raises Malformed.

    The host of an absolute address replaces the Host header for some (RFC 9112, section 3.2.2), a
    second slash begins a host for some, and an encoded slash separates for those that decode first.
    """
    path = target.partition(b"?")[0]
    absolute = _ABSOLUTE.match(path)
    if absolute is not None:
        if host is not None and absolute[1].lower() != host[0].lower():
            raise Malformed("bad_request", "The address and the Host header name two hosts.")
        path = path[absolute.end() :]
    if path.startswith(b"//") or b"#" in target or _ENCODED_SLASH.search(path):
        raise Malformed("bad_request", "The address can be read in two ways.")


def _closes(values: dict[bytes, list[bytes]]) -> bool:
    options = b",".join(values.get(b"connection", [])).split(b",")
    return any(option.strip(b" \t").lower() == b"close" for option in options)


def _with_one_close(fields: list[bytes]) -> list[bytes]:
    """The fields with one plain `Connection: close`: the parser behind us reads the first one only,
    and only as a whole, so that it would serve requests behind the last one (RFC 9112, section 9.6)."""
    others = [line for line in fields if line.partition(b":")[0].lower() != b"connection"]
    is_plain = len(others) == len(fields) - 1 and any(_PLAIN_CLOSE.fullmatch(x) for x in fields)
    return fields if is_plain else [*others, b"Connection: close"]


def _values(fields: list[bytes]) -> dict[bytes, list[bytes]]:
    """The values of single fields and of the codings, by name; raises Malformed."""
    values: dict[bytes, list[bytes]] = {}
    for line in fields:
        name, value = _split(line)
        if b"_" in name:
            name = name.replace(b"_", b"-")
            if name in _FRAMING:
                raise Malformed("bad_request", f"{_shown(name)} is written with an underscore.")
        elif b"," in value and _is_joined(name, value):
            raise _repeated(name)
        if name in _ONCE:
            if name in values:
                raise _repeated(name)
            values[name] = [value]
        elif name in _LISTS_READ:
            values.setdefault(name, []).append(value)
    host = values.get(b"host")
    if host is not None and not _HOST.fullmatch(host[0]):
        raise Malformed("bad_request", "The Host header is not a host.")
    return values


def _split(line: bytes) -> tuple[bytes, bytes]:
    """A field line's name in lower case and value. Folded lines have no name, so they are refused."""
    name, colon, value = line.partition(b":")
    if not colon or not name or name.translate(None, _TOKEN_BYTES):
        raise Malformed("bad_request", "A header is not written as name, colon, value.")
    return name.lower(), value.strip(b" \t")


def _is_joined(name: bytes, value: bytes) -> bool:
    if name == b"authorization":
        return value[:7].lower() == b"bearer "
    return name in _NEVER_JOINED and b"," in _QUOTED.sub(b"", value)


def _shown(name: bytes) -> str:
    return f"The {name.decode('ascii').title()} header"


def _repeated(name: bytes) -> Malformed:
    return Malformed("header_repeated", f"{_shown(name)} must stand once.")


def _length(values: dict[bytes, list[bytes]], *, is_old: bool) -> int | None:
    """The body's length, None for a chunked one (RFC 9112, section 6)."""
    lengths = values.get(b"content-length", [])
    if b"transfer-encoding" in values:
        _check_codings(b",".join(values[b"transfer-encoding"]))
        if is_old or lengths:
            raise Malformed(
                "bad_request", "The body's length is said in two ways, or for HTTP/1.0."
            )
        return None
    if not lengths:
        return 0
    if not lengths[0].isdigit():
        raise Malformed("bad_request", "The Content-Length header is not a number.")
    digits = lengths[0].lstrip(b"0")
    if len(digits) > _MAX_LENGTH_DIGITS:
        raise Malformed("body_too_large", "The body is larger than we read.")
    return int(digits or b"0")


def _check_codings(value: bytes) -> None:
    codings = [coding.strip(b" \t").lower() for coding in value.split(b",")]
    if any(coding not in _CODINGS and coding != b"chunked" for coding in codings if coding):
        raise Malformed("not_implemented", "The transfer coding is not one that we read.")
    if codings.count(b"chunked") != 1 or codings[-1] != b"chunked" or b"" in codings:
        raise Malformed("bad_request", "The transfer coding must be chunked, once and at the end.")
    if len(codings) > 1:
        # `identity` is no coding since RFC 7230; compressed codings are not supported.
        code = "bad_request" if b"identity" in codings else "not_implemented"
        raise Malformed(code, "The transfer coding is not one that we read.")


def _expects_continue(values: dict[bytes, list[bytes]], *, is_old: bool) -> bool:
    expected = values.get(b"expect")
    if expected is None or is_old:
        return False
    if expected[0].lower() != b"100-continue":
        raise Malformed("expectation_failed", "No such expectation can be met.")
    return True
