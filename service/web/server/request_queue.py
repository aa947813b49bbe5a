"""The queue before a worker's threads: as long as can be served in time, reads before writes."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Any

from service.web.server import framing
from service.web.server.connection import ClientConnection

# The maximum of queued requests per thread, however fast they seem to be.
QUEUED_A_THREAD_MAX = 8


class RequestQueue:
    """The unfinished requests of the threads. All methods run in the main loop unless noted."""

    def __init__(self, threads: int, wait_s: float) -> None:
        """A write waits for a thread for at most `wait_s`, a read twice as long."""
        self._threads = threads
        self._wait_s = wait_s
        # Unfinished requests; beyond the number of threads they are queued.
        self._admitted = 0
        self._queued: deque[tuple[Future[Any], ClientConnection]] = deque()
        # A running mean of a request's time in a thread; starts pessimistic.
        self._service_s = 0.1

    @property
    def is_busy(self) -> bool:
        """Whether every thread has a request: the next one is queued."""
        return self._admitted >= self._threads

    @property
    def is_full(self) -> bool:
        """Whether more requests wait than the threads can begin in time."""
        return self._admitted - self._threads >= self._longest()

    @property
    def has_waiting(self) -> bool:
        """Whether a request may still be refused for its wait."""
        return bool(self._queued)

    def admit(self, connection: ClientConnection) -> bool:
        """Count a request before a thread may have it; True: it has to wait, so call `wait` next."""
        has_to_wait = self.is_busy
        self._admitted += 1
        connection.is_queued = True
        return has_to_wait

    def wait(self, future: Future[Any], connection: ClientConnection) -> None:
        """Keep a request that waits, so that it can be refused while it does."""
        self._queued.append((future, connection))

    def end(self, connection: ClientConnection) -> None:
        """A request has ended, or was refused in the queue; one that was not admitted is ignored."""
        if connection.is_queued:
            connection.is_queued = False
            self._admitted -= 1

    def measure(self, connection: ClientConnection, took_s: float) -> None:
        """Add a request's time in its thread to the mean. Runs in a thread."""
        if connection.is_queued:
            # A race between two threads loses one sample.
            self._service_s += 0.1 * (took_s - self._service_s)

    def displace_write(self, connection: ClientConnection) -> ClientConnection | None:
        """The newest queued write, canceled for a read: reads are never refused before writes."""
        if not framing.is_read(connection.request):
            return None
        for future, waiting in reversed(self._queued):
            # A refused write stays queued until the next tick, and makes no room again.
            is_there = not future.cancelled() and not framing.is_read(waiting.request)
            if is_there and future.cancel():
                newest: ClientConnection = waiting
                return newest
        return None

    def cancel_late(self, now_s: float) -> list[ClientConnection]:
        """The requests that waited too long, canceled while the answer is still early."""
        queued, self._queued = self._queued, deque()
        late = []
        for future, connection in queued:
            if future.running() or future.done():
                continue
            patience = 2 if framing.is_read(connection.request) else 1
            if now_s - connection.arrived_s < patience * self._wait_s or not future.cancel():
                self._queued.append((future, connection))
            else:
                late.append(connection)
        return late

    def _longest(self) -> float:
        """As many as the threads can begin within `wait_s`, by the running mean.

        One for each thread is always allowed: a few slow requests must not refuse all others.
        """
        in_time = self._threads * self._wait_s / max(self._service_s, 0.001)
        return min(max(in_time, self._threads), self._threads * QUEUED_A_THREAD_MAX)
