"""Whether our rows may be older than the provider's books: after a restore or a failover.

An asynchronous failover, or a restore, takes the newest commits. What then waits in the queue may
have been charged, so nothing is sent from it before one whole sweep has compared the books.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg2

from service.database.pool.pool import ConnectionPool, Statement
from service.observability.metrics import catalogue as metrics
from service.payments.settling.sweep_progress import CLOCKS_DIFFER, run_name
from service.payments.settling.sweep_unread import UnreadStore
from service.providers.later import Feed
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

CHECKED_EVERY_S = 5.0
# Every running reconciler writes its check; a database in which none did for so long was restored,
# or ours was away for three sweeps: either way the books are compared before the queue goes on.
GAP_S = 900.0

# A restore into another cluster has another identifier; a promotion and a restore to a point in
# time begin another timeline.
_IDENTITY = Statement(
    "key_database_identity",
    """
    SELECT system_identifier::text || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
    FROM pg_control_system()
    """,
)
_READ = Statement(
    "key_read_recovery",
    """
    SELECT name, detail, extract(epoch FROM now() - last_run_at)::float8 FROM background_runs
    WHERE name = ANY(%(names)s::text[])
    """,
)
# Payments of before, and no check: these rows came from a backup, or from an older version.
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
# Of several reconcilers that saw the same, one writes it: what another has found is not undone.
_SAVE = Statement(
    "key_save_recovery",
    """
    UPDATE background_runs SET last_run_at = now(), detail = %(detail)s::jsonb
    WHERE name = %(name)s::text AND detail = %(before)s::jsonb
    RETURNING 1
    """,
)
# A pass that began before the loss proves nothing about it: it ends where it is, and the next one,
# which does, is due at once. Its fence keeps whoever reads for it from writing more.
_SWEEP_NOW = Statement(
    "key_sweep_now",
    """
    UPDATE background_runs SET last_run_at = NULL, leased_until = now(), fence = fence + 1,
        detail = detail - '{began,position,after,in_slice}'::text[]
    WHERE name = %(sweep)s::text OR starts_with(name, %(sweep)s::text || ' ')
    RETURNING 1
    """,
)
# A pass that ended although it was too old (another host's clock is behind): the next one follows.
_SWEEP_AGAIN = Statement(
    "key_sweep_again",
    """
    UPDATE background_runs SET last_run_at = NULL
    WHERE name = %(sweep)s::text AND last_run_at IS NOT NULL AND leased_until <= now()
    RETURNING 1
    """,
)


@dataclass(frozen=True, slots=True)
class _State:
    """What is kept in `background_runs`."""

    # None: the engine does not tell.
    identity: str | None
    # When lost commits were noticed; None: none are to be expected.
    since: datetime | None

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> _State:
        since = detail.get("since")
        return cls(detail.get("database"), datetime.fromisoformat(since) if since else None)

    @property
    def detail(self) -> str:
        since = self.since.isoformat() if self.since else None
        return json.dumps({"database": self.identity, "since": since})


class Recovery:
    """Notices lost commits, and that a whole sweep has ended since. For one reconciler process."""

    def __init__(self, pool: ConnectionPool, provider: str, *, gap_s: float = GAP_S) -> None:
        self._pool = pool
        # The charges' list; its checkpoint says up to when the provider's books were compared.
        self._sweep = run_name(provider, Feed.CHARGES)
        # Of each provider one, since each one's books are compared by a sweep of its own.
        self._name = f"recovery {provider}"
        self._unread = UnreadStore(pool, provider)
        self._gap_s = gap_s
        self._tells_identity = True
        # Until it is known that they are not, our rows may be old.
        self._is_recovering = True

    def is_recovering(self) -> bool:
        """Whether the queue waits; cheap, as of the last check."""
        return self._is_recovering

    def check(self, deadline: Deadline) -> None:
        """Compare the database with what it was; raises Busy, and then the last answer stands."""
        identity = self._identity(deadline)
        kept = self._read(deadline)
        if self._name not in kept:
            first = {"name": self._name, "detail": _State(identity, None).detail}
            self._pool.run(_BEGIN, first | {"gap_s": self._gap_s}, deadline)
            kept = self._read(deadline)
        detail, age_s = kept[self._name]
        swept_to = kept[self._sweep][0].get("swept_to") if self._sweep in kept else None
        before = _State.of(detail)
        if before.since is not None and self._unread.counts(deadline)[1]:
            # What could be any lost charge is unread: the books count as not compared.
            swept_to = None
        after = self._next(before, identity, age_s or 0.0, swept_to)
        params = {"name": self._name, "detail": after.detail, "before": json.dumps(detail)}
        if not self._pool.run(_SAVE, params, deadline):
            return  # Another was quicker: the next check reads what it wrote.
        if after.since is not None and after.since != before.since:
            self._pool.run(_SWEEP_NOW, {"sweep": self._sweep}, deadline)
        elif after.since is not None:
            self._pool.run(_SWEEP_AGAIN, {"sweep": self._sweep}, deadline)
        self._show(after)

    def _read(self, deadline: Deadline) -> dict[str, tuple[Mapping[str, Any], float | None]]:
        rows = self._pool.run(_READ, {"names": [self._name, self._sweep]}, deadline)
        return {name: (detail, age_s) for name, detail, age_s in rows}

    def _next(
        self, before: _State, identity: str | None, age_s: float, swept_to: str | None
    ) -> _State:
        is_other = None not in (identity, before.identity) and identity != before.identity
        known = identity or before.identity
        if is_other or age_s > self._gap_s:
            log.error(
                "recovery.began",
                extra={"is_other_database": is_other, "unchecked_s": round(age_s)},
            )
            return _State(known, datetime.now(UTC))
        if before.since is None:
            return _State(known, None)
        # A clock that was ahead wrote neither a moment to wait for nor a proof.
        latest = datetime.now(UTC) + CLOCKS_DIFFER
        if before.since > latest:
            return _State(known, datetime.now(UTC))
        swept = datetime.fromisoformat(swept_to) if swept_to else None
        if swept is None or not before.since <= swept <= latest:
            return _State(known, before.since)
        log.warning("recovery.ended", extra={"since": before.since.isoformat()})
        return _State(known, None)

    def _identity(self, deadline: Deadline) -> str | None:
        if not self._tells_identity:
            return None
        try:
            return str(self._pool.run(_IDENTITY, {}, deadline)[0][0])
        except psycopg2.Error as error:
            # Not every engine has these functions, or grants them: the gap must tell.
            log.warning("recovery.no_identity", extra={"sqlstate": error.pgcode})
            self._tells_identity = False
            return None

    def _show(self, state: _State) -> None:
        self._is_recovering = state.since is not None
        metrics.recovering.set(int(self._is_recovering))
