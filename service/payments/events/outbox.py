"""The outbox rows of an event, written by the statement that writes the event."""

from __future__ import annotations

# Intermediate steps (accepted, sending, each look-up) are only in the timeline; merchants get the
# results of payments, captures, voids and refunds, and required actions or waits.
TOLD = (
    "succeeded",
    "declined",
    "canceled",
    "expired",
    "not_executed",
    "requires_action",
    "requires_capture",
    "unknown",
    "needs_review",
    # Later events: payment.disputed, and the result of a dispute.
    "disputed",
    "won",
    "lost",
    "closed",
)

# Follows a CTE `event` that returns its row of `events`. For a merchant without endpoints it reads
# one index page and writes nothing.
OUTBOX = f"""outbox AS (
        INSERT INTO webhook_outbox
            (merchant_id, endpoint_id, event_id, payment_id, type, event_at)
        SELECT w.merchant_id, w.endpoint_id, e.event_id, e.payment_id, e.type, e.created_at
        FROM event e JOIN webhook_endpoints w ON w.merchant_id = e.merchant_id
        WHERE split_part(e.type, '.', 2) IN {TOLD}
          AND w.event_types && ARRAY['*', e.type]
    )"""  # Only our own constants are inserted.


def is_told(event_type: str) -> bool:
    """Whether events of this type are delivered to merchants."""
    return event_type.partition(".")[2] in TOLD
