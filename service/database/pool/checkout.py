"""One connection, checked out for one `with` block: in autocommit, or as one transaction."""

from __future__ import annotations

from sys import _getframe
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Self

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_INERROR

from service.database.pool.connection import Connection
from service.database.pool.statements import (
    LOST_STATEMENT,
    Params,
    Row,
    Statement,
    count_error,
    execute,
    is_collision,
    is_out_of_step,
    is_sign_of_failover,
    is_stale_plan,
    statement_duration,
    translate_error,
)
from service.errors import DatabaseUnavailable
from service.resilience.deadline import Deadline

if TYPE_CHECKING:
    from service.database.pool.pool import ConnectionPool

# A ROLLBACK that takes longer is not worth the wait: losing the connection rolls back as well.
ROLLBACK_S = 0.25
# A second try resolves most collisions; the third is a reserve.
TRIES = 3


class Checkout:
    """A connection in autocommit mode: each statement is a separate transaction."""

    __slots__ = ("_deadline", "_pool", "connection")

    connection: Connection
    _tries = TRIES

    def __init__(self, pool: ConnectionPool, deadline: Deadline) -> None:
        self._pool = pool
        self._deadline = deadline

    def __enter__(self) -> Self:
        self.connection = self._pool.take(self._deadline, _getframe(1))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connection = self.connection
        # A caller that keeps the checkout must not affect the next holder's statements.
        del self.connection
        self._pool.release(connection)

    @property
    def wait_s(self) -> float:
        """Seconds spent in the queue for the connection; valid within the block only."""
        return self.connection.wait_s

    def run(self, statement: Statement, params: Params = ()) -> list[Row]:
        """All rows of the statement; DatabaseUnavailable at the deadline, whatever the peer does.

        A statement that collided with another one did nothing and is repeated, but not within a
        transaction. IntegrityError and errors in the SQL pass as psycopg2 raised them. When the
        connection is lost, it is unknown whether the statement was executed.
        """
        for tries_left in reversed(range(self._tries)):
            self._deadline.require()
            try:
                return self._run(
                    statement, params, self._deadline, prepared=self.connection.may_prepare
                )
            except DatabaseUnavailable as error:
                if not tries_left or not is_collision(error.__cause__):
                    raise
                # The pause is random, so that the same statements do not collide again.
                sleep(min(self._deadline.remaining_s(), 0.005 * (TRIES - tries_left)))
        raise AssertionError("the last try returns or raises")

    def _run(
        self, statement: Statement, params: Params, deadline: Deadline, *, prepared: bool
    ) -> list[Row]:
        connection = self.connection
        started_s = monotonic()
        has_timed_out = False
        try:
            with self._pool.watchdog.guard(connection.fileno(), deadline) as watch:
                try:
                    return execute(connection, statement, params, prepared=prepared)
                finally:
                    has_timed_out = watch.fired
        except psycopg2.Error as error:
            raised = self._failed(error, has_timed_out=has_timed_out)
            if raised is error:
                raise
            raise raised from error
        finally:
            # An answer at the moment of the deadline is valid, but the connection is lost.
            self.connection.is_broken |= has_timed_out
            statement_duration(statement.name).observe(monotonic() - started_s)

    def _failed(self, error: psycopg2.Error, *, has_timed_out: bool) -> Exception:
        """Record the state of the connection after this error, and translate the error."""
        is_closed = bool(self.connection.closed) or is_out_of_step(error)
        is_stale = is_stale_plan(error)
        if error.pgcode in LOST_STATEMENT:
            self._pool.prepare_no_more()
        self.connection.is_broken |= is_closed or has_timed_out
        count_error(error, is_closed=is_closed, has_timed_out=has_timed_out)
        self._pool.note_error(has_timed_out=has_timed_out)
        if not has_timed_out and (is_stale or is_sign_of_failover(error, is_closed=is_closed)):
            self._pool.evict(self.connection.generation, error.pgcode or "closed")
        return translate_error(
            error, is_closed=is_closed, has_timed_out=has_timed_out, is_stale=is_stale
        )


_BEGIN, _COMMIT = Statement("begin", "BEGIN"), Statement("commit", "COMMIT")
_ROLLBACK = Statement("rollback", "ROLLBACK")


class Transaction(Checkout):
    """A checkout whose block is one transaction; no state outlives it (use SET LOCAL only).

    An error in the block is raised unchanged, never hidden by the result of the ROLLBACK. A COMMIT
    without an answer is DatabaseUnavailable, and it is unknown whether the server executed it.
    """

    __slots__ = ()
    # A serialization failure aborts the transaction; only the caller can retry it.
    _tries = 1

    def __enter__(self) -> Self:
        self._deadline.require()
        self.connection = self._pool.take(self._deadline, _getframe(1))
        try:
            self._run(_BEGIN, (), self._deadline, prepared=False)
        except BaseException:
            super().__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._commit()
            else:
                self._roll_back()
        finally:
            super().__exit__(kind, error, trace)

    def _commit(self) -> None:
        if self.connection.get_transaction_status() == TRANSACTION_STATUS_INERROR:
            # PostgreSQL answers COMMIT with a silent ROLLBACK here.
            self._roll_back()
            raise psycopg2.errors.InFailedSqlTransaction(
                "A statement of the transaction failed and its error was swallowed."
            )
        self._run(_COMMIT, (), self._deadline, prepared=False)

    def _roll_back(self) -> None:
        if self.connection.is_broken or self.connection.closed:
            return
        try:
            # A separate deadline: the caller's may be the reason why the block ended.
            self._run(_ROLLBACK, (), Deadline.after(ROLLBACK_S), prepared=False)
        except Exception:  # noqa: BLE001 - the block's own error is what the caller must see.
            self.connection.is_broken = True
