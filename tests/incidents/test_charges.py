"""The real service on Stripe's Charges, served by a provider that is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.support.processes.tls_front import tls_front
from tests.support.providers.provider_rigs import API_KEY, StripeMock
from tests.support.providers.rival_providers import running_stripe_mock
from tests.support.stack.running_stack import ROOT, RunningStack, running_stack, wait_for

pytestmark = pytest.mark.needs("stripe-mock")

PROVIDER = {"provider": "stripe_charges"}


@dataclass
class Shop:
    """A local stack, its provider, and the settings that connect them."""

    local_stack: RunningStack
    mock: StripeMock
    settings: dict[str, str]

    def pay(self, source: str = "tok_visa", **body: Any) -> requests.Response:
        return self.local_stack.pay(payment_method=source, **body)

    def charges(self, payment_id: str) -> list[dict[str, Any]]:
        """The charges of a payment in the provider's books."""
        listed = self.mock.listed("charges")
        return [one for one in listed if one["metadata"].get("payment_id") == payment_id]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with running_stripe_mock() as url, tls_front(url) as front:
        settings = {
            "HOLDFAST_PROVIDER": "stripe_charges",
            "HOLDFAST_PROVIDER_FLOW": "one_shot",
            "STRIPE_API_BASE": front.url,
            "STRIPE_API_KEY": API_KEY,
            "HOLDFAST_PROVIDER_CA_FILE": str(front.ca_file),
        }
        with running_stack(tmp_path_factory.mktemp("local_stack"), **settings) as local_stack:
            yield Shop(local_stack, StripeMock(front, url, "one_shot"), settings)


def test_payment_is_charged_in_one_call_and_names_its_provider(shop: Shop):
    answer = shop.pay()

    paid = answer.json()
    assert (answer.status_code, paid["status"]) == (201, "succeeded")
    assert paid["provider"] == "stripe_charges"
    (charge,) = shop.charges(paid["id"])
    assert (charge["id"], charge["amount_captured"]) == (paid["provider_ref"], 2599)


def test_a_decline_brings_the_banks_code(shop: Shop):
    answer = shop.pay("tok_chargeDeclinedInsufficientFunds")

    assert answer.status_code == 402
    found = shop.local_stack.get(answer.headers["Location"]).json()
    assert found["decline"]["code"] == "insufficient_funds"


def test_reserved_money_is_captured_in_part_or_released(shop: Shop):
    captured, released = (shop.pay(capture_method="manual").json() for _ in range(2))

    taken = move(shop, captured, "capture", {"amount": 1000})
    voided = move(shop, released, "void", {})

    assert (taken["status"], taken["amount_captured"]) == ("succeeded", 1000)
    assert voided["status"] == "canceled"
    (kept,) = shop.charges(captured["id"])
    (let_go,) = shop.charges(released["id"])
    assert (kept["amount_captured"], kept["amount_refunded"]) == (1000, 1599)
    assert (let_go["captured"], let_go["refunded"]) == (False, True)


def test_an_answer_that_is_lost_is_settled_with_one_charge(shop: Shop):
    with shop.mock.front.failing("reset_after"):
        answer = shop.pay()

    doubt = answer.json()
    settled = shop.local_stack.settled(doubt["id"])

    assert (answer.status_code, doubt["status"]) == (202, "unknown")
    assert settled["status"] == "succeeded"
    assert [charge["id"] for charge in shop.charges(doubt["id"])] == [settled["provider_ref"]]


def test_a_refund_whose_answer_is_lost_is_given_back_once(shop: Shop):
    paid = shop.pay().json()

    with shop.mock.front.failing("reset_after"):
        refund = shop.local_stack.request(
            "POST",
            f"/v1/payments/{paid['id']}/refunds",
            json={"amount": 599},
            headers={"Idempotency-Key": str(uuid4())},
        ).json()
    done = wait_for(lambda: refund_if(shop, refund["id"], "succeeded"), timeout_s=30)

    assert refund["status"] == "unknown"
    assert done["amount"] == 599
    (charge,) = shop.charges(paid["id"])
    assert charge["amount_refunded"] == 599


def test_both_books_tell_the_same(shop: Shop):
    for source in ("tok_visa", "tok_chargeDeclined", "tok_visa"):
        shop.pay(source)

    payments = shop.local_stack.get("/v1/payments?limit=100").json()["data"]
    ours = Counter({one["id"]: one["amount_captured"] for one in payments})
    theirs: Counter[str] = Counter()
    for charge in shop.mock.listed("charges"):
        if charge["paid"]:
            theirs[charge["metadata"]["payment_id"]] += charge["amount_captured"]

    assert +ours == +theirs
    assert len(+ours) >= 2
    assert shop.local_stack.broken_promises() == {}


def test_the_figures_go_by_the_providers_name(shop: Shop):
    shop.pay()

    assert shop.local_stack.metric("holdfast_payments_total", **PROVIDER, outcome="succeeded") > 0
    assert shop.local_stack.metric("holdfast_breaker_state", **PROVIDER, state="closed") > 0
    assert shop.local_stack.metric("holdfast_provider_calls_total", provider="stripe") == 0


def test_consoles_test_payment_is_accepted_by_this_provider(shop: Shop):
    answer = requests.post(
        f"{shop.local_stack.ops_url}/console/payments",
        headers={"Authorization": f"Bearer {shop.local_stack.api_key}"},
        timeout=60,
    )

    assert (answer.status_code, answer.json()["status"]) == (200, 201), answer.text


def test_the_doctor_reaches_the_provider(shop: Shop):
    environ = {**os.environ, **shop.settings, "HOLDFAST_HOME": shop.local_stack.home}
    doctor = subprocess.run(
        [sys.executable, "-m", "service", "doctor", "--json"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    findings = {one["check"]: one for one in json.loads(doctor.stdout)}

    assert findings["provider"]["state"] == "pass"
    assert findings["provider"]["found"].startswith("stripe_charges at ")


def move(shop: Shop, payment: dict[str, Any], what: str, body: dict[str, Any]) -> dict[str, Any]:
    """Capture or void the payment; returns its new state."""
    path = f"/v1/payments/{payment['id']}"
    answer = shop.local_stack.request(
        "POST", f"{path}/{what}", json=body, headers={"Idempotency-Key": str(uuid4())}
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = shop.local_stack.get(path).json()
    return found


def refund_if(shop: Shop, refund_id: str, status: str) -> dict[str, Any] | None:
    refund: dict[str, Any] = shop.local_stack.get(f"/v1/refunds/{refund_id}").json()
    return refund if refund["status"] == status else None
