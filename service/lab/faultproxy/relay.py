"""One connection through the fault proxy: bytes in both directions, subject to the link's fault."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from service.lab.faultproxy.faults import Fault, Mode

# With this option, closing a socket sends RST instead of FIN.
_LINGER_NONE = struct.pack("ii", 1, 0)
_NEVER = float("inf")


class RelayEnd(asyncio.Protocol):
    """One end of a relay: the client's or the target's."""

    transport: asyncio.Transport

    def __init__(self, receive: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self.receive = receive
        self._lost = lost
        # The peer; its reading pauses while this end's write buffer is full.
        self.other: RelayEnd | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.receive(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._lost()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def reset(self) -> None:
        """Close the connection with a reset, as a broken network does."""
        sock: socket.socket | None = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self.transport.abort()


class Lane:
    """One direction. Held data keeps its order; without a fault no data is ever held."""

    def __init__(self, source: RelayEnd, target: RelayEnd) -> None:
        self._source = source
        self._target = target
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.ends_when_empty = False

    def send(self, data: bytes) -> None:
        """Forward the data, behind any held data."""
        if self._waiting:
            self._waiting.append((self._waiting[-1][0], data))
        else:
            self._target.transport.write(data)

    def hold(self, data: bytes) -> None:
        """Keep the data until `release`; the source is not read further."""
        self._waiting.append((_NEVER, data))
        self._source.transport.pause_reading()

    def delay(self, data: bytes, pause_s: float) -> None:
        """Forward the data after `pause_s`, and never before earlier data."""
        ready_s = asyncio.get_running_loop().time() + pause_s
        last_s = self._waiting[-1][0] if self._waiting else 0.0
        self._waiting.append((max(ready_s, last_s), data))
        self._pump()

    def drip(self, data: bytes, pause_s: float) -> None:
        """Forward the data one byte at a time."""
        now_s = asyncio.get_running_loop().time()
        ready_s = self._waiting[-1][0] if self._waiting else now_s
        for position in range(len(data)):
            ready_s += pause_s
            self._waiting.append((ready_s, data[position : position + 1]))
        # Read no further ahead than the data that is being dripped.
        self._source.transport.pause_reading()
        self._pump()

    def release(self) -> None:
        """Forward all held data at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._target.transport.write(b"".join(data for _, data in self._waiting))
        self._waiting.clear()
        self._emptied()

    def end(self) -> None:
        """The source has ended: close the target once all held data is forwarded."""
        self.ends_when_empty = True
        if not self._waiting:
            self._target.transport.close()

    def drop(self) -> None:
        """Discard all held data."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._waiting and self._waiting[0][0] <= now_s:
            self._target.transport.write(self._waiting.popleft()[1])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            self._emptied()
        elif self._waiting[0][0] < _NEVER:
            self._timer = loop.call_at(self._waiting[0][0], self._pump)

    def _emptied(self) -> None:
        if self.ends_when_empty:
            self._target.transport.close()
        elif not self._source.transport.is_closing():
            self._source.transport.resume_reading()


class Relay:
    """The two ends of one connection and the fault between them."""

    def __init__(
        self,
        *,
        fault: Callable[[], Fault | None],
        count_injection: Callable[[], None],
        ended: Callable[[Relay], None],
        holds_requests: bool,
        is_tls: bool,
    ) -> None:
        """`fault` is read for every chunk; `holds_requests`: a stall holds requests too."""
        self._fault = fault
        self._count_injection = count_injection
        self._ended = ended
        self._holds_requests = holds_requests
        self._progress = TlsProgress() if is_tls else None
        self.client = RelayEnd(self._nothing_yet, self._client_lost)
        self.target = RelayEnd(self._answered, self._target_lost)
        self._out: Lane | None = None
        self._back: Lane | None = None

    def join(self) -> None:
        """Both ends are connected: start to forward."""
        self.client.other, self.target.other = self.target, self.client
        self._out = Lane(self.client, self.target)
        self._back = Lane(self.target, self.client)
        self.client.receive = self._asked

    def inject(self, fault: Fault) -> None:
        """Apply a new fault; most faults affect only later data."""
        if fault.mode in (Mode.REFUSE, Mode.CONNECT_TIMEOUT):
            self._count_injection()
            self.reset()

    def release(self) -> None:
        """The fault has ended."""
        for lane in (self._out, self._back):
            if lane is not None:
                lane.release()

    def reset(self) -> None:
        """Break the connection."""
        self.client.reset()
        if hasattr(self.target, "transport"):
            self.target.transport.abort()

    def _asked(self, data: bytes) -> None:
        assert self._out is not None  # noqa: S101  # Set together with this receiver.
        if self._progress is not None:
            self._progress.read(data)
        fault = self._fault()
        if fault is not None and fault.mode is Mode.STALL and self._holds_requests:
            self._count_injection()
            self._out.hold(data)
        else:
            self._out.send(data)

    def _answered(self, data: bytes) -> None:
        assert self._back is not None  # noqa: S101  # The target is connected before it answers.
        fault = self._fault()
        if fault is None:
            self._back.send(data)
        elif fault.mode is Mode.LATENCY:
            self._count_injection()
            self._back.delay(data, fault.pause_ms / 1000)
        elif self._progress is not None and not self._progress.request_sent:
            # The handshake passes: a fault must meet requests that were really sent.
            self._back.send(data)
        else:
            self._count_injection()
            if fault.mode is Mode.STALL:
                self._back.hold(data)
            elif fault.mode is Mode.DRIP:
                self._back.drip(data, fault.pause_ms / 1000)
            else:
                self.reset()

    def _nothing_yet(self, _data: bytes) -> None:
        """Bytes before the target is connected cannot arrive: reading is paused."""

    def _client_lost(self) -> None:
        if self._back is not None:
            self._back.drop()
        if hasattr(self.target, "transport"):
            self.target.transport.close()
        self._ended(self)

    def _target_lost(self) -> None:
        if self._back is not None:
            self._back.end()
        else:
            self.client.transport.close()


class TlsProgress:
    """Reads the client's TLS records, without their content, until a request has been sent.

    After ChangeCipherSpec the first record is the end of the handshake, in TLS 1.2 and 1.3 alike;
    the next one is the request.
    """

    _CHANGE_CIPHER_SPEC = 20

    def __init__(self) -> None:
        self.request_sent = False
        self._head = b""
        self._to_skip = 0
        self._since_change: int | None = None

    def read(self, data: bytes) -> None:
        """Process the next bytes from the client."""
        while data and not self.request_sent:
            if self._to_skip:
                skipped = min(self._to_skip, len(data))
                self._to_skip -= skipped
                data = data[skipped:]
                continue
            needed = 5 - len(self._head)
            self._head += data[:needed]
            data = data[needed:]
            if len(self._head) == 5:
                self._begin_record(self._head[0], int.from_bytes(self._head[3:5], "big"))
                self._head = b""

    def _begin_record(self, kind: int, length: int) -> None:
        self._to_skip = length
        if kind == self._CHANGE_CIPHER_SPEC:
            self._since_change = 0
        elif self._since_change is not None:
            self._since_change += 1
            self.request_sent = self._since_change > 1


def tcp_nodelay(transport: Any) -> None:
    """Disable Nagle's algorithm: small answers must not wait for later ones."""
    sock: socket.socket = transport.get_extra_info("socket")
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
