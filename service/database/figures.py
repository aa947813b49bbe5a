"""What a pool counts about itself: for people at once, for Prometheus twice a second.

A histogram's `observe` costs as much as a whole checkout. So the path of a free connection counts
on the connection that it holds, and the sums go to Prometheus in bulk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import Histogram

from service.database.connection import HOLD_EDGES_S, Connection
from service.observability import metrics


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """HikariCP's and psycopg_pool's figures in one; sums and counts are since the pool was made."""

    pool_max: int
    pool_min: int
    # Open connections: lent and idle.
    pool_size: int
    active: int
    # Idle, ready to be lent (psycopg_pool: pool_available).
    available: int
    requests_waiting: int
    requests_num: int
    # Those among them that had to stand in line, and for how long.
    requests_queued: int
    requests_wait_ms: float
    requests_timeouts: int
    requests_refused: int
    # Statements that the database or the deadline ended.
    requests_errors: int
    usage_ms: float
    returns_bad: int
    connections_num: int
    connections_ms: float
    connections_errors: int
    connections_lost: int


class Figures:
    """Counts of one pool. Fields are changed under the pool's lock or by one thread only."""

    def __init__(self, *, size: int) -> None:
        self._size = size
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
        # Of connections that are gone; the living carry their own.
        self._uses = 0
        self._held_s = 0.0
        self._hold_counts = [0] * (len(HOLD_EDGES_S) + 1)
        # What Prometheus was told already.
        self._told_instant = 0
        self._told_held_s = 0.0
        self._told_hold_counts = list(self._hold_counts)
        metrics.db_pool_size.set(size)

    def waited(self, wait_s: float) -> None:
        """One caller was served after standing in line."""
        self.queued += 1
        self.wait_s += wait_s
        metrics.db_pool_wait_seconds.observe(wait_s)

    def retire(self, connection: Connection, *, is_lost: bool) -> None:
        """Keep the counts of a connection that is dropped."""
        self.lost += is_lost
        self._uses += connection.uses
        self._held_s += connection.held_s
        self._hold_counts = _added(self._hold_counts, connection.hold_counts)

    def tell(self, connections: Iterable[Connection], *, idle: int) -> None:
        """Bring Prometheus up to date."""
        uses, held_s, hold_counts, lent = self._sums(connections, idle=idle)
        metrics.db_pool_in_use.set(lent)
        # Who was queued has been observed one by one; all others did not wait.
        instant = uses - self.queued
        first = [max(0, instant - self._told_instant)]
        _add(metrics.db_pool_wait_seconds, first, 0.0)
        self._told_instant = max(instant, self._told_instant)
        news = [now - told for now, told in zip(hold_counts, self._told_hold_counts, strict=True)]
        _add(metrics.db_pool_hold_seconds, news, held_s - self._told_held_s)
        self._told_held_s, self._told_hold_counts = held_s, hold_counts

    def statistics(
        self, connections: Sequence[Connection], *, idle: int, waiting: int
    ) -> PoolStatistics:
        uses, held_s, _, lent = self._sums(connections, idle=idle)
        return PoolStatistics(
            pool_max=self._size,
            pool_min=self._size,
            pool_size=len(connections),
            active=lent,
            available=idle,
            requests_waiting=waiting,
            requests_num=uses + lent,
            requests_queued=self.queued,
            requests_wait_ms=self.wait_s * 1000,
            requests_timeouts=self.timeouts,
            requests_refused=self.refusals,
            requests_errors=self.errors,
            usage_ms=held_s * 1000,
            returns_bad=self.returns_bad,
            connections_num=self.opened,
            connections_ms=self.opened_s * 1000,
            connections_errors=self.connect_errors,
            connections_lost=self.lost,
        )

    def _sums(
        self, connections: Iterable[Connection], *, idle: int
    ) -> tuple[int, float, list[int], int]:
        uses, held_s, hold_counts, living = self._uses, self._held_s, self._hold_counts, 0
        for connection in connections:
            living += 1
            uses += connection.uses
            held_s += connection.held_s
            hold_counts = _added(hold_counts, connection.hold_counts)
        return uses, held_s, hold_counts, max(0, living - idle)


def _added(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _add(histogram: Histogram, counts: Sequence[int], sum_s: float) -> None:
    """Observe many at once: prometheus-client has no public way (pinned; a test holds it to this)."""
    for bucket, count in zip(histogram._buckets, counts, strict=False):
        if count:
            bucket.inc(count)
    histogram._sum.inc(sum_s)
