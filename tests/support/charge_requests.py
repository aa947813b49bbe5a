"""A sound request for a payment, changed as a test likes."""

from __future__ import annotations

import dataclasses
from uuid import UUID, uuid4

from service.payments.charge.model import ChargeRequest


def charge_request(merchant_id: UUID, /, **changes: object) -> ChargeRequest:
    """25.99 dollars under a key of its own."""
    sound = ChargeRequest(
        merchant_id=merchant_id,
        idempotency_key=str(uuid4()),
        fingerprint=b"same",
        amount_minor=2599,
        currency="usd",
        payment_method="pm_card_visa",
    )
    return dataclasses.replace(sound, **changes)
