"""What Stripe's answers about PaymentIntents mean. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from service.providers import stripe_answers as answers
from service.providers import stripe_json
from service.providers.base import Charge, Outcome, OutcomeKind, PayerAction, ProviderCharge, Stage
from service.providers.stripe_answers import Object, mismatch, word
from service.providers.transport import Answer


def of_answer(answer: Answer, charge: Charge, *, is_first: bool = False) -> Outcome:
    """What an answer about our charge means, of any status; `is_first` as for `answers.of_error`."""
    if answer.status == 200:
        return of_intent(answers.parse(answer), charge)
    outcome = answers.of_error(answer, provider_ref=charge.provider_ref, is_first=is_first)
    refused = answers.error_of(answer).get("payment_intent")
    if outcome.kind is not OutcomeKind.DECLINED or not isinstance(refused, dict):
        return outcome
    difference = answers.difference(refused, charge, kind="payment_intent")
    if difference is not None:
        return mismatch(difference, provider_ref=charge.provider_ref)
    return replace(outcome, provider_ref=refused["id"])


def of_intent(intent: Object, charge: Charge) -> Outcome:
    """What became of our charge, after comparing that it is ours."""
    difference = answers.difference(intent, charge, kind="payment_intent")
    if difference is not None:
        return mismatch(difference, provider_ref=charge.provider_ref)
    return _by_status(intent)


def of_prepared(intent: Object, charge: Charge) -> Outcome:
    """As `of_intent`, when nothing was to move yet: a success at this point is a lie."""
    difference = answers.difference(intent, charge, kind="payment_intent")
    if difference is not None:
        return mismatch(difference)
    if intent.get("status") == "requires_confirmation":
        return Outcome(OutcomeKind.PENDING, Stage.ANSWERED, provider_ref=intent["id"])
    # With its reference: it is looked up from now on, and no other is made.
    return mismatch(f"prepared, but {word(intent.get('status'))}", provider_ref=intent["id"])


def of_captured(intent: Object, charge: Charge, amount_minor: int) -> Outcome:
    """As `of_intent`, after a capture of `amount_minor`: another amount taken is a mismatch."""
    outcome = of_intent({"amount_received": amount_minor, **intent}, charge)
    if outcome.kind is OutcomeKind.SUCCEEDED and outcome.amount_received != amount_minor:
        return mismatch("amount_received differs", provider_ref=charge.provider_ref)
    return outcome


def of_listed(intent: Object) -> ProviderCharge:
    """A PaymentIntent as the provider's books show it; raises Garbage."""
    return answers.listed(intent, _by_status)


def _by_status(intent: Object) -> Outcome:
    reading = _STATUSES.get(str(intent.get("status")))
    if reading is None:
        return mismatch(f"status {word(intent.get('status'))} is none of Stripe's")
    return replace(reading(intent), provider_ref=intent["id"])


def _succeeded(intent: Object) -> Outcome:
    received = intent.get("amount_received")
    if received is None and intent.get("capture_method") != "manual":
        received = intent["amount"]  # Nothing but the whole can have been taken.
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
        # We always give a method along: this is a state that ours cannot be in.
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


_STATUSES: Mapping[str, Callable[[Object], Outcome]] = {
    "succeeded": _succeeded,
    "requires_capture": _reserved,
    "requires_payment_method": _waiting_for_method,
    "requires_action": _waiting_for_payer,
    "processing": lambda _: Outcome(OutcomeKind.PENDING, Stage.ANSWERED),
    # Never confirmed, as the provider itself says: proof that nothing moved by then.
    "requires_confirmation": lambda _: Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED),
    "canceled": lambda _: Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED, error="canceled"),
}
