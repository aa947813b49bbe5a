"""PaymentIntents: the states of one payment, and the only place where a charge is made."""

from __future__ import annotations

import secrets
from time import time
from typing import Any

from service.lab.sandbox import cards, currencies, form
from service.lab.sandbox.books import BooksPage, Object, new_id
from service.lab.sandbox.cards import Card, Refusal
from service.lab.sandbox.errors import StripeError, invalid, unexpected_state
from service.lab.sandbox.form import Form
from service.lab.sandbox.objects import LIST_CHECKS, expanded, listing, load

_CONFIRM_ONLY = {
    "expand": form.strings,
    "error_on_requires_action": form.boolean,
    "off_session": form.anything,
    "return_url": form.text,
    "use_stripe_sdk": form.boolean,
    "payment_method_options": form.anything,
    "receipt_email": form.text,
    "setup_future_usage": form.text,
}
CREATE_CHECKS = _CONFIRM_ONLY | {
    "amount": form.amount,
    "currency": form.currency,
    "confirm": form.boolean,
    "payment_method": form.text,
    "capture_method": form.one_of("automatic", "automatic_async", "manual"),
    "confirmation_method": form.one_of("automatic", "manual"),
    "customer": form.text,
    "description": form.text,
    "metadata": form.metadata,
    "statement_descriptor": form.text,
    "statement_descriptor_suffix": form.text,
    "automatic_payment_methods": form.anything,
    "payment_method_types": form.strings,
}
CONFIRM_CHECKS = _CONFIRM_ONLY | {"payment_method": form.text}
CAPTURE_CHECKS = {
    "amount_to_capture": form.amount,
    "final_capture": form.boolean,
    "metadata": form.metadata,
    "expand": form.strings,
}
CANCEL_CHECKS = {
    "cancellation_reason": form.one_of(
        "duplicate", "fraudulent", "requested_by_customer", "abandoned"
    ),
    "expand": form.strings,
}
RETRIEVE_CHECKS = {"expand": form.strings, "client_secret": form.text}
LIST_INTENTS_CHECKS = LIST_CHECKS | {"customer": form.text}

_CONFIRMABLE = ("requires_payment_method", "requires_confirmation", "requires_action")
_AUTHENTICATION_FAILED = Refusal(
    "payment_intent_authentication_failure",
    "The provided PaymentMethod has failed authentication.",
)
_AUTHENTICATION_REQUIRED = Refusal(
    "authentication_required",
    "Your card was declined. This transaction requires authentication.",
    "authentication_required",
)


class PaymentIntents:
    """The API's operations on a PaymentIntent; each method runs inside one transaction."""

    def __init__(self, *, hosted_url: str) -> None:
        self._hosted_url = hosted_url

    def create(self, page: BooksPage, given: Form, _path_id: str) -> Object:
        """Create it; move money only when the call has `confirm=true`."""
        currencies.check_charge(given["amount"], given["currency"])
        if given.get("payment_method"):
            cards.find(given["payment_method"])
        intent = _new_intent(given)
        if given.get("confirm") and not intent["payment_method"]:
            raise unexpected_state(_NO_METHOD, intent)
        page.add(intent)
        if given.get("confirm"):
            self._attempt(page, intent, given)
        return expanded(page, intent, given)

    def confirm(self, page: BooksPage, given: Form, intent_id: str) -> Object:
        """Charge (or reserve) the amount, once."""
        intent = load(page, "payment_intent", intent_id, param="intent")
        if intent["status"] not in _CONFIRMABLE:
            raise unexpected_state(
                "You cannot confirm this PaymentIntent because it has a status of"
                f" {intent['status']}.",
                intent,
            )
        if given.get("payment_method"):
            cards.find(given["payment_method"])
            intent["payment_method"] = given["payment_method"]
        if not intent["payment_method"]:
            raise unexpected_state(_NO_METHOD, intent)
        self._attempt(page, intent, given)
        return expanded(page, intent, given)

    def capture(self, page: BooksPage, given: Form, intent_id: str) -> Object:
        """Capture the reserved amount, or part of it; the rest is released."""
        intent = load(page, "payment_intent", intent_id, param="intent")
        if intent["status"] != "requires_capture":
            raise unexpected_state(
                "This PaymentIntent could not be captured because it has a status of"
                f" {intent['status']}.",
                intent,
            )
        capturable: int = intent["amount_capturable"]
        amount = given.get("amount_to_capture", capturable)
        currencies.check_part(amount, intent["currency"], param="amount_to_capture")
        if amount > capturable:
            raise invalid(
                "The amount to capture is greater than the amount that can be captured.",
                code="amount_too_large",
                param="amount_to_capture",
                payment_intent=intent,
            )
        charge = load(page, "charge", intent["latest_charge"])
        charge |= {"captured": True, "amount_captured": amount}
        page.update(charge)
        intent |= {"status": "succeeded", "amount_received": amount, "amount_capturable": 0}
        intent["metadata"] |= given.get("metadata", {})
        page.update(intent)
        page.move("capture", intent, amount)
        page.announce("charge.captured", charge)
        page.announce("payment_intent.succeeded", intent)
        return expanded(page, intent, given)

    def cancel(self, page: BooksPage, given: Form, intent_id: str) -> Object:
        """End it permanently; a reservation is released."""
        intent = load(page, "payment_intent", intent_id, param="intent")
        if intent["status"] not in (*_CONFIRMABLE, "requires_capture"):
            raise unexpected_state(
                "You cannot cancel this PaymentIntent because it has a status of"
                f" {intent['status']}.",
                intent,
            )
        if intent["amount_capturable"]:
            _release(page, intent)
        intent |= {
            "status": "canceled",
            "amount_capturable": 0,
            "canceled_at": int(time()),
            "cancellation_reason": given.get("cancellation_reason"),
            "next_action": None,
        }
        page.update(intent)
        page.announce("payment_intent.canceled", intent)
        return expanded(page, intent, given)

    def retrieve(self, page: BooksPage, given: Form, intent_id: str) -> Object:
        return expanded(page, load(page, "payment_intent", intent_id, param="intent"), given)

    def list(self, page: BooksPage, given: Form, _path_id: str) -> Object:
        return listing(page, "payment_intent", given)

    def complete_action(self, page: BooksPage, intent_id: str, *, is_proven: bool) -> Object:
        """The payer's bank decides after the challenge: charge, or refuse."""
        intent = load(page, "payment_intent", intent_id)
        if intent["status"] != "requires_action":
            raise unexpected_state("This PaymentIntent waits for no action.", intent)
        card = cards.find(intent["payment_method"])
        refusal = card.refusal if is_proven else _AUTHENTICATION_FAILED
        if refusal is None:
            _succeed(page, intent)
        else:
            _fail(page, intent, card, refusal)
        return intent

    def _attempt(self, page: BooksPage, intent: Object, given: Form) -> None:
        """Ask the card. Raises StripeError 402, after recording the attempt, when it refuses."""
        card = cards.find(intent["payment_method"])
        if card.needs_action and not given.get("error_on_requires_action"):
            self._ask_for_action(page, intent, given)
            return
        refusal = _AUTHENTICATION_REQUIRED if card.needs_action else card.refusal
        if refusal is None:
            _succeed(page, intent)
            return
        error = _fail(page, intent, card, refusal)
        raise StripeError(402, error.pop("type"), error.pop("message"), **error)

    def _ask_for_action(self, page: BooksPage, intent: Object, given: Form) -> None:
        where = {
            # As with Stripe's own URLs, every holder of it can act for the payer.
            "url": f"{self._hosted_url}/_authenticate/{intent['id']}"
            f"?payment_intent_client_secret={intent['client_secret']}",
            "return_url": given.get("return_url"),
        }
        intent |= {
            "status": "requires_action",
            "next_action": {"type": "redirect_to_url", "redirect_to_url": where},
        }
        page.update(intent)
        page.announce("payment_intent.requires_action", intent)


_NO_METHOD = (
    "You cannot confirm this PaymentIntent because it's missing a payment method."
    " Update the PaymentIntent with a payment method and then confirm it again."
)


def _new_intent(given: Form) -> Object:
    intent_id = new_id("pi")
    method = given.get("payment_method")
    return {
        "id": intent_id,
        "object": "payment_intent",
        "amount": given["amount"],
        "amount_capturable": 0,
        "amount_received": 0,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": given.get("capture_method", "automatic"),
        "client_secret": f"{intent_id}_secret_{secrets.token_hex(12)}",
        "confirmation_method": given.get("confirmation_method", "automatic"),
        "created": int(time()),
        "currency": given["currency"],
        "customer": given.get("customer"),
        "description": given.get("description"),
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": given.get("metadata", {}),
        "next_action": None,
        "payment_method": method,
        "payment_method_types": given.get("payment_method_types", ["card"]),
        "status": "requires_confirmation" if method else "requires_payment_method",
    }


def _succeed(page: BooksPage, intent: Object) -> None:
    is_captured = intent["capture_method"] != "manual"
    amount = intent["amount"]
    charge = _new_charge(intent) | {
        "captured": is_captured,
        "amount_captured": amount if is_captured else 0,
        "paid": True,
        "status": "succeeded",
        "outcome": {"network_status": "approved_by_network", "type": "authorized"},
    }
    page.add(charge)
    intent |= {
        "status": "succeeded" if is_captured else "requires_capture",
        "amount_received": amount if is_captured else 0,
        "amount_capturable": 0 if is_captured else amount,
        "latest_charge": charge["id"],
        "last_payment_error": None,
        "next_action": None,
    }
    page.update(intent)
    page.move("charge" if is_captured else "authorize", intent, amount)
    happened = "succeeded" if is_captured else "amount_capturable_updated"
    page.announce(f"payment_intent.{happened}", intent)


def _release(page: BooksPage, intent: Object) -> None:
    """Release the reservation; Stripe records that on the charge as a refund of the whole amount."""
    charge = load(page, "charge", intent["latest_charge"])
    charge |= {"refunded": True, "amount_refunded": charge["amount"]}
    page.update(charge)
    page.move("void", intent, intent["amount_capturable"])
    page.announce("charge.refunded", charge)


def _fail(page: BooksPage, intent: Object, card: Card, refusal: Refusal) -> dict[str, Any]:
    """Record the refusal; return the fields of Stripe's error object."""
    charge = _new_charge(intent) | {
        "status": "failed",
        "failure_code": refusal.code,
        "failure_message": refusal.message,
        "outcome": {"network_status": "declined_by_network", "type": "issuer_declined"},
    }
    page.add(charge)
    error = {
        "type": "card_error",
        "code": refusal.code,
        "message": refusal.message,
        "charge": charge["id"],
        "payment_method": card.as_payment_method(intent["payment_method"]),
    }
    if refusal.decline_code:
        error["decline_code"] = refusal.decline_code
    # As with Stripe, a refused method is removed: the next attempt must supply one.
    intent |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "last_payment_error": error,
        "latest_charge": charge["id"],
        "next_action": None,
    }
    page.update(intent)
    page.announce("payment_intent.payment_failed", intent)
    return error | {"payment_intent": intent}


def _new_charge(intent: Object) -> Object:
    return {
        "id": new_id("ch"),
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": 0,
        "amount_refunded": 0,
        "captured": False,
        "created": int(time()),
        "currency": intent["currency"],
        "customer": intent["customer"],
        "disputed": False,
        "failure_code": None,
        "failure_message": None,
        "livemode": False,
        "metadata": intent["metadata"],
        "paid": False,
        "payment_intent": intent["id"],
        "payment_method": intent["payment_method"],
        "refunded": False,
    }
