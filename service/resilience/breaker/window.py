"""Recent calls, failures and slow calls, in a range of cells that other processes can read."""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

_BUCKETS = 10
# A bucket's start, then its three counts.
_BUCKET_CELLS = 4
# A generation, then the buckets.
WINDOW_CELLS = 1 + _BUCKETS * _BUCKET_CELLS


class Tally(NamedTuple):
    """The counts of a window."""

    calls: float = 0.0
    failures: float = 0.0
    slow: float = 0.0

    def plus(self, other: Tally) -> Tally:
        return Tally(
            self.calls + other.calls, self.failures + other.failures, self.slow + other.slow
        )


class CallWindow:
    """Slides over time and over count: calls older than `window_s`, or older than the newest
    `window_calls`, are forgotten a tenth at a time. One writer; any number of readers."""

    def __init__(
        self, cells: memoryview[float], start: int, *, window_s: float, window_calls: float = inf
    ) -> None:
        self._cells = cells
        self._generation = start
        self._first = start + 1
        self._last = start + WINDOW_CELLS - _BUCKET_CELLS
        self._bucket = self._first
        self._window_s = window_s
        self._bucket_s = window_s / _BUCKETS
        self._bucket_calls = inf if window_calls == inf else ceil(window_calls / _BUCKETS)

    def add(self, now_s: float, generation: float, *, failed: bool, slow: bool) -> None:
        """Count one call; a new generation begins with an empty window."""
        cells = self._cells
        if cells[self._generation] != generation:
            self._clear()
            cells[self._generation] = generation
        bucket = self._bucket
        if now_s - cells[bucket] >= self._bucket_s or cells[bucket + 1] >= self._bucket_calls:
            bucket = self._bucket = self._after(bucket)
            cells[bucket + 1] = cells[bucket + 2] = cells[bucket + 3] = 0.0
            cells[bucket] = now_s
        cells[bucket + 1] += 1
        if failed:
            cells[bucket + 2] += 1
        if slow:
            cells[bucket + 3] += 1

    def _clear(self) -> None:
        for cell in range(self._first, self._last + _BUCKET_CELLS):
            self._cells[cell] = 0.0

    def _after(self, bucket: int) -> int:
        return self._first if bucket == self._last else bucket + _BUCKET_CELLS

    def tally(self, now_s: float, generation: float) -> Tally:
        """The counts of `generation` within the window."""
        cells = self._cells
        if cells[self._generation] != generation:
            return Tally()
        calls = failures = slow = 0.0
        for bucket in range(self._first, self._last + 1, _BUCKET_CELLS):
            if now_s - cells[bucket] <= self._window_s:
                calls += cells[bucket + 1]
                failures += cells[bucket + 2]
                slow += cells[bucket + 3]
        return Tally(calls, failures, slow)
