"""Loses the newest commits of the drill's own tenant, as a failover to a lagging standby would.

Only the embedded database of a local run is changed: elsewhere `LocalDatabase.is_ours` is False.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.database.address import as_role
from service.database.direct import cursor_to
from service.errors import Busy
from service.lab.drills.processes import children_of
from service.lab.drills.store import DrillStore
from service.payments.merchants import DRILL_MERCHANT_ID
from service.resilience.deadline import Deadline

ANSWER_TIMEOUT_S = 1.0
# The owner of the embedded schema; peer authentication admits only this user under that role.
OWNER = "holdfast_owner"

# Back to the state before the provider call: only the claim remains, with an expired lease.
_TO_THE_CLAIM = (
    """
    DELETE FROM events
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(ids)s::uuid[]) AND type <> 'payment.accepted'
    """,
    """
    UPDATE payments SET status = 'accepted', provider_ref = NULL, amount_captured = 0,
        attempts = '[]', sent_at = NULL, promised = false, leased = true, due_at = now()
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(ids)s::uuid[]) RETURNING 1
    """,
)
# Back to the state before the claim of the refund, capture or void.
_MOVEMENTS = (
    """
    DELETE FROM idempotency_keys
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(ids)s::uuid[])
      AND movement_id IS NOT NULL
    """,
    """
    DELETE FROM movements
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(ids)s::uuid[])
    """,
    """
    UPDATE payments SET amount_refunded = 0, amount_refunding = 0, amount_settling = 0,
        status = CASE WHEN capture_method = 'manual' THEN 'requires_capture' ELSE status END,
        amount_captured = CASE WHEN capture_method = 'manual' THEN 0 ELSE amount_captured END
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(ids)s::uuid[]) RETURNING 1
    """,
)
_EVENTS_OF_MOVEMENTS = """
    DELETE FROM events e USING payments p
    WHERE p.merchant_id = %(merchant_id)s::uuid AND p.payment_id = ANY(%(ids)s::uuid[])
      AND e.merchant_id = p.merchant_id AND e.payment_id = p.payment_id
      AND (e.type LIKE 'refund.%%' OR e.type LIKE 'capture.%%'
           OR p.capture_method = 'manual' AND e.type = 'payment.succeeded')
"""
# Back to the state before the payment's claim: no row remains.
_ALL = (
    """
    DELETE FROM events
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(ids)s::uuid[])
    """,
    """
    DELETE FROM idempotency_keys
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(ids)s::uuid[])
    """,
    """
    DELETE FROM payments
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(ids)s::uuid[]) RETURNING 1
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Ids of payments, grouped by the part of each that is lost."""

    all_of_it: Sequence[str] = ()
    after_the_claim: Sequence[str] = ()
    movements: Sequence[str] = ()


class LocalDatabase:
    """The embedded PostgreSQL of a local run, as its owner."""

    def __init__(self, store: DrillStore, home: Path) -> None:
        self._store = store
        self._home = home

    def is_ours(self) -> bool:
        """Whether the database that serves us is the one that this local run started."""
        try:
            postmaster = int(self._run_file()["pids"]["postgres"])
            pid = self._store.backend_pid(Deadline.after(ANSWER_TIMEOUT_S))
        except (OSError, ValueError, KeyError, TypeError, Busy):
            return False
        return pid in children_of(postmaster)

    def lose(self, losses: Losses) -> int:
        """Set rows back in one transaction; returns the number of payments. Raises Unreachable."""
        plan = (
            (losses.all_of_it, _ALL),
            (losses.after_the_claim, _TO_THE_CLAIM),
            (losses.movements, (_EVENTS_OF_MOVEMENTS, *_MOVEMENTS)),
        )
        touched = 0
        with cursor_to(as_role(self._run_file()["database_url"], OWNER)) as cursor:
            cursor.execute("BEGIN")
            for ids, statements in plan:
                named = {"merchant_id": str(DRILL_MERCHANT_ID), "ids": list(ids)}
                for statement in statements:
                    cursor.execute(statement, named)
                touched += cursor.rowcount
            cursor.execute("COMMIT")
        return touched

    def _run_file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._home / "run.json").read_text())
        return found
