"""Shown payments match the contract's models."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from service.payments.charge.model import Payment, Status
from service.web.api.fields import CURRENCIES
from service.web.api.schemas import UNSETTLED, PaymentDocument, PaymentQuery, present, shown_status


def payment(status: Status) -> Payment:
    now = datetime.now(UTC)
    return Payment(
        merchant_id=uuid4(),
        payment_id=uuid4(),
        status=status,
        amount_minor=2599,
        currency="usd",
        payment_method="pm_card_visa",
        reference="order-1",
        capture_method="automatic",
        customer=None,
        metadata={"a": "b"},
        on_outage="queue",
        expires_at=now,
        amount_captured_minor=0,
        amount_refunded_minor=0,
        provider="stripe",
        provider_ref="pi_1",
        key_series=1,
        decline={"code": "expired_card", "message": "It has expired."},
        next_action={"type": "redirect_to_url"},
        attempts=[{"n": 1, "op": "confirm", "stage": "answered", "error": None, "ms": 212}],
        fence=1,
        leased=False,
        look_ups=0,
        due_at=now,
        sent_age_s=None,
        doubt_age_s=None,
        is_expired=False,
        created_at=now,
        updated_at=now,
    )


@pytest.mark.parametrize("status", Status)
def test_a_payment_in_any_status_is_shown_as_the_document_says(status: Status) -> None:
    shown = PaymentDocument.model_validate(present(payment(status), ()))

    assert (shown.outcome == "unknown") is (status in (Status.UNKNOWN, Status.NEEDS_REVIEW))
    assert (shown.outcome == "succeeded") is (status in (Status.SUCCEEDED, Status.REQUIRES_CAPTURE))


@pytest.mark.parametrize("status", Status)
def test_every_shown_status_can_be_asked_for(status: Status) -> None:
    query = PaymentQuery.model_validate({"status": shown_status(status)})

    assert query.statuses == [status]


def test_pending_status_is_neither_final_nor_the_clients_turn() -> None:
    assert {status.value for status in UNSETTLED} == {
        "accepted",
        "sending",
        "unknown",
        "needs_review",
    }


def test_only_currencies_with_minor_units_are_money() -> None:
    assert {"usd", "eur", "jpy", "kwd"} <= CURRENCIES
    assert not {"xau", "xts", "xxx", "USD"} & CURRENCIES
