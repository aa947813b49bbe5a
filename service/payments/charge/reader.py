"""Reads of payments: one, its timeline, and lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from service.database.pool.pool import ConnectionPool
from service.ids import UUID_MAX
from service.payments.charge import statements
from service.payments.charge.model import Event, Payment, Status
from service.resilience.deadline import Deadline

# The place of the first page of a list: before the newest payment that could be.
_AFTER_ALL = ("infinity", UUID_MAX)


class PaymentReader:
    """Reads payments; a merchant's id is part of every read."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def get(self, merchant_id: UUID, payment_id: UUID, deadline: Deadline) -> Payment | None:
        """The current payment; None for another merchant's."""
        rows = self._pool.run(
            statements.GET,
            {"merchant_id": merchant_id, "payment_id": payment_id},
            deadline,
        )
        return payment_of(rows[0]) if rows else None

    def read(self, payment: Payment, deadline: Deadline) -> Payment:
        """The current state of the same payment."""
        return self.get(payment.merchant_id, payment.payment_id, deadline) or payment

    def timeline(self, merchant_id: UUID, payment_id: UUID, deadline: Deadline) -> list[Event]:
        """Every step of the payment, oldest first."""
        rows = self._pool.run(
            statements.TIMELINE,
            {"merchant_id": merchant_id, "payment_id": payment_id},
            deadline,
        )
        return [
            Event(event_id, of_payment, type_, detail, at)
            for event_id, of_payment, type_, detail, at in rows
        ]

    def list(
        self,
        merchant_id: UUID,
        deadline: Deadline,
        *,
        statuses: Sequence[Status] | None = None,
        reference: str | None = None,
        created_gte: datetime | None = None,
        before: tuple[datetime, UUID] | None = None,
        limit: int = 20,
    ) -> list[Payment]:
        """The payments, newest first, at most `limit`, after the payment `before`."""
        by_reference = reference is not None
        statement = statements.LIST_BY_REFERENCE if by_reference else statements.LIST_BY_STATUS
        before_at, before_id = before or _AFTER_ALL
        rows = self._pool.run(
            statement,
            {
                "merchant_id": merchant_id,
                "statuses": [status.value for status in statuses or Status],
                "reference": reference,
                "created_gte": created_gte or "-infinity",
                "before_at": before_at,
                "before_id": before_id,
                "limit": limit,
            },
            deadline,
        )
        return [payment_of(row) for row in rows]


# The fields of a payment in the order of `statements.CHANGED_COLUMNS`.
_CHANGED = (
    "status",
    "amount_captured_minor",
    "amount_refunded_minor",
    "provider_ref",
    "key_series",
    "decline",
    "next_action",
    "attempts",
    "fence",
    "leased",
    "look_ups",
    "due_at",
    "sent_age_s",
    "doubt_age_s",
    "is_expired",
    "updated_at",
    "promised",
    "spent_series",
    "books_from",
)


def payment_after(payment: Payment, row: Sequence[Any]) -> Payment:
    """The payment after a write that returned this row of `statements.CHANGED_COLUMNS`."""
    changed = dict(zip(_CHANGED, row, strict=True))
    changed["status"] = Status(changed["status"])
    return replace(payment, loss=None, **changed)


def payment_of(row: Sequence[Any]) -> Payment:
    """The Payment behind a row of `payment_statements.COLUMNS`."""
    merchant_id, payment_id, status, *rest = row
    return Payment(merchant_id, payment_id, Status(status), *rest)
