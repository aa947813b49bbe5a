"""Removes rows after their retention: bounded batches, by one process at a time.

Payments, captures, voids, refunds, orphans and the audit log are never removed; events leave as
monthly partitions (`python -m service retain`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.database.pool.pool import ConnectionPool, Statement
from service.database.pool.statements import Row
from service.observability.metrics import catalogue as metrics
from service.payments.settling.run_locks import RunLocks
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

EVERY_S = 60.0
# The size fits a statement into the role's 2 s, and allows 10,000 rows of each table a minute: more
# than 50 payments/s create.
AT_ONCE, BATCHES = 1000, 10
# A run ends within its round's deadline; a killed process holds the lease for this time.
LEASE_S = 30.0
NAME = "retention"

_INBOX = Statement(
    "retain_inbox",
    """
    DELETE FROM webhook_inbox WHERE (provider, event_id) IN (
        SELECT provider, event_id FROM webhook_inbox
        WHERE due_at IS NULL AND received_at < now() - %(days)s::integer * interval '1 day'
        ORDER BY received_at LIMIT %(limit)s::integer)
    RETURNING 1
    """,
)
# Deliveries given up, or waiting for a paused endpoint: GET /v1/events still has their events.
_OUTBOX = Statement(
    "retain_outbox",
    """
    DELETE FROM webhook_outbox WHERE (merchant_id, endpoint_id, event_id) IN (
        SELECT merchant_id, endpoint_id, event_id FROM webhook_outbox
        WHERE event_at < now() - %(days)s::integer * interval '1 day'
        ORDER BY event_at LIMIT %(limit)s::integer)
    RETURNING 1
    """,
)
# The audit log keeps the actors of runs; a run without an end is still in progress.
_DRILLS = Statement(
    "retain_drills",
    """
    DELETE FROM rehearsals WHERE rehearsal_id IN (
        SELECT rehearsal_id FROM rehearsals
        WHERE started_at < now() - %(days)s::integer * interval '1 day' AND ended_at IS NOT NULL
        ORDER BY started_at LIMIT %(limit)s::integer)
    RETURNING 1
    """,
)
# One page of the table in the key's order: an index by time would slow every payment.
_KEYS = Statement(
    "retain_keys",
    """
    WITH page AS (
        SELECT merchant_id, idempotency_key, payment_id, created_at FROM idempotency_keys
        WHERE (merchant_id, idempotency_key) > (%(merchant_id)s::uuid, %(after)s::text)
        ORDER BY merchant_id, idempotency_key LIMIT %(limit)s::integer
    ), removed AS (
        DELETE FROM idempotency_keys k USING page
        WHERE k.merchant_id = page.merchant_id AND k.idempotency_key = page.idempotency_key
          AND page.created_at < now() - %(days)s::integer * interval '1 day'
          AND EXISTS (SELECT 1 FROM payments p WHERE p.merchant_id = page.merchant_id
                      AND p.payment_id = page.payment_id AND p.status = ANY(%(ended)s::text[])
                      AND p.updated_at < now() - %(days)s::integer * interval '1 day')
          AND NOT EXISTS (SELECT 1 FROM movements m WHERE m.merchant_id = page.merchant_id
                          AND m.payment_id = page.payment_id
                          AND m.status NOT IN ('succeeded', 'declined'))
        RETURNING 1
    )
    SELECT merchant_id, idempotency_key, (SELECT count(*) FROM removed) FROM page
    ORDER BY merchant_id DESC, idempotency_key DESC LIMIT 1
    """,
)
ENDED = ("succeeded", "declined", "not_executed", "canceled", "expired")
_FIRST = {"merchant_id": "00000000-0000-0000-0000-000000000000", "after": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The retention of each kind of row in days; None: as long as the database."""

    inbox_days: int | None
    outbox_days: int | None
    drills_days: int | None
    keys_days: int | None


class Retention:
    """Removes old rows once a minute, for any number of processes that run it."""

    def __init__(self, pool: ConnectionPool, locks: RunLocks, kept: Kept) -> None:
        self._pool = pool
        self._locks = locks
        self._kept = kept

    def run_if_due(self, deadline: Deadline) -> None:
        """Remove one run's share of each table; the next run continues after it."""
        run = self._locks.lease_run(NAME, every_s=EVERY_S, lease_s=LEASE_S, deadline=deadline)
        if run is None:
            return
        for table, statement, days in (
            ("inbox", _INBOX, self._kept.inbox_days),
            ("outbox", _OUTBOX, self._kept.outbox_days),
            ("drills", _DRILLS, self._kept.drills_days),
        ):
            if days is not None:
                _count(table, self._remove(statement, days, deadline))
        position = self._remove_keys(run.detail, deadline)
        self._locks.end_run(run, position, deadline)

    def _remove(self, statement: Statement, days: int, deadline: Deadline) -> int:
        removed = 0
        for _ in range(BATCHES):
            rows = self._pool.run(statement, {"days": days, "limit": AT_ONCE}, deadline)
            removed += len(rows)
            if len(rows) < AT_ONCE:
                break
        return removed

    def _remove_keys(self, position: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        """The next position: after the last key read, or at the first one again."""
        at = {name: position.get(name, first) for name, first in _FIRST.items()}
        if self._kept.keys_days is None:
            return at
        for _ in range(BATCHES):
            values = {
                **at,
                "days": self._kept.keys_days,
                "limit": AT_ONCE,
                "ended": list(ENDED),
            }
            rows: list[Row] = self._pool.run(_KEYS, values, deadline)
            if not rows:
                return dict(_FIRST)
            ((merchant_id, key, removed),) = rows
            _count("keys", removed)
            at = {"merchant_id": str(merchant_id), "after": key}
        return at


def _count(table: str, removed: int) -> None:
    if removed:
        metrics.rows_removed_total.labels(table=table).inc(removed)
        log.info("retention.removed", extra={"table": table, "rows": removed})
