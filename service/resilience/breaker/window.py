"""Recent calls, failures and slow calls, in a range of numbers that other processes can read."""

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
        self, numbers: memoryview[float], start: int, *, window_s: float, window_calls: float = inf
    ) -> None:
        self._numbers = numbers
        self._generation = start
        self._first = start + 1
        self._last = start + WINDOW_CELLS - _BUCKET_CELLS
        self._bucket = self._first
        self._window_s = window_s
        self._bucket_s = window_s / _BUCKETS
        self._bucket_calls = inf if window_calls == inf else ceil(window_calls / _BUCKETS)

    def add(self, now_s: float, generation: float, *, failed: bool, slow: bool) -> None:
        """Count one call; a new generation begins with an empty window."""
        numbers = self._numbers
        if numbers[self._generation] != generation:
            self._clear()
            numbers[self._generation] = generation
        bucket = self._bucket
        if now_s - numbers[bucket] >= self._bucket_s or numbers[bucket + 1] >= self._bucket_calls:
            bucket = self._bucket = self._after(bucket)
            numbers[bucket + 1] = numbers[bucket + 2] = numbers[bucket + 3] = 0.0
            numbers[bucket] = now_s
        numbers[bucket + 1] += 1
        if failed:
            numbers[bucket + 2] += 1
        if slow:
            numbers[bucket + 3] += 1

    def _clear(self) -> None:
        for cell in range(self._first, self._last + _BUCKET_CELLS):
            self._numbers[cell] = 0.0

    def _after(self, bucket: int) -> int:
        return self._first if bucket == self._last else bucket + _BUCKET_CELLS

    def tally(self, now_s: float, generation: float) -> Tally:
        """The counts of `generation` within the window."""
        numbers = self._numbers
        if numbers[self._generation] != generation:
            return Tally()
        calls = failures = slow = 0.0
        for bucket in range(self._first, self._last + 1, _BUCKET_CELLS):
            if now_s - numbers[bucket] <= self._window_s:
                calls += numbers[bucket + 1]
                failures += numbers[bucket + 2]
                slow += numbers[bucket + 3]
        return Tally(calls, failures, slow)
