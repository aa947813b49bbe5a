"""The rows that tell merchants of an event: part of the very statement that writes the event."""

from __future__ import annotations

# Steps on the way (accepted, sending, each look-up) are in the timeline; merchants are told what a
# payment, capture, void or refund came to, and what they have to do or to wait for.
TOLD = (
    *("succeeded", "declined", "canceled", "expired", "not_executed"),
    *("requires_action", "requires_capture", "unknown", "needs_review"),
    # Afterwards: payment.disputed, and what a dispute came to.
    *("disputed", "won", "lost", "closed"),
)

# To follow a CTE `event` that returns what it inserted into `events`. For a merchant without
# endpoints it reads one index page and writes nothing.
OUTBOX = f"""outbox AS (
        INSERT INTO webhook_outbox
            (merchant_id, endpoint_id, event_id, payment_id, type, event_at)
        SELECT w.merchant_id, w.endpoint_id, e.event_id, e.payment_id, e.type, e.created_at
        FROM event e JOIN webhook_endpoints w ON w.merchant_id = e.merchant_id
        WHERE split_part(e.type, '.', 2) IN {TOLD}
          AND w.event_types && ARRAY['*', e.type]
    )"""  # Only our own constants are put in.


def is_told(event_type: str) -> bool:
    """Whether merchants are told of events of this type."""
    return event_type.partition(".")[2] in TOLD
