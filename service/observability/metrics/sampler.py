"""The one reader of the metrics registry in a process: for the statistics, the charts and every open page."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic

from service.observability.metrics.registry import SampleKey

Samples = Mapping[SampleKey, float]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Follower:
    take_reading: Callable[[], object]
    every_s: Callable[[], float]
    failure_event: str
    took_at_s: float = float("-inf")

    def due_at_s(self) -> float:
        return self.took_at_s + self.every_s()


class Sampler:
    """Reads the registry at most once within `keep_s`, for any number of callers. Thread-safe.

    One thread gives each follower its turn; a follower that fails takes no turn from another.
    """

    def __init__(self, read: Callable[[], Samples], *, keep_s: float = 1.0) -> None:
        self._read = read
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._kept: Samples = {}
        self._read_at_s = float("-inf")
        self._followers: list[_Follower] = []
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def reading(self) -> tuple[float, Samples]:
        """The samples with the moment (on `time.monotonic`) at which they were read."""
        with self._lock:
            if monotonic() - self._read_at_s >= self._keep_s:
                self._kept, self._read_at_s = self._read(), monotonic()
            return self._read_at_s, self._kept

    def samples(self) -> Samples:
        """The samples, at most `keep_s` old."""
        return self.reading()[1]

    def follow(
        self,
        take_reading: Callable[[], object],
        *,
        every_s: Callable[[], float],
        failure_event: str,
    ) -> None:
        """Call `take_reading` at the start and then every `every_s()`; register before `start`."""
        self._followers.append(_Follower(take_reading, every_s, failure_event))

    def ask_again(self) -> None:
        """Ask each follower for its period now: one of them has become shorter."""
        self._wake.set()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="metrics-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stopping:
            for follower in self._followers:
                if monotonic() >= follower.due_at_s():
                    _take_turn(follower)
            self._wake.wait(max(0.0, min(map(_Follower.due_at_s, self._followers)) - monotonic()))
            self._wake.clear()


def _take_turn(follower: _Follower) -> None:
    # The start of the turn: the time that a reading takes does not lengthen the period.
    follower.took_at_s = monotonic()
    try:
        follower.take_reading()
    # A failed reading must not end the loop.
    except Exception:
        log.exception(follower.failure_event)
