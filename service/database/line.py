"""Callers in line for a connection: the first to come is the first to be served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from service.database.connection import Connection
from service.observability import metrics
from service.resilience.deadline import Deadline


class Waiter:
    """One caller in line; `ready` is released once for each time in line."""

    __slots__ = ("connection", "error", "ready")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.error: Exception | None = None
        self.ready = threading.Lock()
        self.ready.acquire()

    def wait(self, until: Deadline) -> bool:
        """False when nobody served or refused this caller until then."""
        return self.ready.acquire(timeout=until.remaining_s())


class Line:
    """A queue of waiters. All but `len` and truth are for whoever holds the pool's lock."""

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self.waiters)

    def join(self, waiter: Waiter, *, at_head: bool) -> None:
        """Stand at the end; at the head is for whoever was served with a dead connection."""
        waiter.connection = None
        if at_head:
            self.waiters.appendleft(waiter)
        else:
            self.waiters.append(waiter)
        metrics.db_pool_waiting.set(len(self.waiters))

    def leave(self, waiter: Waiter) -> bool:
        """Give up; False when the waiter was served or refused in the moment between."""
        if waiter.ready.acquire(blocking=False):
            return False
        self.waiters.remove(waiter)
        metrics.db_pool_waiting.set(len(self.waiters))
        return True

    def serve(self, connection: Connection) -> None:
        """Hand the connection to the first in line; there must be one."""
        waiter = self.waiters.popleft()
        metrics.db_pool_waiting.set(len(self.waiters))
        waiter.connection = connection
        waiter.ready.release()

    def refuse_all(self, error: Callable[[], Exception]) -> None:
        """Send everybody away, each with an error of their own."""
        while self.waiters:
            waiter = self.waiters.popleft()
            waiter.error = error()
            waiter.ready.release()
        metrics.db_pool_waiting.set(0)
