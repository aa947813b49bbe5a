"""Keeps most of a worker's threads away from a provider that hangs, so that reads stay quick.

The bulkhead has no queue: a call is admitted or refused at once, and a refused payment waits in the
database, where it costs no thread. The limit adapts (additive increase, multiplicative decrease, as
in TCP and Netflix's concurrency-limits): it is halved when calls time out or become slow, and grows
by one after each full round of quick calls. A provider that returns therefore meets few calls at
first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from service.errors import BulkheadFull
from service.observability.metrics import catalogue as metrics


class Bulkhead:
    """At most `limit_max` calls at once, and at least `limit_min`. One per worker and provider."""

    def __init__(
        self,
        *,
        limit_max: int,
        limit_min: int = 2,
        slow_s: float = 3.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._limit_max = float(max(1, limit_max))
        self._limit_min = min(float(max(1, limit_min)), self._limit_max)
        self._slow_s = slow_s
        self._clock = clock
        self._lock = threading.Lock()
        # Start at the maximum: a deploy is no reason to refuse calls.
        self._limit = self._limit_max
        self._lowered_at_s = clock()
        self._in_use = 0
        metrics.bulkhead_limit.set(self._limit)
        metrics.bulkhead_in_use.set(0)

    @property
    def limit(self) -> int:
        """The number of concurrent calls admitted now."""
        return int(self._limit)

    @property
    def in_use(self) -> int:
        return self._in_use

    def enter(self) -> BulkheadPermit:
        """Take a place or raise BulkheadFull at once; use it as a context manager."""
        with self._lock:
            has_room = self._in_use < int(self._limit)
            if has_room:
                self._in_use += 1
                metrics.bulkhead_in_use.set(self._in_use)
        if not has_room:
            metrics.bulkhead_refusals_total.inc()
            raise BulkheadFull("As many calls as may wait for the provider already do.")
        return BulkheadPermit(self, self._clock())

    def _leave(self, place: BulkheadPermit) -> None:
        now_s = self._clock()
        with self._lock:
            if place.failed is not None:
                was_full = self._in_use * 2 >= self._limit
                self._adapt(place, now_s, was_full=was_full)
            self._in_use -= 1
            metrics.bulkhead_in_use.set(self._in_use)

    def _adapt(self, place: BulkheadPermit, now_s: float, *, was_full: bool) -> None:
        limit = self._limit
        if place.failed or now_s - place.began_s >= self._slow_s:
            # Calls that began before the last reduction met the old limit: they prove nothing about
            # the new one, and concurrent timeouts reduce the limit once.
            if place.began_s >= self._lowered_at_s:
                self._limit = max(self._limit_min, limit / 2)
                self._lowered_at_s = now_s
        elif was_full:
            # An unused limit proves nothing either.
            self._limit = min(self._limit_max, limit + 1 / limit)
        if int(self._limit) != int(limit):
            metrics.bulkhead_limit.set(int(self._limit))


class BulkheadPermit:
    """One call's place. `failed`: True for a loss, False for a success, None proves nothing."""

    __slots__ = ("_bulkhead", "began_s", "failed")

    def __init__(self, bulkhead: Bulkhead, began_s: float) -> None:
        self._bulkhead = bulkhead
        self.began_s = began_s
        self.failed: bool | None = None

    def __enter__(self) -> BulkheadPermit:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._bulkhead._leave(self)
