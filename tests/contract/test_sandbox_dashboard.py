"""The sandbox's acts without an API call: dashboard acts, disputes, expiry, late outcomes."""

from __future__ import annotations

from uuid import uuid4

from tests.contract.test_sandbox_payments import create, kinds, unique
from tests.contract.test_sandbox_webhooks import Receiver, receiving
from tests.support.processes.sandbox_process import SandboxProcess


def paid(sandbox: SandboxProcess, payment_id: str, **form: str) -> dict:
    return create(sandbox, payment_id, confirm="true", **form)


def feed(sandbox: SandboxProcess, **query: object) -> list[dict]:
    answer = sandbox.stripe("GET", "/events", **query)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def events_of(sandbox: SandboxProcess, *object_ids: str) -> list[str]:
    found = feed(sandbox, limit=100)
    return [e["type"] for e in reversed(found) if e["data"]["object"]["id"] in object_ids]


def test_dashboard_refund_carries_no_metadata(sandbox):
    payment_id = unique()
    intent = paid(sandbox, payment_id)

    refund = sandbox.dashboard("refund", payment_intent=intent["id"], amount=600)

    assert refund["metadata"] == {}
    assert kinds(sandbox, payment_id) == [("charge", 2599), ("refund", 600)]
    listed = sandbox.stripe("GET", "/refunds", payment_intent=intent["id"]).json()["data"]
    assert [one["id"] for one in listed] == [refund["id"]]


def test_refund_that_succeeded_can_fail_later(sandbox):
    payment_id = unique()
    refund = sandbox.dashboard("refund", payment_intent=paid(sandbox, payment_id)["id"])

    failed = sandbox.dashboard("fail_refund", refund=refund["id"])

    assert (failed["status"], failed["failure_reason"]) == ("failed", "lost_or_stolen_card")
    charge = sandbox.stripe("GET", f"/charges/{refund['charge']}").json()
    assert (charge["amount_refunded"], charge["refunded"]) == (0, False)
    assert events_of(sandbox, refund["id"])[-3:] == [
        "refund.updated",
        "charge.refund.updated",
        "refund.failed",
    ]


def test_reservation_is_captured_and_released_in_the_dashboard(sandbox):
    taken, freed = unique(), unique()
    one = paid(sandbox, taken, capture_method="manual")
    two = paid(sandbox, freed, capture_method="manual")

    sandbox.dashboard("capture", payment_intent=one["id"], amount=1000)
    canceled = sandbox.dashboard("cancel", payment_intent=two["id"])

    assert kinds(sandbox, taken) == [("authorize", 2599), ("capture", 1000)]
    assert kinds(sandbox, freed) == [("authorize", 2599), ("void", 2599)]
    assert canceled["status"] == "canceled"
    charge = sandbox.stripe("GET", f"/charges/{canceled['latest_charge']}").json()
    assert (charge["captured"], charge["refunded"]) == (False, True)


def test_reservations_expire_after_seven_days(sandbox):
    reserved = paid(sandbox, unique(), capture_method="manual")

    kept = sandbox.dashboard("expire")["expired"]
    expired = sandbox.dashboard("expire", older_than_s=-1)["expired"]

    assert reserved["id"] not in kept
    assert reserved["id"] in expired
    intent = sandbox.stripe("GET", f"/payment_intents/{reserved['id']}").json()
    assert (intent["status"], intent["cancellation_reason"]) == ("canceled", "automatic")
    assert events_of(sandbox, reserved["id"])[-1] == "payment_intent.canceled"


def test_dispute_is_opened_listed_and_lost_or_won(sandbox):
    payment_id = unique()
    intent = paid(sandbox, payment_id)

    dispute = sandbox.dashboard("dispute", payment_intent=intent["id"], reason="fraudulent")
    listed = sandbox.stripe("GET", "/disputes", payment_intent=intent["id"]).json()["data"]
    won = sandbox.dashboard("close_dispute", dispute=dispute["id"], won=True)

    assert (dispute["status"], won["status"]) == ("needs_response", "won")
    assert [one["id"] for one in listed] == [dispute["id"]]
    assert kinds(sandbox, payment_id)[1:] == [("dispute", 2599), ("dispute_won", 2599)]
    assert events_of(sandbox, dispute["id"]) == [
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.funds_reinstated",
        "charge.dispute.closed",
    ]


def test_declined_intent_can_be_paid_later(sandbox):
    payment_id = unique()
    intent = create(sandbox, payment_id, payment_method="pm_card_chargeDeclined")
    sandbox.stripe("POST", f"/payment_intents/{intent['id']}/confirm")

    later = sandbox.dashboard("pay", payment_intent=intent["id"])

    assert later["status"] == "succeeded"
    assert kinds(sandbox, payment_id) == [("charge", 2599)]


def test_foreign_charge_has_no_metadata_of_ours(sandbox):
    foreign = sandbox.dashboard("charge", amount=700)

    assert (foreign["metadata"], foreign["amount_received"]) == ({}, 700)


# --- The feed -----------------------------------------------------------------------------------


def test_feed_has_pages_newest_first_with_type_and_time_filters(sandbox):
    intent = paid(sandbox, unique())
    for amount in (1, 2, 3):
        sandbox.dashboard("refund", payment_intent=intent["id"], amount=amount)

    first = sandbox.stripe("GET", "/events", type="refund.created", limit=2).json()
    after = {"starting_after": first["data"][-1]["id"], "type": "refund.created", "limit": 1}
    [third] = feed(sandbox, **after)

    amounts = [event["data"]["object"]["amount"] for event in [*first["data"], third]]
    assert (amounts, first["has_more"]) == ([3, 2, 1], True)
    both = {"types[]": ["refund.created", "charge.refunded"], "limit": 4}
    assert {event["type"] for event in feed(sandbox, **both)} == set(both["types[]"])
    later = third["created"] + 3600
    assert feed(sandbox, **{"created[gte]": later}) == []
    assert sandbox.stripe("GET", f"/events/{third['id']}").json() == third


def test_type_and_types_together_are_refused(sandbox):
    query = {"type": "refund.created", "types[]": "refund.created"}

    assert sandbox.stripe("GET", "/events", **query).status_code == 400


def test_webhook_is_the_event_of_the_feed(tmp_path):
    receiver = Receiver()
    with receiving(tmp_path, receiver) as sandbox:
        paid(sandbox, f"pay_{uuid4().hex}")
        sent = receiver.next()
        assert sandbox.stripe("GET", f"/events/{sent['id']}").json() == sent


def test_act_that_cannot_be_understood_is_refused(sandbox):
    bodies = (b"no json", b"[]", b'{"act": "steal"}', b'{"act": "refund"}')
    refused = [sandbox.ask("POST", "/_dashboard", data=body).status_code for body in bodies]

    assert refused == [400] * 4
