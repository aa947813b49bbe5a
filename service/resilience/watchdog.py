"""Ends a blocking read or write on a socket at its deadline, whatever the peer does.

A library's own timeout is for each read; a peer that drips bytes never triggers it, and a stalled
TLS handshake or libpq call has no timeout. One thread per process shuts down a duplicate of the
socket at the deadline: the blocked call then fails at once with the library's own error, in the
thread that made it.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import socket
import threading
from collections.abc import Iterator
from time import monotonic

from service.resilience.deadline import Deadline


class Watch:
    """One guarded call; `fired` shows afterwards whether the deadline ended it."""

    __slots__ = ("_duplicate", "_lock", "fired")

    def __init__(self, fileno: int) -> None:
        # A duplicate: the number in `fileno` may be closed and reused for another socket.
        self._duplicate: int | None = os.dup(fileno)
        self._lock = threading.Lock()
        self.fired = False

    def fire(self) -> None:
        """Shut the socket down, unless the call is over."""
        with self._lock:
            if self._duplicate is None:
                return
            self.fired = True
            # The peer may have been quicker; the blocked call is ending anyway.
            with contextlib.suppress(OSError), socket.socket(fileno=self._duplicate) as duplicate:
                # The `with` closes the descriptor, so this object no longer owns it.
                self._duplicate = None
                duplicate.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """The call is over: the socket is never touched again. May be called twice."""
        with self._lock:
            if self._duplicate is not None:
                os.close(self._duplicate)
                self._duplicate = None


class Watchdog:
    """Watches any number of calls with one daemon thread, started at the first of them.

    Create it after the fork: threads do not survive a fork.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Watch]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._count = 0

    @contextlib.contextmanager
    def guard(self, fileno: int, deadline: Deadline) -> Iterator[Watch]:
        """Shut down the socket of `fileno` at `deadline`, unless the block ends before."""
        watch = self.watch(fileno, deadline)
        try:
            yield watch
        finally:
            watch.release()

    def watch(self, fileno: int, deadline: Deadline) -> Watch:
        """Like `guard`, for a call that begins and ends in different places: release it yourself."""
        watch = Watch(fileno)
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()
            # The count decides between equal moments: watches themselves have no order.
            self._count += 1
            heapq.heappush(self._heap, (deadline.at_s, self._count, watch))
            if self._heap[0][2] is watch:
                self._changed.notify()
        return watch

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._heap or self._heap[0][0] > monotonic():
                    wait_s = self._heap[0][0] - monotonic() if self._heap else None
                    self._changed.wait(wait_s)
                _, _, watch = heapq.heappop(self._heap)
            watch.fire()
