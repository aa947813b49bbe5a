"""The providers of the contract suite: adapter, books, and the known properties of each."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

import requests

from service.providers.base import Charge, Provider
from service.providers.http.transport import Transport
from service.providers.stripe.charges import StripeChargesProvider
from service.providers.stripe.intents_adapter import StripeProvider
from service.resilience.watchdog import Watchdog
from tests.support.processes.sandbox_process import SandboxProcess
from tests.support.processes.tls_front import TlsFront

API_KEY = "sk_test_contract"


@dataclass
class Rig(ABC):
    """A provider behind a TLS front, its adapter, and its own books, read without the two.

    The fields below the line are properties of the provider, not of our code: each is asserted, so
    that a change of the provider is detected.
    """

    front: TlsFront
    url: str
    flow: Literal["two_phase", "one_shot"] = "two_phase"

    card = "pm_card_visa"
    refused_card = "pm_card_chargeDeclined"
    decline_code = "generic_decline"
    # ---
    honours_keys = True
    # Its list accepts a filter by creation time.
    lists_by_time = True
    # Its answers contain the captured part of a reserved amount.
    tells_captured = True
    # It refuses to capture a released charge.
    refuses_released = True
    # It refuses to refund more than was captured.
    limits_refunds = True

    @contextlib.contextmanager
    def provider(self, *, url: str | None = None, api_key: str = API_KEY) -> Iterator[Provider]:
        """The adapter, on separate connections."""
        transport = Transport(
            base_url=url or self.front.url,
            ca_file=self.front.ca_file,
            connect_timeout_s=2.0,
            max_connections=4,
            watchdog=Watchdog(),
        )
        try:
            yield self.adapter(transport, api_key)
        finally:
            transport.close()

    def adapter(self, transport: Transport, api_key: str) -> Provider:
        return StripeProvider(transport, api_key=api_key, flow=self.flow)

    def a_charge(self, method: str | None = None, **more: Any) -> Charge:
        """A charge that no other test uses."""
        name = f"pay_{uuid4().hex}"
        fields: dict[str, Any] = {
            "payment_id": name,
            "merchant_id": "merchant-1",
            "amount_minor": 2599,
            "currency": "usd",
            "payment_method": method or self.card,
            "provider_key": f"hf-{name}-1",
            "reference": f"order-{name}",
            "created_at": datetime.now(UTC),
        }
        return Charge(**{**fields, **more})

    @abstractmethod
    def taken(self, charge: Charge) -> list[int]:
        """The amounts that the provider charged for the charge, one for each time."""

    @abstractmethod
    def given_back(self, charge: Charge) -> list[int]:
        """The amounts that the provider refunded for our refunds, one for each time."""

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind in the provider's books."""
        answer = requests.get(
            f"{self.url}/v1/{kind}",
            params={"limit": 100_000},
            headers={"Authorization": f"Bearer {API_KEY}"},
            timeout=60,
        )
        answer.raise_for_status()
        return list(answer.json()["data"])


class Sandbox(Rig):
    """Ours."""

    sandbox: SandboxProcess

    def taken(self, charge: Charge) -> list[int]:
        return self._moved(charge, "charge", "capture")

    def given_back(self, charge: Charge) -> list[int]:
        return self._moved(charge, "refund")

    def _moved(self, charge: Charge, *kinds: str) -> list[int]:
        movements = self.sandbox.books(payment_id=charge.payment_id)
        return [movement["amount"] for movement in movements if movement["kind"] in kinds]


class Localstripe(Rig):
    """PaymentIntents from a hostile provider that ignores keys."""

    refused_card = "pm_card_chargeCustomerFail"
    decline_code = "card_declined"
    honours_keys = False
    lists_by_time = False
    tells_captured = False
    limits_refunds = False

    def taken(self, charge: Charge) -> list[int]:
        return [
            intent["amount"] - sum(self._refunds(intent, ours=False))
            for intent in self._intents(charge)
            if intent["status"] == "succeeded"
        ]

    def given_back(self, charge: Charge) -> list[int]:
        intents = self._intents(charge)
        return [amount for intent in intents for amount in self._refunds(intent, ours=True)]

    def _intents(self, charge: Charge) -> list[dict[str, Any]]:
        intents = self.listed("payment_intents")
        return [one for one in intents if one["metadata"].get("payment_id") == charge.payment_id]

    def _refunds(self, intent: dict[str, Any], *, ours: bool) -> list[int]:
        # The provider's own refund gives the uncaptured rest back.
        of_charge = (intent["latest_charge"] or {}).get("id")
        return [
            refund["amount"]
            for refund in self.listed("refunds")
            if refund["charge"] == of_charge and ("refund_id" in refund["metadata"]) is ours
        ]


class StripeMock(Rig):
    """Charges, from stripe-stateful-mock."""

    card = "tok_visa"
    refused_card = "tok_chargeDeclined"
    refuses_released = False

    def adapter(self, transport: Transport, api_key: str) -> Provider:
        return StripeChargesProvider(transport, api_key=api_key)

    def taken(self, charge: Charge) -> list[int]:
        return [
            found["amount_captured"]
            for found in self.listed("charges")
            if found["metadata"].get("payment_id") == charge.payment_id
            if found["paid"] and found["captured"]
        ]

    def given_back(self, charge: Charge) -> list[int]:
        return [
            refund["amount"]
            for refund in self.listed("refunds")
            if refund["metadata"].get("payment_id") == charge.payment_id
            if "refund_id" in refund["metadata"]
        ]
