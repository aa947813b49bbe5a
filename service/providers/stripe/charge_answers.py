"""Translates Stripe's answers about Charges into Outcomes. Pure."""

from __future__ import annotations

from dataclasses import replace

from service.providers.base import Charge, Outcome, OutcomeKind, ProviderCharge, Stage
from service.providers.http.transport import ProviderAnswer
from service.providers.stripe import answers
from service.providers.stripe.answers import Object, mismatch, word


def of_answer(answer: ProviderAnswer, charge: Charge, *, is_first: bool = False) -> Outcome:
    """The outcome of an answer of any status about our charge; `is_first` as in `answers.of_error`."""
    if answer.status == 200:
        return of_charge(answers.parse(answer), charge)
    outcome = answers.of_error(answer, provider_ref=charge.provider_ref, is_first=is_first)
    refused = answers.error_of(answer).get("charge")
    if outcome.kind is OutcomeKind.DECLINED and answers.is_reference(refused):
        return replace(outcome, provider_ref=refused)
    return outcome


def of_charge(found: Object, charge: Charge) -> Outcome:
    """The outcome of our charge, after a check that the object is ours."""
    difference = answers.difference(found, charge, kind="charge")
    if difference is not None:
        return mismatch(difference, provider_ref=charge.provider_ref)
    return _by_status(found)


def of_captured(found: Object, charge: Charge, amount_minor: int) -> Outcome:
    """Like `of_charge`, after a capture of `amount_minor`: another captured amount is a mismatch."""
    outcome = of_charge(found, charge)
    if outcome.kind is OutcomeKind.SUCCEEDED and outcome.amount_received != amount_minor:
        return mismatch("amount_captured differs", provider_ref=charge.provider_ref)
    return outcome


def of_released(found: Object, charge: Charge) -> Outcome:
    """The refund that released all of our charge: `not_executed` with error "canceled"."""
    expected = (
        ("object", "refund"),
        ("charge", charge.provider_ref),
        ("amount", charge.amount_minor),
        ("currency", charge.currency),
        ("status", "succeeded"),
    )
    difference = answers.first_difference(found, expected)
    if difference is not None:
        return mismatch(difference, provider_ref=charge.provider_ref)
    return _canceled(charge.provider_ref)


def of_listed(found: Object) -> ProviderCharge | None:
    """A charge in the provider's books; raises Garbage. None: it belongs to a PaymentIntent.

    Such charges have a copy of our metadata under another reference and would look like second ones.
    """
    if found.get("payment_intent") is not None:
        return None
    return answers.listed(found, _by_status)


def _by_status(found: Object) -> Outcome:
    reference = found["id"]
    match found.get("status"):
        case "succeeded":
            return replace(_paid(found), provider_ref=reference)
        case "pending":
            return Outcome(OutcomeKind.PENDING, Stage.ANSWERED, provider_ref=reference)
        case "failed":
            return _failed(found)
    return mismatch(f"status {word(found.get('status'))} is none of Stripe's")


def _paid(found: Object) -> Outcome:
    """Captured, reserved or released: Stripe calls all three succeeded."""
    if found.get("captured") is True:
        if not answers.is_part(found.get("amount_captured"), found["amount"]):
            return mismatch("amount_captured is not within the amount")
        received: int = found["amount_captured"]
        return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, amount_received=received)
    if found.get("captured") is not False:
        return mismatch("captured is neither true nor false")
    if found.get("refunded") is True:
        return _canceled(found["id"])
    if found.get("refunded") is False and found.get("amount_refunded") == 0:
        return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, amount_capturable=found["amount"])
    return mismatch("neither reserved nor released")


def _canceled(reference: str | None) -> Outcome:
    return Outcome(
        OutcomeKind.NOT_EXECUTED, Stage.ANSWERED, provider_ref=reference, error="canceled"
    )


def _failed(found: Object) -> Outcome:
    judged = found.get("outcome")
    reason = None
    if isinstance(judged, dict) and judged.get("type") == "issuer_declined":
        # The bank's own code; for a charge that Stripe stopped, the code would be the name of a rule.
        reason = judged.get("reason")
    error = {
        "decline_code": reason,
        "code": found.get("failure_code"),
        "message": found.get("failure_message"),
    }
    return Outcome(
        OutcomeKind.DECLINED,
        Stage.ANSWERED,
        provider_ref=found["id"],
        decline=answers.decline(error),
    )
