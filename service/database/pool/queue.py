"""The queue of callers that wait for a connection: first in, first out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from service.database.pool.connection import Connection
from service.observability.metrics import catalogue as metrics
from service.resilience.deadline import Deadline


class Waiter:
    """One queued caller; `ready` is released once for each time in the queue."""

    __slots__ = ("connection", "error", "ready")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.error: Exception | None = None
        self.ready = threading.Lock()
        self.ready.acquire()

    def wait(self, until: Deadline) -> bool:
        """False when this caller was neither served nor refused until then."""
        return self.ready.acquire(timeout=until.remaining_s())


class Line:
    """A queue of waiters. All but `len` and truth need the pool's lock."""

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self.waiters)

    def join(self, waiter: Waiter, *, at_head: bool) -> None:
        """Join at the end, or at the head after a checkout that gave a dead connection."""
        waiter.connection = None
        if at_head:
            self.waiters.appendleft(waiter)
        else:
            self.waiters.append(waiter)
        metrics.db_pool_waiting.set(len(self.waiters))

    def leave(self, waiter: Waiter) -> bool:
        """Leave the queue; False when the waiter was served or refused just before."""
        if waiter.ready.acquire(blocking=False):
            return False
        self.waiters.remove(waiter)
        metrics.db_pool_waiting.set(len(self.waiters))
        return True

    def serve(self, connection: Connection) -> None:
        """Give the connection to the first waiter; there must be one."""
        waiter = self.waiters.popleft()
        metrics.db_pool_waiting.set(len(self.waiters))
        waiter.connection = connection
        waiter.ready.release()

    def refuse_all(self, error: Callable[[], Exception]) -> None:
        """Refuse all waiters, each with a separate error object."""
        while self.waiters:
            waiter = self.waiters.popleft()
            waiter.error = error()
            waiter.ready.release()
        metrics.db_pool_waiting.set(0)
