"""Acts of people and banks outside the API: the dashboard, late failures, expiry.

No act carries the metadata of a payment service or an idempotency key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from time import time
from typing import Any

from service.lab.sandbox import disputes, refunds
from service.lab.sandbox.books import BooksPage, Object
from service.lab.sandbox.errors import invalid
from service.lab.sandbox.form import Form
from service.lab.sandbox.payment_intents import PaymentIntents

# Stripe releases a card's reservation after seven days.
AUTHORISATION_LIVES_S = 7 * 86400
# The batch size of one call; a run with more reservations calls again.
EXPIRED_AT_ONCE = 1000


class BadAct(ValueError):
    """The act cannot be parsed; the text gives the reason."""


class Dashboard:
    """`POST /_dashboard {"act": .., "payment_intent": .., ..}`: the answer is the changed object."""

    def __init__(self, intents: PaymentIntents) -> None:
        self._intents = intents
        self._acts: Mapping[str, Callable[[BooksPage, dict[str, Any]], Object]] = {
            "refund": self._refund,
            "capture": self._capture,
            "cancel": self._cancel,
            "pay": self._pay,
            "charge": self._charge,
            "fail_refund": lambda page, given: refunds.fail(page, _id(given, "refund")),
            "dispute": self._dispute,
            "close_dispute": lambda page, given: disputes.close(
                page, _id(given, "dispute"), is_won=given.get("won") is True
            ),
            "expire": self._expire,
        }

    def read(self, encoded: bytes) -> Callable[[BooksPage], Object]:
        """The act of a JSON body, as a function on a page; raises BadAct."""
        try:
            given = json.loads(encoded)
        except ValueError as error:
            raise BadAct("the body is not JSON") from error
        if not isinstance(given, dict) or given.get("act") not in self._acts:
            raise BadAct(f"act must be one of {', '.join(self._acts)}")
        act = self._acts[given["act"]]
        return lambda page: act(page, given)

    def _refund(self, page: BooksPage, given: dict[str, Any]) -> Object:
        form: Form = {"payment_intent": _id(given, "payment_intent")}
        return refunds.create(page, form | _amount(given, "amount"), "")

    def _capture(self, page: BooksPage, given: dict[str, Any]) -> Object:
        return self._intents.capture(
            page, _amount(given, "amount_to_capture"), _id(given, "payment_intent")
        )

    def _cancel(self, page: BooksPage, given: dict[str, Any]) -> Object:
        return self._intents.cancel(page, {}, _id(given, "payment_intent"))

    def _pay(self, page: BooksPage, given: dict[str, Any]) -> Object:
        """A payer with the client secret pays the same intent with another card."""
        form = {"payment_method": given.get("payment_method", "pm_card_visa")}
        return self._intents.confirm(page, form, _id(given, "payment_intent"))

    def _charge(self, page: BooksPage, given: dict[str, Any]) -> Object:
        """Another program on the same account creates a charge without our metadata."""
        form: Form = {
            "amount": given.get("amount", 1000),
            "currency": given.get("currency", "usd"),
            "payment_method": "pm_card_visa",
            "confirm": True,
            "metadata": given.get("metadata", {}),
        }
        return self._intents.create(page, form, "")

    def _dispute(self, page: BooksPage, given: dict[str, Any]) -> Object:
        amount = _amount(given, "amount").get("amount")
        reason = str(given.get("reason", "fraudulent"))
        return disputes.open_dispute(
            page, _id(given, "payment_intent"), amount=amount, reason=reason
        )

    def _expire(self, page: BooksPage, given: dict[str, Any]) -> Object:
        """Release reservations older than `older_than_s` (default 7 days), so that a test can skip time."""
        older_than_s = given.get("older_than_s", AUTHORISATION_LIVES_S)
        if isinstance(older_than_s, bool) or not isinstance(older_than_s, (int, float)):
            raise BadAct("older_than_s must be a number")
        return {"expired": expire_authorisations(page, self._intents, older_than_s)}


def expire_authorisations(
    page: BooksPage, intents: PaymentIntents, older_than_s: float
) -> list[str]:
    """Cancel older reservations; returns the ids of their PaymentIntents."""
    given = {
        "created": {"lte": int(time() - older_than_s)},
        "limit": EXPIRED_AT_ONCE,
        "status": "requires_capture",
    }
    found, _ = page.listed("payment_intent", given)
    for intent in found:
        intents.cancel(page, {"cancellation_reason": "automatic"}, intent["id"])
    return [intent["id"] for intent in found]


def _id(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not re.fullmatch(r"\w{1,100}", value):
        raise BadAct(f"{name} is missing")
    return value


def _amount(given: Mapping[str, Any], name: str) -> dict[str, int]:
    amount = given.get("amount")
    if amount is None:
        return {}
    if isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
        raise invalid("This value must be greater than or equal to 1.", param="amount")
    return {name: amount}
