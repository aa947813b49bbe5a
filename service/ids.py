"""The ids of rows: UUIDs of version 7, and the prefixed texts that people see. Pure."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from uuid_utils.compat import uuid7

_HEX = frozenset("0123456789abcdef")


# Above every id: the place of a list's first page, newest first.
UUID_MAX = UUID(int=2**128 - 1)


def new_id() -> UUID:
    """A version 7 UUID (RFC 9562): made by us, ordered by time."""
    return uuid7()


def first_id_at(moment: datetime) -> UUID:
    """The smallest version 7 UUID of that moment: ids are ordered by time."""
    return UUID(int=(max(0, int(moment.timestamp() * 1000)) << 80) | (7 << 76) | (1 << 63))


def payment_id_text(payment_id: UUID) -> str:
    return f"pay_{payment_id.hex}"


def event_id_text(event_id: UUID) -> str:
    return f"evt_{event_id.hex}"


def parse_id(text: str, prefix: str) -> UUID | None:
    """The UUID behind `pay_…`, `evt_…`; None for anything that we cannot have made."""
    digits = text.removeprefix(prefix)
    if len(digits) != 32 or len(text) != 32 + len(prefix) or not set(digits) <= _HEX:
        return None
    return UUID(hex=digits)
