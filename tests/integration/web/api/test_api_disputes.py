"""Disputes are a visible fact of their payment, wherever it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.web.api.schemas import PaymentDocument

Ask = Callable[..., TestResponse]
_DISPUTE = """
    INSERT INTO disputes (merchant_id, provider, dispute_ref, payment_id, amount, currency, reason,
                          status, opened_at)
    SELECT merchant_id, provider, 'dp_1', payment_id, 2599, 'usd', 'fraudulent', 'needs_response',
           '2026-01-31T12:00:00Z'
    FROM payments WHERE payment_id = %s::uuid
"""


def test_a_payment_shows_its_disputes(pay: Ask, get: Ask, owner: Any, merchant_id: UUID) -> None:
    key = "the-same-key"
    made = pay(key=key)
    with owner.cursor() as cursor:
        cursor.execute(_DISPUTE, (made.json["id"][4:],))

    read = get(made.headers["Location"]).json
    [listed] = get("/v1/payments").json["data"]
    replayed = pay(key=key).json

    assert made.json["disputes"] == []
    assert PaymentDocument.model_validate(read)
    assert [(one["id"], one["status"]) for one in read["disputes"]] == [("dp_1", "needs_response")]
    assert read["disputes"][0]["opened_at"] == "2026-01-31T12:00:00Z"
    assert listed["disputes"] == replayed["disputes"] == read["disputes"]


def test_every_answer_about_a_payment_shows_its_disputes(
    pay: Ask, client: FlaskClient, api_key: str, owner: Any
) -> None:
    made = pay(key="reserved", capture_method="manual")
    path = made.headers["Location"]

    def post(act: str, body: Any = None) -> Any:
        named = {"Authorization": f"Bearer {api_key}", "Idempotency-Key": f"act-{act}"}
        return client.post(f"{path}/{act}", json=body or {}, headers=named).json

    post("capture")
    with owner.cursor() as cursor:
        cursor.execute(_DISPUTE, (made.json["id"][4:],))
    captured = post("capture")
    with owner.cursor() as cursor:
        cursor.execute(
            "UPDATE payments SET status = 'needs_review' WHERE payment_id = %s",
            (made.json["id"][4:],),
        )
    looked, resolved = (
        post("reconcile"),
        post("resolve", {"outcome": "succeeded", "evidence": "the statement of March"}),
    )

    shown = [[one["id"] for one in answer["disputes"]] for answer in (captured, looked, resolved)]
    assert shown == [["dp_1"]] * 3
