"""HTTP/1.1 over TLS with direct access to the socket, so that each fault is exact on the wire.

No web framework lets a handler reset the connection, or drip a body and notice that the client has
closed it. One thread serves one connection; an answer is one write.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic, sleep
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

# A local run has some dozens; the bound is for a client that leaks them, and is below the usual
# limit of 1024 files for a process.
CONNECTIONS_MAX = 512
HEAD_BYTES_MAX = 32 * 1024
BODY_BYTES_MAX = 256 * 1024
HANDSHAKE_S = 10.0
ACCEPT_PAUSE_S = 0.05
# Longer than the clients keep an idle connection, so that the sandbox rarely closes first.
IDLE_S = 120.0

_REASONS = {status.value: status.phrase for status in HTTPStatus}
# With this option, closing a socket sends RST instead of FIN.
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One complete request. Header names are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    is_local: bool  # The peer is on this machine.
    is_last: bool  # The peer wants the connection closed afterwards.


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One complete answer."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return self.head() + self.body

    def head(self) -> bytes:
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class MalformedRequest(Exception):
    """The received bytes are not HTTP that the sandbox serves; the connection must close."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class SandboxConnection:
    """One connection, with the orderly and the faulty ways to answer on it."""

    def __init__(self, connection: ssl.SSLSocket, *, is_local: bool) -> None:
        self._connection = connection
        self._is_local = is_local
        self._buffer = b""
        self.is_open = True

    def answer(self, answer: HttpAnswer) -> None:
        self._connection.sendall(answer.encode())

    def drip(self, answer: HttpAnswer, *, pause_s: float, longest_s: float) -> None:
        """Send the head, then the body one byte at a time; cut it off after `longest_s`."""
        end_s = monotonic() + longest_s
        self._connection.sendall(answer.head())
        for place in range(len(answer.body)):
            self._connection.sendall(answer.body[place : place + 1])
            if monotonic() >= end_s or not self.hold(pause_s):
                self.hang_up()
                return

    def send_part(self, part: bytes) -> None:
        """Send only this part, then close."""
        self._connection.sendall(part)
        self.hang_up()

    def hold(self, seconds: float) -> bool:
        """Send no byte for so long; False as soon as the client has closed the connection."""
        end_s = monotonic() + seconds
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        while (left_s := end_s - monotonic()) > 0:
            if poller.poll(left_s * 1000) and not self._receive():
                return False
        return True

    def hang_up(self) -> None:
        """Close without an answer (the client sees the end of the stream)."""
        self.is_open = False
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.is_open = False
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._connection.close()

    def next_request(self) -> Request | None:
        """The next complete request; None when the client has closed."""
        while (head_end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise MalformedRequest(431)
            if not self._receive():
                return None
        head, self._buffer = self._buffer[:head_end], self._buffer[head_end + 4 :]
        method, target, headers = _read_head(head)
        length = _body_length(headers)
        while len(self._buffer) < length:
            if not self._receive():
                return None
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        try:
            parts = urlsplit(target)
        except ValueError as error:
            raise MalformedRequest(400) from error
        return Request(
            method=method,
            path=unquote(parts.path),
            query=parts.query,
            headers=headers,
            body=body,
            is_local=self._is_local,
            is_last=headers.get("connection", "").lower() == "close",
        )

    def _receive(self) -> bool:
        try:
            piece = self._connection.recv(65536)
        except OSError:
            return False
        self._buffer += piece
        return bool(piece)


def _read_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise MalformedRequest(400)
    headers = {}
    for row in rest:
        name, colon, value = row.partition(":")
        if not colon:
            raise MalformedRequest(400)
        headers[name.lower()] = value.strip()
    return words[0], words[1], headers


def _body_length(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise MalformedRequest(411)
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise MalformedRequest(400)
    if int(length) > BODY_BYTES_MAX:
        raise MalformedRequest(413)
    return int(length)


class Server:
    """Accepts connections and gives each a thread, which passes every request to `handle`."""

    def __init__(
        self,
        handle: Callable[[Request, SandboxConnection], None],
        *,
        listener: socket.socket,
        tls: ssl.SSLContext,
    ) -> None:
        self._handle = handle
        self._tls = tls
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._listener = listener

    def serve_forever(self) -> None:
        """Accept until the process ends."""
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError as error:
                # The peer had closed already, or the machine has no free file descriptor at the moment.
                log.warning("connection.refused: %s", error)
                sleep(ACCEPT_PAUSE_S)
                continue
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._serve, args=(connection, peer[0]), name="connection", daemon=True
            ).start()

    def _serve(self, plain: socket.socket, peer_host: str) -> None:
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(HANDSHAKE_S)
            with self._tls.wrap_socket(plain, server_side=True) as connection:
                connection.settimeout(IDLE_S)
                line = SandboxConnection(connection, is_local=_is_loopback(peer_host))
                self._converse(line)
        # The peer closed, spoke no TLS or does not trust the authority: not an error here.
        except OSError as error:
            log.debug("connection.ended", extra={"reason": str(error)})
        finally:
            plain.close()
            self._places.release()

    def _converse(self, line: SandboxConnection) -> None:
        try:
            while line.is_open and (request := line.next_request()) is not None:
                self._handle(request, line)
                if request.is_last:
                    return
        except MalformedRequest as refusal:
            line.answer(HttpAnswer(refusal.status, b"{}", headers={"Connection": "close"}))


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host == "::1"
