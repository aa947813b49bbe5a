"""All events of a merchant, oldest first, for programs that read them continuously."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from service.database.pool.pool import ConnectionPool, Statement
from service.ids import first_id_at
from service.resilience.deadline import Deadline

# Ids are ordered by creation time but committed a little later: an event may appear before one that
# was already read. Longer than the limit of any statement.
COMMITTED_WITHIN_S = 5.0

_READ = Statement(
    "read_events",
    """
    SELECT event_id, payment_id, type, detail, created_at,
           extract(epoch FROM now())::float8
    FROM events
    WHERE merchant_id = %(merchant_id)s::uuid
      AND event_id > %(after)s::uuid
    ORDER BY event_id LIMIT %(limit)s::integer
    """,
)


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One event; `payment_id` is None where it is not about a payment."""

    event_id: UUID
    payment_id: UUID | None
    type: str
    detail: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Some events, oldest first, and the next position."""

    events: list[FeedEvent]
    has_more: bool
    # None: there are no events yet; start from the beginning again.
    next_cursor: UUID | None


class EventFeed:
    """Reads the events of one merchant after a cursor."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def read(
        self, merchant_id: UUID, deadline: Deadline, *, after: UUID | None, limit: int
    ) -> FeedPage:
        """Up to `limit` events after `after`.

        A reader that continues from `next_cursor` misses none and may see the newest twice, with
        the same ids: at the end the cursor stays before events that may still be committed.
        """
        rows = self._pool.run(
            _READ,
            {
                "merchant_id": merchant_id,
                # Always a value, so that one plan by index serves the first page too.
                "after": after or UUID(int=0),
                "limit": limit + 1,
            },
            deadline,
        )
        events = [
            FeedEvent(event_id, payment_id, type_, detail, created_at)
            for event_id, payment_id, type_, detail, created_at, _ in rows[:limit]
        ]
        has_more = len(rows) > limit
        last = events[-1].event_id if events else after
        if last is not None and not has_more and events:
            newest_s = rows[0][5] - COMMITTED_WITHIN_S
            last = min(last, first_id_at(datetime.fromtimestamp(newest_s, UTC)))
        return FeedPage(events, has_more, last)
