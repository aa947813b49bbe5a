"""The sandbox moves money as Stripe does, and its books say so."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest
import requests

from tests.support.processes.sandbox_process import API_KEY, SandboxProcess

CARD = {"amount": "2599", "currency": "usd", "payment_method": "pm_card_visa"}


def named(payment_id: str, **form: str) -> dict[str, str]:
    return CARD | {"metadata[payment_id]": payment_id} | form


def create(sandbox: SandboxProcess, payment_id: str, **form: str) -> dict:
    answer = sandbox.stripe("POST", "/payment_intents", **named(payment_id, **form))
    assert answer.status_code == 200, answer.text
    return answer.json()


def unique() -> str:
    return f"pay_{uuid4().hex}"


def kinds(sandbox: SandboxProcess, payment_id: str) -> list[tuple[str, int]]:
    return [(row["kind"], row["amount"]) for row in sandbox.books(payment_id=payment_id)]


def test_creating_moves_nothing_and_confirming_charges_once(sandbox):
    payment_id = unique()
    intent = create(sandbox, payment_id, **{"metadata[reference]": "order-7"})
    moved_by_create = sandbox.books(payment_id=payment_id)

    confirmed = sandbox.stripe("POST", f"/payment_intents/{intent['id']}/confirm", key=unique())
    again = sandbox.stripe("POST", f"/payment_intents/{intent['id']}/confirm", key=unique())

    assert intent["status"] == "requires_confirmation"
    assert moved_by_create == []
    assert confirmed.json()["status"] == "succeeded"
    assert confirmed.json()["amount_received"] == 2599
    assert again.status_code == 400
    assert again.json()["error"]["code"] == "payment_intent_unexpected_state"
    assert again.json()["error"]["payment_intent"]["status"] == "succeeded"
    [movement] = sandbox.books(payment_id=payment_id)
    assert (movement["kind"], movement["amount"], movement["reference"]) == (
        "charge",
        2599,
        "order-7",
    )
    assert movement["payment_intent"] == intent["id"]


@pytest.mark.parametrize(
    ("method", "code", "decline_code"),
    [
        ("pm_card_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_chargeDeclinedLostCard", "card_declined", "lost_card"),
        ("pm_card_chargeDeclinedStolenCard", "card_declined", "stolen_card"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", None),
        ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", None),
        ("pm_card_chargeDeclinedProcessingError", "processing_error", None),
    ],
)
def test_declined_card_returns_its_code_and_moves_nothing(sandbox, method, code, decline_code):
    payment_id = unique()
    intent = create(sandbox, payment_id, payment_method=method)

    answer = sandbox.stripe("POST", f"/payment_intents/{intent['id']}/confirm")

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (402, "card_error")
    assert (error["code"], error.get("decline_code")) == (code, decline_code)
    seen = sandbox.stripe("GET", f"/payment_intents/{intent['id']}").json()
    assert seen["status"] == "requires_payment_method"
    assert seen["last_payment_error"]["code"] == code
    assert seen["latest_charge"] == error["charge"]
    assert seen["payment_method"] is None
    assert kinds(sandbox, payment_id) == []


def test_manual_capture_takes_at_most_the_reserved_amount(sandbox):
    payment_id = unique()
    intent = create(sandbox, payment_id, confirm="true", capture_method="manual")
    path = f"/payment_intents/{intent['id']}/capture"

    too_much = sandbox.stripe("POST", path, amount_to_capture="2600")
    part = sandbox.stripe("POST", path, amount_to_capture="2000")
    again = sandbox.stripe("POST", path)

    assert (intent["status"], intent["amount_capturable"]) == ("requires_capture", 2599)
    assert too_much.json()["error"]["code"] == "amount_too_large"
    assert part.json()["status"] == "succeeded"
    assert part.json()["amount_received"] == 2000
    assert again.json()["error"]["code"] == "payment_intent_unexpected_state"
    assert kinds(sandbox, payment_id) == [("authorize", 2599), ("capture", 2000)]


def test_cancelling_a_reservation_voids_it_and_is_final(sandbox):
    payment_id = unique()
    intent = create(sandbox, payment_id, confirm="true", capture_method="manual")

    canceled = sandbox.stripe("POST", f"/payment_intents/{intent['id']}/cancel")
    confirmed = sandbox.stripe("POST", f"/payment_intents/{intent['id']}/confirm")

    assert canceled.json()["status"] == "canceled"
    assert confirmed.json()["error"]["code"] == "payment_intent_unexpected_state"
    assert kinds(sandbox, payment_id) == [("authorize", 2599), ("void", 2599)]


def test_refunds_stop_at_what_was_captured(sandbox):
    payment_id = unique()
    intent = create(sandbox, payment_id, confirm="true")

    first = sandbox.stripe("POST", "/refunds", payment_intent=intent["id"], amount="2000")
    too_much = sandbox.stripe("POST", "/refunds", payment_intent=intent["id"], amount="600")
    rest = sandbox.stripe("POST", "/refunds", payment_intent=intent["id"])
    nothing_left = sandbox.stripe("POST", "/refunds", payment_intent=intent["id"])

    assert (first.json()["status"], rest.json()["amount"]) == ("succeeded", 599)
    assert (too_much.status_code, too_much.json()["error"]["param"]) == (400, "amount")
    assert nothing_left.json()["error"]["code"] == "charge_already_refunded"
    listed = sandbox.stripe("GET", "/refunds", payment_intent=intent["id"]).json()
    assert [refund["id"] for refund in listed["data"]] == [rest.json()["id"], first.json()["id"]]
    assert kinds(sandbox, payment_id) == [("charge", 2599), ("refund", 2000), ("refund", 599)]


def test_pending_refund_returned_by_the_bank_can_be_repeated(sandbox):
    intent = create(sandbox, unique(), confirm="true", payment_method="pm_card_pendingRefund")
    refund = sandbox.stripe("POST", "/refunds", payment_intent=intent["id"]).json()
    while_pending = sandbox.stripe("POST", "/refunds", payment_intent=intent["id"])

    failed = sandbox.ask(
        "POST", "/_complete_refund", json={"refund": refund["id"], "success": False}
    )
    second = sandbox.stripe("POST", "/refunds", payment_intent=intent["id"]).json()
    sandbox.ask("POST", "/_complete_refund", json={"refund": second["id"], "success": True})

    assert refund["status"] == "pending"
    assert while_pending.json()["error"]["code"] == "charge_already_refunded"
    assert failed.json()["status"] == "failed"
    assert sandbox.stripe("GET", f"/refunds/{second['id']}").json()["status"] == "succeeded"
    assert len(sandbox.books(payment_intent=intent["id"], kind="refund")) == 1


@pytest.mark.parametrize(
    ("success", "status", "moved"),
    [(True, "succeeded", [("charge", 2599)]), (False, "requires_payment_method", [])],
)
def test_a_challenge_decides_whether_money_moves(sandbox, success, status, moved):
    payment_id = unique()
    intent = create(
        sandbox, payment_id, confirm="true", payment_method="pm_card_authenticationRequired"
    )
    page = sandbox.ask(
        "GET", intent["next_action"]["redirect_to_url"]["url"].removeprefix(sandbox.url)
    )

    completed = sandbox.complete_action(intent["id"], success=success)

    assert intent["status"] == "requires_action"
    assert intent["id"] in page.text
    assert completed["status"] == status
    assert completed["next_action"] is None
    assert kinds(sandbox, payment_id) == moved


def test_the_list_is_newest_first_in_pages_and_from_a_moment_on(sandbox):
    since = int(time.time())
    made = [create(sandbox, unique())["id"] for _ in range(3)]

    first = sandbox.stripe("GET", "/payment_intents", limit="2").json()
    cursor = first["data"][-1]["id"]
    rest = sandbox.stripe(
        "GET", "/payment_intents", starting_after=cursor, **{"created[gte]": str(since)}
    ).json()
    future = sandbox.stripe("GET", "/payment_intents", **{"created[gte]": str(since + 3600)}).json()

    assert [intent["id"] for intent in first["data"]] == [made[2], made[1]]
    assert first["has_more"] is True
    assert rest["data"][0]["id"] == made[0]
    assert (future["data"], future["has_more"]) == ([], False)


@pytest.mark.parametrize(
    ("form", "code", "param"),
    [
        ({"amount": "", "currency": "usd"}, "parameter_missing", "amount"),
        ({"amount": "12.5", "currency": "usd"}, "parameter_invalid_integer", "amount"),
        ({"amount": "0", "currency": "usd"}, "parameter_invalid_integer", "amount"),
        ({"amount": "100000000", "currency": "usd"}, "amount_too_large", "amount"),
        (CARD | {"payment_method": "pm_card_unheard"}, "resource_missing", "payment_method"),
        (CARD | {"colour": "red"}, "parameter_unknown", "colour"),
        (CARD | {"metadata[a][b]": "c"}, None, "metadata[a]"),
        (CARD | {"confirm": "yes"}, None, "confirm"),
    ],
)
def test_wrong_parameters_are_named(sandbox, form, code, param):
    answer = sandbox.stripe("POST", "/payment_intents", **form)

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error.get("code"), error["param"]) == (
        "invalid_request_error",
        code,
        param,
    )


def test_what_does_not_exist_is_missing(sandbox):
    answer = sandbox.stripe("GET", "/payment_intents/pi_none")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "resource_missing"


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer sk_live_x", "Basic c2s="])
def test_without_a_test_key_nothing_is_answered(sandbox, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}

    answer = sandbox.ask("GET", "/v1/payment_intents", headers=headers)

    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "invalid_request_error")


def test_an_expanded_charge_is_the_object_and_not_its_id(sandbox):
    intent = create(sandbox, unique(), confirm="true")

    seen = sandbox.stripe(
        "GET", f"/payment_intents/{intent['id']}", **{"expand[]": "latest_charge"}
    ).json()

    assert seen["latest_charge"]["id"] == intent["latest_charge"]
    assert seen["latest_charge"]["paid"] is True


def test_certificate_is_verified_and_foreign_ones_are_refused(sandbox):
    headers = {"Authorization": f"Bearer {API_KEY}"}
    by_name = sandbox.url.replace("127.0.0.1", "localhost") + "/v1/payment_intents"

    named = requests.get(by_name, headers=headers, verify=sandbox.ca_file, timeout=60)

    assert named.status_code == 200
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(by_name, headers=headers, timeout=60)
