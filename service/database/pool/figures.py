"""The figures of a pool: for people immediately, for Prometheus twice a second.

A histogram's `observe` costs as much as a whole checkout. So the path of a free connection only
records how long it was held, and the records go to Prometheus in bulk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

from prometheus_client import Histogram

from service.observability import tracing
from service.observability.metrics import catalogue as metrics


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """HikariCP's and psycopg_pool's figures in one; sums and counts begin with the pool."""

    pool_max: int
    pool_min: int
    # Open connections: checked out (active) and idle (available).
    pool_size: int
    active: int
    available: int
    requests_waiting: int
    # Checkouts, how many of those callers had to queue, and for how long.
    requests_num: int
    requests_queued: int
    requests_wait_ms: float
    requests_timeouts: int
    requests_refused: int
    # Statements that the database, or the deadline, ended.
    requests_errors: int
    usage_ms: float
    returns_bad: int
    connections_num: int
    connections_ms: float
    connections_errors: int
    connections_lost: int


class Figures:
    """Counts of one pool; everything but `holds.append` is done under the pool's lock."""

    def __init__(self, *, size: int) -> None:
        self._size = size
        # Seconds that each connection was held, not yet added up.
        self.holds: deque[float] = deque()
        self.queued = 0
        self.wait_s = 0.0
        self.timeouts = 0
        self.refusals = 0
        self.errors = 0
        self.returns_bad = 0
        self.opened = 0
        self.opened_s = 0.0
        self.connect_errors = 0
        self.lost = 0
        self._uses = 0
        self._held_s = 0.0
        self._instant_counted = 0
        self._hold_seconds = _Bulk(metrics.db_pool_hold_seconds)
        self._wait_seconds = _Bulk(metrics.db_pool_wait_seconds)
        metrics.db_pool_size.set(size)

    def waited(self, wait_s: float) -> None:
        """One caller was served after waiting in the queue."""
        self.queued += 1
        self.wait_s += wait_s
        # The exemplar links a long wait to its request.
        metrics.db_pool_wait_seconds.observe(wait_s, tracing.exemplar())

    def timed_out(self, wait_s: float) -> None:
        """One caller queued without success: failed waits are the longest of all."""
        self.timeouts += 1
        metrics.db_pool_wait_seconds.observe(wait_s, tracing.exemplar())

    def add_up(self) -> None:
        """Update the sums and Prometheus."""
        for _ in range(len(self.holds)):
            held_s = self.holds.popleft()
            self._uses += 1
            self._held_s += held_s
            self._hold_seconds.note(held_s)
        # Waits in the queue were observed as they ended; all other checkouts did not wait.
        instant = self._uses - self.queued
        if instant > self._instant_counted:
            self._wait_seconds.note(0.0, times=instant - self._instant_counted)
            self._instant_counted = instant
        self._hold_seconds.tell()
        self._wait_seconds.tell()

    def statistics(self, *, opened: int, idle: int, waiting: int) -> PoolStatistics:
        """All figures, as of now."""
        self.add_up()
        active = max(0, opened - idle)
        return PoolStatistics(
            pool_max=self._size,
            pool_min=self._size,
            pool_size=opened,
            active=active,
            available=idle,
            requests_waiting=waiting,
            requests_num=self._uses + active,
            requests_queued=self.queued,
            requests_wait_ms=self.wait_s * 1000,
            requests_timeouts=self.timeouts,
            requests_refused=self.refusals,
            requests_errors=self.errors,
            usage_ms=self._held_s * 1000,
            returns_bad=self.returns_bad,
            connections_num=self.opened,
            connections_ms=self.opened_s * 1000,
            connections_errors=self.connect_errors,
            connections_lost=self.lost,
        )


class _Bulk:
    """Record many observations of one histogram at once.

    prometheus-client has no public way to do it; its version is pinned, and a test guards this.
    """

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._edges_s = histogram._upper_bounds
        self._counts = [0] * len(self._edges_s)
        self._sum_s = 0.0

    def note(self, seconds: float, *, times: int = 1) -> None:
        self._counts[bisect_left(self._edges_s, seconds)] += times
        self._sum_s += seconds * times

    def tell(self) -> None:
        for position, count in enumerate(self._counts):
            if count:
                self._histogram._buckets[position].inc(count)
                self._counts[position] = 0
        self._histogram._sum.inc(self._sum_s)
        self._sum_s = 0.0
