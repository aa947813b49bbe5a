"""Detects rows that may be older than the provider's books, after a restore or a failover.

An asynchronous failover, or a restore, loses the newest commits. A payment in the queue may then
have been charged, so none is sent from it before one whole sweep has compared the books. A claim
does not wait for this check: it compares the server that runs it with the one that was checked last
(`loss.LOSS`), so that no moment between a failover and the next check is trusted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2

from service.database.pool.pool import ConnectionPool, Statement
from service.observability.metrics import catalogue as metrics
from service.payments.charge.loss import GAP_S, SERVER, recovery_name
from service.payments.settling.sweep_progress import CLOCKS_DIFFER, run_name
from service.payments.settling.sweep_unread import UnreadStore
from service.providers.later import Feed
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

CHECKED_EVERY_S = 5.0
# A call in flight when the database was exchanged may charge until then: a sweep that began before
# proves nothing about it.
IN_FLIGHT_S = 15.0
# Database clocks are adjusted in small steps; a larger step backwards means older rows.
STEP_S = 1.0

# A restore into another cluster has another identifier; a promotion and a restore to a point in
# time begin another timeline.
_IDENTITY = Statement(
    "key_database_identity",
    f"""
    SELECT system_identifier::text || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
           {SERVER}
    FROM pg_control_system()
    """,
)
_READ = Statement(
    "key_read_recovery",
    """
    SELECT name, detail, extract(epoch FROM now() - last_run_at)::float8,
           extract(epoch FROM last_run_at)::float8
    FROM background_runs
    WHERE name = ANY(%(names)s::text[])
    """,
)
# Earlier payments without a check: these rows came from a backup, or from an older version.
_BEGIN = Statement(
    "key_begin_recovery",
    """
    INSERT INTO background_runs (name, last_run_at, detail)
    SELECT %(name)s::text,
           CASE WHEN EXISTS (
               SELECT 1 FROM payments
               WHERE created_at < now() - %(gap_s)s::float8 * interval '1 second')
           THEN now() - 2 * %(gap_s)s::float8 * interval '1 second' ELSE now() END,
           %(detail)s::jsonb
    ON CONFLICT (name) DO NOTHING
    RETURNING 1
    """,
)
# Only one of several reconcilers with the same result writes it: another's result is not undone.
_SAVE = Statement(
    "key_save_recovery",
    """
    UPDATE background_runs SET last_run_at = now(), detail = %(detail)s::jsonb,
        server = %(server)s::text
    WHERE name = %(name)s::text AND detail = %(before)s::jsonb
    RETURNING extract(epoch FROM last_run_at)::float8
    """,
)
# A pass that began before the loss proves nothing about it: it ends at its position, and the next one
# is due at once. Its fence prevents further writes of its reader.
_SWEEP_NOW = Statement(
    "key_sweep_now",
    """
    UPDATE background_runs SET last_run_at = NULL, leased_until = now(), fence = fence + 1,
        detail = detail - '{began,position,after,in_slice}'::text[]
    WHERE name = %(sweep)s::text OR starts_with(name, %(sweep)s::text || ' ')
    RETURNING 1
    """,
)
# A pass that ended although it was too old (another host's clock is slow): the next one follows.
_SWEEP_AGAIN = Statement(
    "key_sweep_again",
    """
    UPDATE background_runs SET last_run_at = NULL
    WHERE name = %(sweep)s::text AND last_run_at IS NOT NULL AND leased_until <= now()
    RETURNING 1
    """,
)


@dataclass(frozen=True, slots=True)
class _Server:
    """The database's own identity; None: the engine does not report it."""

    identity: str | None = None
    # Like `loss.SERVER`; a plain restart changes it too.
    running: str | None = None

    @property
    def table(self) -> str | None:
        """The number of the table of payments: it differs after a restore from a dump."""
        return self.running.rpartition("/")[2] if self.running else None


@dataclass(frozen=True, slots=True)
class _Kept:
    """A row of `background_runs`."""

    detail: Mapping[str, Any]
    age_s: float | None
    # By the database's clock.
    checked_at_s: float | None


@dataclass(frozen=True, slots=True)
class _RecoveryState:
    """The state stored in `background_runs`."""

    # None: the engine does not report it.
    identity: str | None
    # The time until which a call before the loss may have charged; None: no commits are missing.
    since: datetime | None
    # The oldest commit that may be lost; None: not known.
    lost_from: datetime | None = None
    table: str | None = None

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> _RecoveryState:
        return cls(
            detail.get("database"),
            _moment(detail.get("since")),
            _moment(detail.get("from")),
            detail.get("table"),
        )

    @property
    def detail(self) -> str:
        return json.dumps(
            {
                "database": self.identity,
                "since": self.since.isoformat() if self.since else None,
                "from": self.lost_from.isoformat() if self.lost_from else None,
                "table": self.table,
            }
        )


class Recovery:
    """Detects lost commits, and the end of a whole sweep since then. One for each reconciler process."""

    def __init__(
        self,
        pool: ConnectionPool,
        provider: str,
        *,
        gap_s: float = GAP_S,
        in_flight_s: float = IN_FLIGHT_S,
    ) -> None:
        self._pool = pool
        # The list of charges; its checkpoint is the time up to which the provider's books were compared.
        self._sweep = run_name(provider, Feed.CHARGES)
        # One for each provider, because each one's books have a separate sweep.
        self._name = recovery_name(provider)
        self._unread = UnreadStore(pool, provider)
        self._gap_s = gap_s
        self._in_flight_s = in_flight_s
        self._tells_identity = True
        # Our rows may be old until the first check.
        self._is_recovering = True
        # The newest check that this process has seen: a row with an older one was rolled back.
        self._seen_s: float | None = None

    def is_recovering(self) -> bool:
        """Whether the queue waits, by the last check; cheap."""
        return self._is_recovering

    def check(self, deadline: Deadline) -> None:
        """Compare the database with its last stored state; raises Busy, which keeps the last result."""
        server = self._server(deadline)
        kept = self._read(deadline)
        is_first = self._name not in kept
        if is_first:
            first = {"name": self._name, "detail": _RecoveryState(server.identity, None).detail}
            self._pool.run(_BEGIN, first | {"gap_s": self._gap_s}, deadline)
            kept = self._read(deadline)
        own = kept[self._name]
        swept_to = kept[self._sweep].detail.get("swept_to") if self._sweep in kept else None
        before = _RecoveryState.of(own.detail)
        if before.since is not None and self._unread.counts(deadline)[1]:
            # An unread object could be any lost charge: the books count as not compared.
            swept_to = None
        loss = self._loss(before, server, own, is_first=is_first)
        after = self._next(before, server, loss, swept_to)
        saved = self._pool.run(
            _SAVE,
            {
                "name": self._name,
                "detail": after.detail,
                "server": server.running,
                "before": json.dumps(own.detail),
            },
            deadline,
        )
        if not saved:
            return  # Another was quicker: the next check reads what it wrote.
        self._seen_s = saved[0][0]
        if after.since is not None and after.since != before.since:
            self._pool.run(_SWEEP_NOW, {"sweep": self._sweep}, deadline)
        elif after.since is not None:
            self._pool.run(_SWEEP_AGAIN, {"sweep": self._sweep}, deadline)
        self._show(after)

    def _read(self, deadline: Deadline) -> dict[str, _Kept]:
        rows = self._pool.run(_READ, {"names": [self._name, self._sweep]}, deadline)
        return {name: _Kept(*rest) for name, *rest in rows}

    def _loss(
        self, before: _RecoveryState, server: _Server, own: _Kept, *, is_first: bool
    ) -> tuple[datetime | None] | None:
        """Whether commits were lost, and since when; None: no sign of a loss."""
        is_other = _differ(server.identity, before.identity) or _differ(server.table, before.table)
        is_rolled_back = self._seen_s is not None and (
            is_first or (own.checked_at_s or 0.0) < self._seen_s - STEP_S
        )
        age_s = own.age_s or 0.0
        if not is_other and not is_rolled_back and age_s <= self._gap_s:
            return None
        log.error(
            "recovery.began",
            extra={
                "is_other_database": is_other,
                "is_rolled_back": is_rolled_back,
                "unchecked_s": round(age_s),
            },
        )
        # Rows committed before the last check are present, because that check is.
        return (None if is_first else datetime.now(UTC) - timedelta(seconds=age_s),)

    def _next(
        self,
        before: _RecoveryState,
        server: _Server,
        loss: tuple[datetime | None] | None,
        swept_to: str | None,
    ) -> _RecoveryState:
        now = datetime.now(UTC)
        known = _RecoveryState(
            server.identity or before.identity, None, table=server.table or before.table
        )
        if loss is not None:
            lost_from = loss[0]
            if before.since is not None and lost_from is not None:
                # A second loss before the first one was compared.
                lost_from = min(lost_from, before.lost_from) if before.lost_from else None
            until = now + timedelta(seconds=self._in_flight_s)
            return replace(known, since=until, lost_from=lost_from)
        if before.since is None:
            return known
        waiting = replace(known, since=before.since, lost_from=before.lost_from)
        # A time from a clock that was ahead is neither a start of a wait nor a proof.
        latest = now + CLOCKS_DIFFER
        if before.since > latest:
            return replace(waiting, since=now)
        swept = _moment(swept_to)
        if swept is None or not before.since <= swept <= latest:
            return waiting
        log.warning("recovery.ended", extra={"since": before.since.isoformat()})
        return known

    def _server(self, deadline: Deadline) -> _Server:
        if not self._tells_identity:
            return _Server()
        try:
            return _Server(*self._pool.run(_IDENTITY, {}, deadline)[0])
        except psycopg2.Error as error:
            # Not every engine has or grants these functions: the gap between checks must show it.
            log.warning("recovery.no_identity", extra={"sqlstate": error.pgcode})
            self._tells_identity = False
            return _Server()

    def _show(self, state: _RecoveryState) -> None:
        self._is_recovering = state.since is not None
        metrics.recovering.set(int(self._is_recovering))


def _differ(one: str | None, other: str | None) -> bool:
    """Whether both are known and differ."""
    return one is not None and other is not None and one != other


def _moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None
