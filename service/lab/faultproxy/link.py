"""One link through the fault proxy: its listener, its connections and its fault."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from service.lab.faultproxy.faults import Fault, Mode
from service.lab.faultproxy.relay import Relay, tcp_nodelay

log = logging.getLogger(__name__)

# Far above every pool that uses a link; a caller that exceeds it is broken.
RELAYS_MAX = 1024
BACKLOG = 512
# Longer than any caller waits for the connection.
DIAL_TIMEOUT_S = 10.0
HEAD_BYTES_MAX = 8192
# With a backlog of 0 the queue holds one connection; the rest verify that the kernel answers none.
FILLERS = 3

_CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_UNREACHABLE = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Address = tuple[str, int] | str


class Link:
    """Accepts on `listener` and relays to `target` (host and port, or the path of a unix socket)."""

    def __init__(self, name: str, listener: socket.socket, target: Address, *, is_http: bool):
        """`is_http`: clients name the target with CONNECT; any other target is forbidden."""
        self.name = name
        self.fault: Fault | None = None
        self.injections = 0
        self._listener = listener
        self._target = target
        self._is_http = is_http
        self._is_unix = listener.family == socket.AF_UNIX
        self._relays: set[Relay] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fillers: list[socket.socket] = []
        listener.setblocking(False)

    @property
    def connections(self) -> int:
        return len(self._relays)

    def open(self) -> None:
        """Start to accept. A previous proxy process may have left the listener closed."""
        self._listener.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def inject(self, fault: Fault) -> None:
        """Inject a fault on the link, replacing the current one."""
        self.clear()
        self.fault, self.injections = fault, 0
        if not self._is_unix and fault.mode in (Mode.REFUSE, Mode.CONNECT_TIMEOUT):
            asyncio.get_running_loop().remove_reader(self._listener)
            if fault.mode is Mode.REFUSE:
                self._listener.shutdown(socket.SHUT_RDWR)
            else:
                self._fill_queue()
        for relay in list(self._relays):
            relay.inject(fault)

    def clear(self) -> None:
        """Remove the fault; held bytes are forwarded."""
        fault, self.fault = self.fault, None
        if fault is None:
            return
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self.open()
        for relay in list(self._relays):
            relay.release()

    def _fill_queue(self) -> None:
        self._listener.listen(0)
        for _ in range(FILLERS):
            filler = socket.socket(self._listener.family, socket.SOCK_STREAM)
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)

    def _accept(self) -> None:
        # Accept all pending connections: one wake-up for each would make a burst queue.
        for _ in range(BACKLOG):
            try:
                sock, _address = self._listener.accept()
            except OSError:
                return
            refused = self.fault is not None and self.fault.mode in (
                Mode.REFUSE,
                Mode.CONNECT_TIMEOUT,
            )
            if refused or len(self._relays) >= RELAYS_MAX:
                self.injections += refused
                sock.close()
            else:
                self._begin(self._serve(sock))

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        relay = Relay(
            fault=lambda: self.fault,
            count_injection=self._count,
            ended=self._relays.discard,
            holds_requests=not self._is_http,
            is_tls=self._is_http,
        )
        self._relays.add(relay)
        head = _Head()
        if self._is_http:
            relay.client.receive = head.read
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: relay.client, sock)
        if not self._is_http:
            # Bytes that the client sends before the target is connected wait in the socket.
            relay.client.transport.pause_reading()
            await self._dial(relay, refuse=None)
            return
        try:
            wanted = await asyncio.wait_for(head.target, DIAL_TIMEOUT_S)
        except (TimeoutError, asyncio.CancelledError):
            relay.client.transport.close()
            return
        relay.client.transport.pause_reading()
        if wanted == self._target:
            await self._dial(relay, refuse=_UNREACHABLE)
        else:
            relay.client.transport.write(_FORBIDDEN)
            relay.client.transport.close()

    async def _dial(self, relay: Relay, *, refuse: bytes | None) -> None:
        try:
            await asyncio.wait_for(self._connect(relay), DIAL_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            log.warning(
                "faultproxy.target_unreachable", extra={"link": self.name, "error": str(error)}
            )
            if refuse is not None:
                relay.client.transport.write(refuse)
            relay.client.transport.close()
            return
        tcp_nodelay(relay.target.transport)
        relay.join()
        if relay.client.transport.is_closing():
            relay.target.transport.close()
            return
        if refuse is not None:
            relay.client.transport.write(_CONNECTED)
        relay.client.transport.resume_reading()

    def _connect(self, relay: Relay) -> Awaitable[Any]:
        loop = asyncio.get_running_loop()
        make: Callable[[], asyncio.Protocol] = lambda: relay.target  # noqa: E731
        if isinstance(self._target, str):
            return loop.create_unix_connection(make, self._target)
        host, port = self._target
        return loop.create_connection(make, host, port)

    def _count(self) -> None:
        self.injections += 1

    def close(self) -> None:
        """Stop accepting and close every connection."""
        with contextlib.suppress(ValueError, OSError):
            asyncio.get_running_loop().remove_reader(self._listener)
        for relay in list(self._relays):
            relay.reset()


class _Head:
    """Reads the head of a CONNECT request; `target` is the host and port it names, or None."""

    def __init__(self) -> None:
        self.target: asyncio.Future[tuple[str, int] | None] = (
            asyncio.get_running_loop().create_future()
        )
        self._read = b""

    def read(self, data: bytes) -> None:
        self._read += data
        is_whole = b"\r\n\r\n" in self._read
        if not self.target.done() and (is_whole or len(self._read) > HEAD_BYTES_MAX):
            self.target.set_result(_named(self._read) if is_whole else None)


def _named(head: bytes) -> tuple[str, int] | None:
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3 or words[0] != "CONNECT":
        return None
    host, _, port = words[1].rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None
