"""What waits for the comparison with the provider's books, in one sentence for people."""

from __future__ import annotations

from datetime import datetime

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.settling.sweep_progress import run_name
from service.payments.settling.sweep_unread import UnreadStore
from service.providers.later import Feed
from service.resilience.deadline import Deadline

# More queued payments than this are "over" it: the sentence needs no exact count.
COUNTED_MOST = 10_000

_STATE = Statement(
    "late_recovery_state",
    """
    SELECT (SELECT detail->>'since' FROM background_runs WHERE name = %(recovery)s::text),
           (SELECT detail->>'swept_to' FROM background_runs WHERE name = %(sweep)s::text),
           (SELECT count(*) FROM (
                SELECT 1 FROM payments WHERE status = 'accepted' LIMIT %(most)s::bigint) AS queued)
    """,
)


class SweepReport:
    """Reads how far a recovery is; for the health checks of the ops plane."""

    def __init__(self, pool: ConnectionPool, provider: str) -> None:
        self._pool = pool
        self._unread = UnreadStore(pool, provider)
        self._names = {
            "recovery": f"recovery {provider}",
            "sweep": run_name(provider, Feed.CHARGES),
        }

    def waiting(self, deadline: Deadline) -> str | None:
        """Since when the queue waits, how far the sweep is, and what waits; None: nothing does."""
        unread, holding = self._unread.counts(deadline)
        parameters = {**self._names, "most": COUNTED_MOST + 1}
        since, swept_to, queued = self._pool.run(_STATE, parameters, deadline)[0]
        if since is None:
            return f"{_objects(unread)} in the provider's lists cannot be read" if unread else None
        told = [
            f"the queue waits since {_minute(since)} because commits may have been lost",
            f"the provider's charges are compared up to {_minute(swept_to)}"
            if swept_to
            else "no part of the provider's charges is compared yet",
            _queued(queued),
        ]
        if holding:
            told.append(f"{_objects(holding)} must be read or released first")
        return "; ".join(told)


def _minute(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"


def _objects(count: int) -> str:
    return f"{count} object" + ("" if count == 1 else "s")


def _queued(count: int) -> str:
    if count > COUNTED_MOST:
        return f"over {COUNTED_MOST} payments wait"
    return f"{count} payment waits" if count == 1 else f"{count} payments wait"
