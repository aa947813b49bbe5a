"""The one thread that opens and closes a pool's connections and reports leaked ones."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2

from service.database.pool.connection import CONNECT_TIMEOUT_S, Connection, open_connection
from service.observability.metrics import catalogue as metrics
from service.resilience.deadline import Deadline

if TYPE_CHECKING:
    from service.database.pool.pool import ConnectionPool

log = logging.getLogger(__name__)

# Often enough for a current scrape, seldom enough to cost nothing.
TICK_S = 0.5
# A restarting server is tried again quickly: we delay the recovery by half a second at most.
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.05, 0.5
# Longer than a connect can take.
STOP_S = 3.0


class Refill:
    """One thread, so that each process sends a failed-over database one connect at a time.

    All other threads only request a replacement and never wait for input or output.
    """

    def __init__(
        self, pool: ConnectionPool, dsn: str, *, lifetime_s: float, leak_after_s: float
    ) -> None:
        self._pool = pool
        self._dsn = dsn
        self._lifetime_s = lifetime_s
        self._leak_after_s = leak_after_s
        self._to_close: deque[Connection] = deque()
        self._wanted = threading.Event()
        self._failures = 0
        self._not_before_s = 0.0
        self._thread = threading.Thread(target=self._run, name="pool-refill", daemon=True)

    def start(self) -> None:
        self._wanted.set()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the connections that still wait for it."""
        self._wanted.set()
        self._thread.join(STOP_S)
        self._close_dropped()
        self._pool.report()

    def replace(self, connection: Connection) -> None:
        """Close this one and open another; returns at once."""
        self._to_close.append(connection)
        self._wanted.set()
        if not self._thread.is_alive():
            self._close_dropped()

    def _run(self) -> None:
        while not self._pool.closed:
            self._wanted.wait(self._pause_s())
            self._wanted.clear()
            try:
                self._look_after()
            except Exception:
                # Without this thread the pool would never open a connection again.
                log.exception("db.refill_failed")

    def _look_after(self) -> None:
        # Closed first, opened then: never more than the maximum.
        self._close_dropped()
        now_s = monotonic()
        self._pool.retire_expired(now_s)
        if now_s >= self._not_before_s:
            self._open_missing()
        self._report_leaks(now_s)
        self._pool.report()

    def _pause_s(self) -> float:
        if not self._failures:
            return TICK_S
        return min(TICK_S, max(0.0, self._not_before_s - monotonic()))

    def _close_dropped(self) -> None:
        while self._to_close:
            self._to_close.popleft().close()

    def _open_missing(self) -> None:
        while self._pool.missing() > 0:
            self._close_dropped()
            # Read before the connect: a failover during it drops this connection with the others.
            generation, started_s = self._pool.generation, monotonic()
            try:
                connection = open_connection(self._dsn)
                may_prepare = self._may_prepare(connection)
            except psycopg2.Error as error:
                self._back_off(error)
                return
            if self._failures:
                log.info("db.reconnected", extra={"failed_attempts": self._failures})
                self._failures = 0
            connection.adopt(generation, self._lifetime_s, may_prepare=may_prepare)
            self._pool.admit(connection, took_s=monotonic() - started_s)

    def _may_prepare(self, connection: Connection) -> bool:
        """As the pool is told; else whether the connection is direct. Closes it when it fails."""
        if self._pool.prepared is not None:
            return self._pool.prepared
        try:
            until = Deadline.after(CONNECT_TIMEOUT_S)
            with self._pool.watchdog.guard(connection.fileno(), until) as watch:
                connection.autocommit = True
                is_direct = connection.is_direct
            if watch.fired:
                raise psycopg2.OperationalError("The new connection did not answer in time.")
        except psycopg2.Error:
            connection.close()
            raise
        return is_direct

    def _back_off(self, error: psycopg2.Error) -> None:
        self._failures += 1
        pause_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(self._failures - 1, 10))
        # Workers that lost the same server must not reconnect at the same moment.
        self._not_before_s = monotonic() + pause_s * random.uniform(0.7, 1.0)  # noqa: S311
        if self._failures == 1:
            log.error("db.connect_failed", extra={"error": str(error).strip()})
        self._pool.cannot_connect(error)

    def _report_leaks(self, now_s: float) -> None:
        for connection in self._pool.opened():
            held_s = now_s - connection.taken_at_s
            is_lent = connection.taken_code is not None
            if is_lent and held_s > self._leak_after_s and connection.is_leak_unreported:
                connection.is_leak_unreported = False
                metrics.db_pool_leaks_total.inc()
                log.error(
                    "db.connection_leaked",
                    extra={"taken_at": connection.taken_where, "held_s": round(held_s, 1)},
                )
