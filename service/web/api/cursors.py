"""The cursors of the list of payments: a position in its order, as text."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from service.payments.charge.model import Payment

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cursor_after(payment: Payment) -> str:
    """The cursor of the page after this payment."""
    since_epoch = payment.created_at - _EPOCH
    micros = (since_epoch.days * 86400 + since_epoch.seconds) * 10**6 + since_epoch.microseconds
    return f"{micros}-{payment.payment_id.hex}"


def parse_cursor(cursor: str | None) -> tuple[datetime, UUID] | None:
    """The position in the list that `next_cursor` encodes."""
    if cursor is None:
        return None
    micros, _, digits = cursor.partition("-")
    seconds, micros_left = divmod(int(micros), 10**6)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros_left)
    return moment, UUID(hex=digits)
