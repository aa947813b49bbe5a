"""A valid request for a payment, with a test's changes."""

from __future__ import annotations

import dataclasses
from uuid import UUID, uuid4

from service.payments.charge.model import ChargeRequest


def charge_request(merchant_id: UUID, /, **changes: object) -> ChargeRequest:
    """A payment of 25.99 dollars with a new key."""
    sound = ChargeRequest(
        merchant_id=merchant_id,
        idempotency_key=str(uuid4()),
        fingerprint=b"same",
        amount_minor=2599,
        currency="usd",
        payment_method="pm_card_visa",
    )
    return dataclasses.replace(sound, **changes)
