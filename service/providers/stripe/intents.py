"""Translates Stripe's answers about PaymentIntents into Outcomes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from service.providers.base import (
    KEY_USED,
    Charge,
    Outcome,
    OutcomeKind,
    PayerAction,
    ProviderCharge,
    Stage,
)
from service.providers.http.transport import ProviderAnswer
from service.providers.stripe import answers
from service.providers.stripe import json as stripe_json
from service.providers.stripe.answers import Object, mismatch, word

_MAY_HAVE_MOVED = frozenset({OutcomeKind.SUCCEEDED, OutcomeKind.PENDING})


def of_answer(answer: ProviderAnswer, charge: Charge, *, is_first: bool = False) -> Outcome:
    """The outcome of an answer of any status about our charge; `is_first` as in `answers.of_error`."""
    if answer.status == 200:
        return of_intent(answers.parse(answer), charge)
    outcome = answers.of_error(answer, provider_ref=charge.provider_ref, is_first=is_first)
    refused = answers.error_of(answer).get("payment_intent")
    if outcome.kind is not OutcomeKind.DECLINED or not isinstance(refused, dict):
        return outcome
    difference = answers.difference(refused, charge, kind="payment_intent")
    if difference is None and (
        _holds_money(refused) or _by_status(refused).kind in _MAY_HAVE_MOVED
    ):
        # A decline beside a charge that moved, or still can: only the books know which is true.
        difference = f"declined, but {word(refused.get('status'))}"
    if difference is not None:
        return mismatch(difference, provider_ref=charge.provider_ref)
    return replace(outcome, provider_ref=refused["id"])


def of_intent(intent: Object, charge: Charge) -> Outcome:
    """The outcome of our charge, after a check that the object is ours."""
    difference = answers.difference(intent, charge, kind="payment_intent")
    if difference is not None:
        return mismatch(difference, provider_ref=charge.provider_ref)
    return _by_status(intent)


def of_prepared(intent: Object, charge: Charge) -> Outcome:
    """Like `of_intent`, before any money may move: a success at this point is a mismatch."""
    difference = answers.difference(intent, charge, kind="payment_intent")
    if difference is not None:
        return mismatch(difference)
    if answers.names_another(intent, charge):
        # Replayed without a comparison of the parameters: the same proof of an earlier call of ours.
        return Outcome(
            OutcomeKind.UNKNOWN,
            Stage.ANSWERED,
            error=KEY_USED,
            error_detail="made for another payment",
        )
    if intent.get("status") == "requires_confirmation" and not _holds_money(intent):
        return Outcome(OutcomeKind.PENDING, Stage.ANSWERED, provider_ref=intent["id"])
    # Keep its reference: look-ups use it from now on, and no other intent is made.
    return mismatch(f"prepared, but {word(intent.get('status'))}", provider_ref=intent["id"])


def of_captured(intent: Object, charge: Charge, amount_minor: int) -> Outcome:
    """Like `of_intent`, after a capture of `amount_minor`: another captured amount is a mismatch."""
    outcome = of_intent({"amount_received": amount_minor, **intent}, charge)
    if outcome.kind is OutcomeKind.SUCCEEDED and outcome.amount_received != amount_minor:
        return mismatch("amount_received differs", provider_ref=charge.provider_ref)
    return outcome


def of_canceled(answer: ProviderAnswer, charge: Charge) -> Outcome:
    """Like `of_answer`, after a cancel: no bank is asked, so a decline says nothing of the money."""
    return answers.of_release(of_answer(answer, charge), charge)


def of_listed(intent: Object) -> ProviderCharge:
    """A PaymentIntent in the provider's books; raises Garbage."""
    return answers.listed(intent, _by_status)


def _by_status(intent: Object) -> Outcome:
    reading = _STATUSES.get(str(intent.get("status")))
    if reading is None:
        return mismatch(f"status {word(intent.get('status'))} is none of Stripe's")
    if intent["status"] not in _WITH_MONEY and _holds_money(intent):
        # Believed, it would be charged again, or ended although money is held.
        return mismatch(f"{intent['status']}, but with money", provider_ref=intent["id"])
    return replace(reading(intent), provider_ref=intent["id"])


def _holds_money(intent: Object) -> bool:
    return any(intent.get(name) for name in ("amount_received", "amount_capturable"))


def _succeeded(intent: Object) -> Outcome:
    received = intent.get("amount_received")
    if received is None and intent.get("capture_method") != "manual":
        received = intent["amount"]  # Only the whole amount can have been captured.
    if received is None or not answers.is_part(received, intent["amount"]):
        return mismatch("amount_received is not within the amount")
    return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, amount_received=received)


def _reserved(intent: Object) -> Outcome:
    capturable = intent.get("amount_capturable", intent["amount"])
    if not answers.is_part(capturable, intent["amount"]):
        return mismatch("amount_capturable is not within the amount")
    return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, amount_capturable=capturable)


def _waiting_for_method(intent: Object) -> Outcome:
    error = intent.get("last_payment_error")
    if not isinstance(error, dict):
        # Our intents always have a method: they cannot be in this state.
        return mismatch("no payment method, and none was refused")
    return Outcome(OutcomeKind.DECLINED, Stage.ANSWERED, decline=answers.decline(error))


def _waiting_for_payer(intent: Object) -> Outcome:
    action = stripe_json.next_action(intent.get("next_action"))
    secret = stripe_json.client_secret(intent.get("client_secret"))
    return Outcome(
        OutcomeKind.PENDING,
        Stage.ANSWERED,
        next_action=stripe_json.without_secrets(action),
        payer_action=PayerAction(next_action=action, client_secret=secret),
    )


_WITH_MONEY = frozenset({"succeeded", "requires_capture"})
_STATUSES: Mapping[str, Callable[[Object], Outcome]] = {
    "succeeded": _succeeded,
    "requires_capture": _reserved,
    "requires_payment_method": _waiting_for_method,
    "requires_action": _waiting_for_payer,
    "processing": lambda _: Outcome(OutcomeKind.PENDING, Stage.ANSWERED),
    # The provider itself says that it was never confirmed: proof that no money moved until now.
    "requires_confirmation": lambda _: Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED),
    "canceled": lambda _: Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED, error="canceled"),
}
