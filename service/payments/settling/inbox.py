"""The inbox of the provider's events: each is stored once, and is a hint about a payment."""

from __future__ import annotations

from uuid import UUID

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.settling.late_statements import APPLY_HINTS
from service.resilience.deadline import Deadline

# A hint is kept for this many tries: its payment may be stored later than its event.
HINT_TRIES_MAX = 24

_RECEIVE_WEBHOOK = Statement(
    "receive_webhook",
    """
    INSERT INTO webhook_inbox
        (provider, event_id, type, provider_ref, merchant_id, payment_id, due_at)
    VALUES (%(provider)s::text, %(event_id)s::text, %(type)s::text, %(provider_ref)s::text,
            %(merchant_id)s::uuid, %(payment_id)s::uuid, now())
    ON CONFLICT (provider, event_id) DO NOTHING
    RETURNING 1
    """,
)


class WebhookInbox:
    """Stores events and applies them: each makes the look-up of its payment due."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def receive_webhook(
        self,
        deadline: Deadline,
        *,
        provider: str,
        event_id: str,
        type_: str,
        provider_ref: str | None,
        merchant_id: UUID | None,
        payment_id: UUID | None,
    ) -> bool:
        """Store a provider's event; False: it was stored already."""
        rows = self._pool.run(
            _RECEIVE_WEBHOOK,
            {
                "provider": provider,
                "event_id": event_id,
                "type": type_,
                "provider_ref": provider_ref,
                "merchant_id": merchant_id,
                "payment_id": payment_id,
            },
            deadline,
        )
        return bool(rows)

    def apply_hints(self, limit: int, deadline: Deadline) -> int:
        """Reschedule the look-ups of webhook hints; returns the number of consumed hints."""
        rows = self._pool.run(APPLY_HINTS, {"limit": limit, "max_tries": HINT_TRIES_MAX}, deadline)
        return sum(used_up for (used_up,) in rows)
