"""The sandbox treats Idempotency-Key as Stripe's API v1 does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from tests.support.processes.sandbox_process import SandboxProcess


def pay(sandbox: SandboxProcess, key: str | None, payment_id: str, **form: str):
    given = {"amount": "700", "currency": "eur", "payment_method": "pm_card_visa"}
    given |= {"confirm": "true", "metadata[payment_id]": payment_id} | form
    return sandbox.stripe("POST", "/payment_intents", key=key, **given)


@pytest.fixture
def payment_id() -> str:
    return f"pay_{uuid4().hex}"


def test_the_same_key_replays_the_first_answer_and_charges_once(sandbox, payment_id):
    first = pay(sandbox, payment_id, payment_id)
    second = pay(sandbox, payment_id, payment_id)

    assert second.content == first.content
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.headers["Original-Request"] == first.headers["Request-Id"]
    assert len(sandbox.books(payment_id=payment_id)) == 1


def test_a_decline_is_replayed_too(sandbox, payment_id):
    first = pay(sandbox, payment_id, payment_id, payment_method="pm_card_chargeDeclined")
    second = pay(sandbox, payment_id, payment_id, payment_method="pm_card_chargeDeclined")

    assert (first.status_code, second.status_code) == (402, 402)
    assert second.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("path", ["/payment_intents", "/refunds"])
def test_a_key_that_comes_back_with_another_call_is_refused(sandbox, payment_id, path):
    pay(sandbox, payment_id, payment_id)

    form = {"amount": "701", "currency": "eur"} if path == "/payment_intents" else {"charge": "ch"}
    answer = sandbox.stripe("POST", path, key=payment_id, **form)

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "idempotency_error")


def test_a_key_whose_call_was_invalid_is_still_unused(sandbox, payment_id):
    refused = pay(sandbox, payment_id, payment_id, amount="none")
    accepted = pay(sandbox, payment_id, payment_id)

    assert (refused.status_code, accepted.status_code) == (400, 200)
    assert "Idempotent-Replayed" not in accepted.headers


def test_two_at_once_with_one_key_are_one_charge_and_one_409(sandbox, payment_id):
    sandbox.control(mix={"slow": 1}, slow_ms=400, reference=payment_id)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: pay(sandbox, payment_id, payment_id), range(2)))

    [refused] = [answer for answer in answers if answer.status_code != 200]
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "idempotency_key_in_use"
    assert len(sandbox.books(payment_id=payment_id)) == 1


def test_one_key_of_two_accounts_is_two_keys(sandbox, payment_id):
    pay(sandbox, payment_id, payment_id)

    headers = {"Authorization": "Bearer sk_test_other", "Idempotency-Key": payment_id}
    form = {"amount": "100", "currency": "usd"}
    other = sandbox.ask("POST", "/v1/payment_intents", headers=headers, data=form)

    assert (other.status_code, other.json()["amount"]) == (200, 100)


@pytest.mark.parametrize(
    ("fault", "charges"), [("error_500_saved", 0), ("error_500_after_charge", 1)]
)
def test_a_500_is_saved_under_the_key_and_outlives_the_fault(sandbox, payment_id, fault, charges):
    sandbox.control(mix={fault: 1}, reference=payment_id)
    faulty = pay(sandbox, payment_id, payment_id)
    sandbox.clear()

    replayed = pay(sandbox, payment_id, payment_id)

    assert (faulty.status_code, replayed.status_code) == (500, 500)
    assert replayed.json()["error"]["type"] == "api_error"
    assert replayed.headers["Idempotent-Replayed"] == "true"
    assert len(sandbox.books(payment_id=payment_id)) == charges


def test_a_provider_told_to_ignore_keys_charges_twice(sandbox, payment_id):
    sandbox.control(honour_keys=False)

    pay(sandbox, payment_id, payment_id)
    pay(sandbox, payment_id, payment_id)

    assert len(sandbox.books(payment_id=payment_id)) == 2


def test_a_call_without_a_key_is_a_call_of_its_own(sandbox, payment_id):
    pay(sandbox, None, payment_id)
    pay(sandbox, None, payment_id)

    assert len(sandbox.books(payment_id=payment_id)) == 2
