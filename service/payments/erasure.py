"""Removes personal data from a merchant's ended payments; amounts and history stay.

Runs with the owner's rights: the service's role can change neither events nor the audit log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from uuid import UUID

from service.database.pool.pool import Checkout, ConnectionPool, Statement
from service.ids import (
    payment_id_text,
)
from service.payments.audit import Actor, Entry, in_transaction, write
from service.payments.charge.model import (
    TERMINAL,
)
from service.resilience.deadline import Deadline

# Payments in a transaction: each has a few events, and all are locked for a moment.
AT_ONCE = 100
# Rows of one read without an index: payments of a customer.
PAGE = 10_000
# The time limits of one statement and of a batch; the whole run has none.
STEP_S = 60.0
# The fields that an event keeps: the result of the step, and the id of its refund or capture.
TECHNICAL = (
    "op",
    "outcome",
    "stage",
    "error",
    "ms",
    "pool_wait_ms",
    "breaker",
    "attempt",
    "by",
    "refund_id",
    "capture_id",
    "void_id",
    "endpoint_id",
    "failures",
)
_FIRST, _LAST = UUID(int=0), UUID(int=2**128 - 1)

Field = Literal["reference", "customer"]

_CAN_ERASE = Statement("erase_rights", "SELECT has_table_privilege('events', 'UPDATE')")
_PAGE_END = Statement(
    "erase_page",
    """
    SELECT payment_id FROM (
        SELECT payment_id FROM payments
        WHERE merchant_id = %(merchant_id)s::uuid AND payment_id > %(after)s::uuid
        ORDER BY payment_id LIMIT %(limit)s::integer
    ) AS page (payment_id)
    ORDER BY payment_id DESC LIMIT 1
    """,
)
_IS_OPEN = """
    p.status <> ALL(%(ended)s::text[]) OR EXISTS (
        SELECT 1 FROM movements m
        WHERE m.merchant_id = p.merchant_id AND m.payment_id = p.payment_id
          AND m.status NOT IN ('succeeded', 'declined'))
"""
_FIND = {
    name: Statement(
        f"erase_find_by_{name}",
        f"""
        SELECT p.payment_id, {_IS_OPEN} FROM payments p
        WHERE p.merchant_id = %(merchant_id)s::uuid AND p.{name} = %(value)s::text
          AND p.payment_id > %(after)s::uuid AND p.payment_id <= %(until)s::uuid
        ORDER BY p.payment_id LIMIT %(limit)s::integer
        """,
    )
    for name in ("reference", "customer")
}
_LOCK = Statement(
    "erase_lock",
    f"""
    SELECT p.payment_id FROM payments p
    WHERE p.merchant_id = %(merchant_id)s::uuid AND p.payment_id = ANY(%(payment_ids)s::uuid[])
      AND NOT ({_IS_OPEN})
    ORDER BY p.payment_id FOR UPDATE
    """,
)
_EVENTS = Statement(
    "erase_events",
    """
    UPDATE events e SET detail = (
        SELECT coalesce(jsonb_object_agg(d.key, d.value), '{}') FROM jsonb_each(e.detail) AS d
        WHERE d.key = ANY(%(technical)s::text[]))
    WHERE e.merchant_id = %(merchant_id)s::uuid AND e.payment_id = ANY(%(payment_ids)s::uuid[])
      AND e.detail - %(technical)s::text[] <> '{}'
    RETURNING 1
    """,
)
_INBOX = Statement(
    "erase_inbox",
    """
    DELETE FROM webhook_inbox
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(payment_ids)s::uuid[])
      AND due_at IS NULL
    RETURNING 1
    """,
)
# A refund's reason is the caller's own text.
_MOVEMENTS = Statement(
    "erase_movements",
    """
    UPDATE movements SET reason = NULL
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(payment_ids)s::uuid[])
      AND reason IS NOT NULL
    RETURNING 1
    """,
)
# `updated_at` changes, so that no reader keeps a body with an older ETag.
_PAYMENTS = Statement(
    "erase_payments",
    """
    UPDATE payments SET reference = NULL, customer = NULL, metadata = '{}', next_action = NULL,
        updated_at = now()
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(payment_ids)s::uuid[])
    RETURNING 1
    """,
)
# Matched as a whole text value: a short reference must not erase every report.
_MENTIONED = "position(to_jsonb(%(value)s::text)::text IN report::text) > 0"
_DRILLS_FOUND = Statement(
    "erase_drills_found", f"SELECT count(*) FROM rehearsals WHERE {_MENTIONED}"
)
_DRILLS = Statement(
    "erase_drills",
    f"UPDATE rehearsals SET report = '{{}}' WHERE {_MENTIONED} AND ended_at IS NOT NULL RETURNING 1",
)


@dataclass
class Erased:
    """The found and the erased rows; `is_open` payments keep their data."""

    payments: int = 0
    is_open: list[UUID] = field(default_factory=list)
    events: int = 0
    inbox: int = 0
    drills: int = 0


class Erasure:
    """Erases one customer or reference of one merchant, in transactions of AT_ONCE payments.

    Idempotent: the next run continues an interrupted one, because a payment loses its reference
    in the transaction that erases the rest.
    """

    def __init__(self, pool: ConnectionPool, merchant_id: UUID, by: Field, value: str) -> None:
        self._pool = pool
        self._merchant_id = merchant_id
        self._by: Field = by
        self._value = value

    def is_allowed(self) -> bool:
        """Whether this role may change events: the owner's may."""
        ((is_allowed,),) = self._pool.run(_CAN_ERASE, {}, Deadline.after(STEP_S))
        return bool(is_allowed)

    def look(self) -> Erased:
        """The rows that `erase` would find; changes nothing."""
        found = Erased()
        for batch in self._batches(found):
            found.payments += len(batch)
        ((found.drills,),) = self._pool.run(
            _DRILLS_FOUND, {"value": self._value}, Deadline.after(STEP_S)
        )
        return found

    def erase(self, actor: Actor) -> Erased:
        """Erase all ended payments; each transaction is in the audit log, without the value."""
        done = Erased()
        for batch in self._batches(done):
            counts = in_transaction(
                self._pool, partial(self._erase, ids=batch, actor=actor), Deadline.after(STEP_S)
            )
            done.payments += counts[0]
            done.events += counts[1]
            done.inbox += counts[2]
        done.drills = in_transaction(
            self._pool, partial(self._erase_drills, actor=actor), Deadline.after(STEP_S)
        )
        return done

    def _erase(
        self, transaction: Checkout, *, ids: Sequence[UUID], actor: Actor
    ) -> tuple[int, int, int]:
        """Erase one batch; (payments, events, webhooks)."""
        values: dict[str, Any] = {
            "merchant_id": self._merchant_id,
            "payment_ids": list(ids),
            "ended": sorted(TERMINAL),
            "technical": list(TECHNICAL),
        }
        # A refund may have started after the search.
        locked = [str(row[0]) for row in transaction.run(_LOCK, values)]
        if not locked:
            return 0, 0, 0
        values["payment_ids"] = locked
        events = len(transaction.run(_EVENTS, values))
        inbox = len(transaction.run(_INBOX, values))
        reasons = len(transaction.run(_MOVEMENTS, values))
        payments = len(transaction.run(_PAYMENTS, values))
        detail = {
            "by": self._by,
            "events": events,
            "webhooks": inbox,
            "reasons": reasons,
            "payments": [payment_id_text(UUID(text)) for text in locked],
        }
        write(transaction, actor, Entry("payment.erased", self._merchant_id, detail=detail))
        return payments, events, inbox

    def _erase_drills(self, transaction: Checkout, *, actor: Actor) -> int:
        drills = len(transaction.run(_DRILLS, {"value": self._value}))
        if drills:
            write(transaction, actor, Entry("drill.erased", detail={"reports": drills}))
        return drills

    def _batches(self, found: Erased) -> Iterator[list[UUID]]:
        """Ended payments, AT_ONCE at a time; open ones are added to `found`."""
        for first, last in self._pages():
            after = first
            while True:
                values = {
                    "merchant_id": self._merchant_id,
                    "value": self._value,
                    "after": after,
                    "until": str(last),
                    "limit": AT_ONCE,
                    "ended": sorted(TERMINAL),
                }
                rows = self._pool.run(_FIND[self._by], values, Deadline.after(STEP_S))
                if not rows:
                    break
                after = rows[-1][0]
                found.is_open += [payment_id for payment_id, is_open in rows if is_open]
                if ended := [payment_id for payment_id, is_open in rows if not is_open]:
                    yield ended

    def _pages(self) -> Iterator[tuple[UUID, UUID]]:
        """The ranges of ids to search: one where an index finds the rows, else pages."""
        if self._by == "reference":
            yield _FIRST, _LAST
            return
        after = _FIRST
        while True:
            values = {"merchant_id": self._merchant_id, "after": after, "limit": PAGE}
            rows = self._pool.run(_PAGE_END, values, Deadline.after(STEP_S))
            if not rows:
                return
            last = rows[0][0]
            yield after, last
            after = last
