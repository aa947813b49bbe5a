"""The connection pool of one process: first in, first out, and every wait has an end.

psycopg2's ThreadedConnectionPool, without its gaps. A caller that finds no idle connection waits in
a queue, until the pool's own limit or the caller's deadline. One thread (`refill.py`) opens and
closes connections, never a caller and never under the lock. The path of a free connection
takes no lock at all: `deque` is atomic, and what is counted is counted on the connection itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from sys import _getframe
from time import monotonic
from types import FrameType
from typing import Any

import psycopg2
import psycopg2.pool
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from service.database.pool import refusals
from service.database.pool.checkout import Checkout, Transaction
from service.database.pool.connection import FRESH_S, IDLE_CHECK_S, Connection, complete_dsn
from service.database.pool.figures import Figures, PoolStatistics
from service.database.pool.queue import Line, Waiter
from service.database.pool.refill import Refill
from service.database.pool.statements import Params, Row, Statement, is_stale_plan
from service.errors import (
    Busy,
    DatabaseUnavailable,
    DeadlineExceeded,
    PoolRefused,
    PoolTimeout,
)
from service.observability.metrics import catalogue as metrics
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog

__all__ = ["Checkout", "ConnectionPool", "PoolStatistics", "Statement", "Transaction"]

log = logging.getLogger(__name__)

# For psycopg2's own method names, which take no deadline: only the pool's limit applies.
_FOREVER = Deadline(float("inf"))


class ConnectionPool(psycopg2.pool.ThreadedConnectionPool):
    """At most `size` connections, all kept open. Create it after the fork, close it at the end.

    Its creation never fails: while the database is away, callers get DatabaseUnavailable at once.
    """

    # Its type stub has no lock.
    _lock: Any

    def __init__(
        self,
        dsn: str,
        *,
        size: int,
        wait_s: float,
        max_waiters: int,
        watchdog: Watchdog,
        # PREPARE each statement once a connection; None: on each connection without a pooler.
        prepared: bool | None = False,
        lifetime_s: float = 1800.0,
        # Above the budget of a whole request: a connection that is held for longer is a leak.
        leak_after_s: float = 10.0,
    ) -> None:
        # psycopg2 opens none: it would connect in this constructor, and raise.
        super().__init__(0, size)
        # Equal bounds: an open connection is kept.
        self.minconn = size
        self.prepared = prepared
        self.watchdog = watchdog
        self._wait_s = wait_s
        self._max_waiters = max_waiters
        self._idle: deque[Connection] = deque()
        self._line = Line()
        # Read on every checkout: the truth of a deque costs a fifth of a method call.
        self._waiters = self._line.waiters
        self._open: dict[int, Connection] = {}
        # Counts failovers: a connection of an earlier generation is closed instead of checked out.
        self.generation = 1
        # A connection that is idle since before this moment is tested before its checkout.
        self._suspect_before_s = 0.0
        # Why no connection can be opened; None while nothing is known to be wrong.
        self._connect_error: psycopg2.Error | None = None
        self._figures = Figures(size=size)
        self._holds = self._figures.holds
        self._refill = Refill(
            self, complete_dsn(dsn), lifetime_s=lifetime_s, leak_after_s=leak_after_s
        )
        self._refill.start()

    # --- For callers --------------------------------------------------------------------------

    def checkout(self, deadline: Deadline) -> Checkout:
        """`with pool.checkout(deadline) as checkout:` holds one connection for the block.

        Raises PoolTimeout, PoolRefused or DatabaseUnavailable; never waits past the deadline.
        """
        return Checkout(self, deadline)

    def transaction(self, deadline: Deadline) -> Transaction:
        """As `checkout`, with BEGIN before the block and COMMIT after, ROLLBACK if it raises."""
        return Transaction(self, deadline)

    def run(self, statement: Statement, params: Params, deadline: Deadline) -> list[Row]:
        """One statement as a separate transaction."""
        try:
            with Checkout(self, deadline) as checkout:
                return checkout.run(statement, params)
        except DatabaseUnavailable as error:
            if not is_stale_plan(error.__cause__):
                raise
        # The connections with the old plan are closed: a new connection prepares again.
        with Checkout(self, deadline) as checkout:
            return checkout.run(statement, params)

    @property
    def size(self) -> int:
        """The maximum number of connections."""
        return self.maxconn

    @property
    def in_use(self) -> int:
        """Connections that are checked out now."""
        return max(0, len(self._open) - len(self._idle))

    @property
    def waiting(self) -> int:
        """Callers that are queued now."""
        return len(self._line)

    def statistics(self) -> PoolStatistics:
        """The figures that HikariCP and psycopg_pool report."""
        with self._lock:
            return self._figures.statistics(
                opened=len(self._open), idle=len(self._idle), waiting=len(self._line)
            )

    def close(self) -> None:
        """Close idle connections and refuse waiters; the others are closed at their release."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._line.refuse_all(refusals.stopping)
        self._drop_idle("closed")
        self._refill.stop()

    # --- psycopg2's own method names ------------------------------------------------------------

    def getconn(self, key: Any = None) -> Connection:
        """Check out a connection, within the pool's limit; release it with `putconn`."""
        return self.take(_FOREVER, _getframe(1))

    def putconn(self, conn: Any = None, key: Any = None, close: bool = False) -> None:
        """Release a connection; one that is broken or in a transaction is replaced."""
        conn.is_broken |= close
        self.release(conn)

    def closeall(self) -> None:
        """The same as `close`."""
        self.close()

    # --- Checkout and release (for Checkout) ----------------------------------------------------

    def take(self, deadline: Deadline, frame: FrameType) -> Connection:
        """A good connection; `frame` is its taker's, for the report of leaks."""
        try:
            # Queued callers have priority over new ones.
            connection = None if self._waiters else self._idle.pop()
        except IndexError:
            connection = None
        now_s = monotonic()
        if connection is None or now_s > connection.fresh_until_s:
            connection = self._take_slowly(connection, deadline, now_s)
        else:
            connection.wait_s = 0.0
            connection.taken_at_s = now_s
        connection.taken_code = frame.f_code
        connection.taken_offset = frame.f_lasti
        return connection

    def _take_slowly(
        self, connection: Connection | None, deadline: Deadline, started_s: float
    ) -> Connection:
        """Test idle connections, or wait in the queue, until one is good."""
        until = Deadline(min(deadline.at_s, started_s + self._wait_s))
        waiter: Waiter | None = None
        while connection is None or not self._is_good(connection, until):
            # A caller that received a dead connection stays first in the queue.
            at_head = waiter is not None
            waiter = waiter or Waiter()
            connection = self._wait_in_queue(waiter, until, started_s, at_head=at_head)
        connection.taken_at_s = monotonic()
        connection.wait_s = connection.taken_at_s - started_s if waiter else 0.0
        if waiter:
            with self._lock:
                self._figures.waited(connection.wait_s)
        return connection

    def _wait_in_queue(
        self, waiter: Waiter, until: Deadline, started_s: float, *, at_head: bool
    ) -> Connection:
        with self._lock:
            refusal = self._refusal(until, at_head=at_head)
            if refusal is None:
                self._line.join(waiter, at_head=at_head)
        if refusal is not None:
            raise self._refused(refusal)
        # A connection that was released before this caller joined the queue is served here.
        self._match()
        if not waiter.wait(until):
            with self._lock:
                has_left = self._line.leave(waiter)
            if has_left:
                raise self._timed_out(monotonic() - started_s)
        if waiter.connection is None:
            raise waiter.error or AssertionError("a waiter is served or refused")
        return waiter.connection

    def _refusal(self, until: Deadline, *, at_head: bool) -> str | None:
        """The reason why waiting cannot help; needs the pool's lock."""
        if self.closed:
            return "closed"
        if self._connect_error is not None and not self._open:
            return "unreachable"
        if not at_head and until.expired:
            return "deadline"
        # Each connection that is being opened will serve one more waiter.
        if not at_head and len(self._line) >= self._max_waiters + self.missing():
            return "waiters_full"
        return None

    def _refused(self, reason: str) -> Busy:
        with self._lock:
            self._figures.refusals += 1
        metrics.db_pool_refusals_total.labels(reason).inc()
        if reason == "closed":
            return refusals.stopping()
        if reason == "unreachable":
            return refusals.unreachable(self._connect_error)
        if reason == "deadline":
            return DeadlineExceeded("The time for this request was spent before work began.")
        return self._exhausted(PoolRefused, reason)

    def _timed_out(self, wait_s: float) -> Busy:
        with self._lock:
            self._figures.timed_out(wait_s)
        metrics.db_pool_timeouts_total.inc()
        return self._exhausted(PoolTimeout, "timeout")

    def _exhausted(self, kind: type[PoolTimeout], reason: str) -> PoolTimeout:
        return refusals.exhausted(
            kind, reason, size=self.size, in_use=self.in_use, waiting=self.waiting
        )

    def _is_good(self, connection: Connection, until: Deadline) -> bool:
        """Test a connection that was idle: the cheap signs first, then one round trip."""
        now_s = monotonic()
        if now_s <= connection.fresh_until_s:
            return True
        if connection.generation != self.generation:
            return self._discard(connection, "evicted")
        if now_s > connection.expires_at_s:
            return self._discard(connection, "lifetime")
        if connection.has_hung_up:
            self.evict(connection.generation, "hung_up")
            return self._discard(connection, "broken")
        idle_since_s = connection.idle_since_s
        if now_s - idle_since_s <= IDLE_CHECK_S and idle_since_s > self._suspect_before_s:
            return True
        return self._answers(connection, until)

    def _answers(self, connection: Connection, until: Deadline) -> bool:
        try:
            with self.watchdog.guard(connection.fileno(), until) as watch:
                connection.ask()
            is_good = not watch.fired
        except psycopg2.Error:
            is_good = False
        if is_good:
            return True
        self.evict(connection.generation, "no_answer")
        self._discard(connection, "broken")
        if until.expired:
            raise DatabaseUnavailable("The database did not answer in time.")
        return False

    def release(self, connection: Connection) -> None:
        """Release it to the next caller; replace it if broken, in a transaction or too old."""
        now_s = monotonic()
        connection.taken_code = None
        self._holds.append(now_s - connection.taken_at_s)
        if (
            connection.is_broken
            or connection.generation != self.generation
            or connection.get_transaction_status()  # 0 is idle.
            or now_s > connection.expires_at_s
        ):
            self._release_bad(connection)
            return
        connection.idle_since_s = now_s
        connection.fresh_until_s = now_s + FRESH_S
        self._idle.append(connection)
        # After the append: in the other order a caller that queues in between would be missed.
        if self._waiters or self.closed:
            self._match()

    def _release_bad(self, connection: Connection) -> None:
        is_reusable = connection.get_transaction_status() == TRANSACTION_STATUS_IDLE
        if self.closed:
            reason = "closed"
        elif connection.is_broken or not is_reusable:
            reason = "broken"
            with self._lock:
                self._figures.returns_bad += 1
        else:
            reason = "evicted" if connection.generation != self.generation else "lifetime"
        self._discard(connection, reason)

    def _match(self) -> None:
        """Give idle connections to the waiters, in order."""
        if self.closed:
            self._drop_idle("closed")
            return
        with self._lock:
            while self._line:
                try:
                    self._line.serve(self._idle.pop())
                except IndexError:
                    return

    # --- Opening and closing (for Refill, and for callers that find a dead connection) ----------

    def opened(self) -> list[Connection]:
        """All open connections, active and idle."""
        with self._lock:
            return list(self._open.values())

    def missing(self) -> int:
        """How many more may be opened."""
        return 0 if self.closed else self.maxconn - len(self._open)

    def admit(self, connection: Connection, *, took_s: float) -> None:
        """Add a connection that was just opened, for the first waiter."""
        with self._lock:
            self._connect_error = None
            self._figures.opened += 1
            self._figures.opened_s += took_s
            self._open[id(connection)] = connection
        metrics.db_pool_connections_opened_total.inc()
        if connection.generation != self.generation:
            self._discard(connection, "evicted")
            return
        self._idle.append(connection)
        self._match()

    def cannot_connect(self, error: psycopg2.Error) -> None:
        """Refuse the waiters at once when no connection is left that could serve them."""
        with self._lock:
            self._connect_error = error
            self._figures.connect_errors += 1
            if not self._open:
                self._line.refuse_all(lambda: refusals.unreachable(error))
        metrics.db_errors_total.labels("connection").inc()

    def note_error(self, *, has_timed_out: bool) -> None:
        """Count a failed statement; one without an answer makes the idle connections suspect."""
        with self._lock:
            self._figures.errors += 1
        if has_timed_out:
            self._suspect_before_s = monotonic()

    def prepare_no_more(self) -> None:
        """A prepared statement was lost: a pooler that looks like a server is between."""
        if self.prepared is None:
            self.prepared = False
            log.warning("db.prepared_off")

    def evict(self, generation: int, reason: str) -> None:
        """Drop all connections of this generation: idle ones now, the others at release."""
        with self._lock:
            if generation != self.generation or self.closed:
                return
            self.generation += 1
        log.warning("db.connections_evicted", extra={"reason": reason})
        self._drop_idle("evicted")

    def retire_expired(self, now_s: float) -> None:
        """Drop idle connections that are past their lifetime."""
        for connection in self.opened():
            if now_s > connection.expires_at_s:
                # Not idle any more: it is checked out, and tested at its release.
                with contextlib.suppress(ValueError, IndexError):
                    self._idle.remove(connection)
                    self._discard(connection, "lifetime")

    def report(self) -> None:
        """Update the pool's gauges and histograms."""
        with self._lock:
            self._figures.add_up()
        metrics.db_pool_in_use.set(self.in_use)

    def _drop_idle(self, reason: str) -> None:
        # Not `clear()`: it would lose what another thread appends now, and leak its slot.
        with contextlib.suppress(IndexError):
            while True:
                self._discard(self._idle.pop(), reason)

    def _discard(self, connection: Connection, reason: str) -> bool:
        """Free the slot; Refill closes and replaces the connection. Returns False: it is not good."""
        with self._lock:
            if self._open.pop(id(connection), None) is None:
                return False
            self._figures.lost += reason == "broken"
        metrics.db_pool_connections_discarded_total.labels(reason).inc()
        self._refill.replace(connection)
        return False
