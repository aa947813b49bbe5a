"""Callers at a steady rate, whatever the answers: the load of a drill and of `observe`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import monotonic

Send = Callable[[int], None]


class SteadyCallers:
    """Makes every call of `sends` at the same moment, `per_s` times a second, each in its own thread.

    A turn is skipped while more than `most` calls would be under way: they would measure this process
    instead of the service. Begin it once, end it once.
    """

    def __init__(self, sends: Sequence[Send], *, per_s: float, most: int) -> None:
        """Each call is given the number of its turn, from 1."""
        self._sends = sends
        self._pause_s = 1.0 / per_s
        self._most = most
        # The number of turns so far.
        self.turns = 0
        self._under_way = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._executor = ThreadPoolExecutor(most, thread_name_prefix="caller")
        self._clock = threading.Thread(target=self._run, name="callers", daemon=True)

    def begin(self) -> None:
        self._clock.start()

    def take_turn(self) -> None:
        """Make the calls of one more turn now."""
        with self._changed:
            if self._stopping.is_set() or self._under_way + len(self._sends) > self._most:
                return
            self.turns += 1
            self._under_way += len(self._sends)
            futures = [self._executor.submit(send, self.turns) for send in self._sends]
        for future in futures:
            future.add_done_callback(self._count_down)

    def repeat(self, calls: Iterable[Callable[[], None]], *, within_s: float) -> None:
        """Make these calls too, as many at a time as there are threads."""
        wait([self._executor.submit(call) for call in calls], within_s)

    def stop(self, *, within_s: float) -> None:
        """Take no more turns, and wait for the calls under way."""
        self._stopping.set()
        if self._clock.is_alive():
            self._clock.join(2.0)
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, within_s)

    def close(self) -> None:
        """End without waiting; calls that have not begun are not made."""
        self._stopping.set()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        next_s = monotonic()
        while not self._stopping.wait(max(0.0, next_s - monotonic())):
            next_s += self._pause_s
            self.take_turn()

    def _count_down(self, _future: Future[None]) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
