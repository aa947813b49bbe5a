"""What Stripe's answers mean: the one place where its statuses and errors become our words. Pure.

Nothing in an answer is believed for being well-formed: what differs from what we asked for is a
mismatch, and a mismatch is doubt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from service.providers.base import (
    Charge,
    Decline,
    Outcome,
    OutcomeKind,
    ProviderCharge,
    Refund,
    Stage,
)
from service.providers.transport import Answer

Object = Mapping[str, Any]

# References become part of addresses: one that could leave its place in a path is none.
_REFERENCE = re.compile(r"[A-Za-z0-9_]{1,100}")
_WORD = re.compile(r"[A-Za-z0-9_]{1,64}")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff]+")
# The bank's no, whatever type of error it is wrapped in.
_DECLINED = "card_declined"
MESSAGE_LENGTH_MAX = 200
# A provider that asks for more than this wants its operator, not a later retry.
RETRY_AFTER_MAX_S = 300.0


class Garbage(ValueError):
    """The answer cannot be read as what it ought to be."""


def parse(answer: Answer) -> Object:
    """The JSON object of an answer; raises Garbage."""
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise Garbage(f"status {answer.status} with a body that is no JSON") from error
    if not isinstance(found, dict):
        raise Garbage(f"status {answer.status} with JSON that is no object")
    return found


# --- PaymentIntents -------------------------------------------------------------------------


def of_intent(intent: Object, charge: Charge) -> Outcome:
    """What became of our charge, after comparing that it is ours."""
    difference = _difference(intent, charge)
    if difference is not None:
        return mismatch(difference, provider_ref=charge.provider_ref)
    return _by_status(intent)


def of_prepared(intent: Object, charge: Charge) -> Outcome:
    """As `of_intent`, when nothing was to move yet: a success at this point is a lie."""
    difference = _difference(intent, charge)
    if difference is None and intent.get("status") == "requires_confirmation":
        return Outcome(OutcomeKind.PENDING, Stage.ANSWERED, provider_ref=intent["id"])
    return mismatch(difference or f"prepared, but {_word(intent.get('status'))}")


def of_captured(intent: Object, charge: Charge, amount_minor: int) -> Outcome:
    """As `of_intent`, after a capture of `amount_minor`: another amount taken is a mismatch."""
    outcome = of_intent({"amount_received": amount_minor, **intent}, charge)
    if outcome.kind is OutcomeKind.SUCCEEDED and outcome.amount_received != amount_minor:
        return mismatch("amount_received differs", provider_ref=charge.provider_ref)
    return outcome


def of_charge_listed(intent: Object) -> ProviderCharge:
    """A PaymentIntent as the provider's books show it; raises Garbage."""
    amount, created = intent.get("amount"), intent.get("created")
    if type(amount) is not int or type(created) is not int or not _is_reference(intent.get("id")):
        raise Garbage("a listed PaymentIntent without id, amount or time")
    metadata = _metadata(intent)
    return ProviderCharge(
        provider_ref=intent["id"],
        payment_id=metadata.get("payment_id"),
        merchant_id=metadata.get("merchant_id"),
        amount_minor=amount,
        currency=_word(intent.get("currency")),
        outcome=_by_status(intent),
        created_at=datetime.fromtimestamp(created, UTC),
    )


def _difference(intent: Object, charge: Charge) -> str | None:
    """The first thing in which the PaymentIntent is not the one that we asked for."""
    expected = (
        (intent.get("object"), "payment_intent", "object"),
        (_metadata(intent).get("payment_id"), charge.payment_id, "payment_id"),
        (intent.get("amount"), charge.amount_minor, "amount"),
        (intent.get("currency"), charge.currency, "currency"),
        (intent.get("id"), charge.provider_ref or intent.get("id"), "id"),
    )
    for found, wanted, name in expected:
        # The type as well: to Python, true is 1 and 1.0 is 1.
        if type(found) is not type(wanted) or found != wanted:
            return f"{name} differs"
    return None if _is_reference(intent["id"]) else "id is no reference"


def _by_status(intent: Object) -> Outcome:
    reading = _STATUSES.get(str(intent.get("status")))
    if reading is None:
        return mismatch(f"status {_word(intent.get('status'))} is none of Stripe's")
    return replace(reading(intent), provider_ref=intent["id"])


def _succeeded(intent: Object) -> Outcome:
    received = intent.get("amount_received", intent["amount"])
    if not _is_part(received, intent["amount"]):
        return mismatch("amount_received is not within the amount")
    return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, amount_received=received)


def _reserved(intent: Object) -> Outcome:
    capturable = intent.get("amount_capturable", intent["amount"])
    if not _is_part(capturable, intent["amount"]):
        return mismatch("amount_capturable is not within the amount")
    return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, amount_capturable=capturable)


def _waiting_for_method(intent: Object) -> Outcome:
    error = intent.get("last_payment_error")
    if not isinstance(error, dict):
        # We always give a method along: this is a state that ours cannot be in.
        return mismatch("no payment method, and none was refused")
    return Outcome(OutcomeKind.DECLINED, Stage.ANSWERED, decline=_decline(error))


def _waiting_for_payer(intent: Object) -> Outcome:
    action = intent.get("next_action")
    return Outcome(
        OutcomeKind.PENDING,
        Stage.ANSWERED,
        next_action=action if isinstance(action, dict) else {"type": "unknown"},
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


# --- Refunds --------------------------------------------------------------------------------

_REFUND_STATUSES = {
    "succeeded": OutcomeKind.SUCCEEDED,
    "pending": OutcomeKind.PENDING,
    "requires_action": OutcomeKind.PENDING,
    "failed": OutcomeKind.DECLINED,
    "canceled": OutcomeKind.DECLINED,
}


def of_refund(found: Object, refund: Refund) -> Outcome:
    """What became of our refund, after comparing that it is ours."""
    expected = (
        (found.get("object"), "refund", "object"),
        (_metadata(found).get("refund_id"), refund.refund_id, "refund_id"),
        (found.get("payment_intent"), refund.provider_ref, "payment_intent"),
        (found.get("amount"), refund.amount_minor, "amount"),
        (found.get("currency"), refund.currency, "currency"),
    )
    for got, wanted, name in expected:
        if type(got) is not type(wanted) or got != wanted:
            return mismatch(f"{name} differs")
    kind = _REFUND_STATUSES.get(str(found.get("status")))
    if kind is None or not _is_reference(found.get("id")):
        return mismatch("the refund's status or id is none of Stripe's")
    decline = None
    if kind is OutcomeKind.DECLINED:
        code = _word(found.get("failure_reason") or found["status"])
        decline = Decline(code, "The refund failed.")
    return Outcome(kind, Stage.ANSWERED, provider_ref=found["id"], decline=decline)


def is_for(found: Object, refund: Refund) -> bool:
    """Whether a listed refund is ours by its metadata."""
    return _metadata(found).get("refund_id") == refund.refund_id


# --- Errors ---------------------------------------------------------------------------------


def of_error(answer: Answer, charge: Charge | None = None, *, is_first: bool = False) -> Outcome:
    """What an answer other than 200 means; `is_first`: nothing can have moved before this call.

    Only then is "this request is invalid" a definite no. After that it may just as well mean that
    the money has already moved.
    """
    status, error = answer.status, _error(answer)
    if status == 402 and (error.get("type") == "card_error" or error.get("code") == _DECLINED):
        return _declined(error, charge)
    is_refusal = is_first and 400 <= status < 500 and status not in (401, 403, 409, 429)
    if is_refusal and error.get("type") == "invalid_request_error":
        return Outcome(OutcomeKind.DECLINED, Stage.ANSWERED, decline=_decline(error))
    kind = OutcomeKind.NOT_EXECUTED if status in (401, 403, 429) else OutcomeKind.UNKNOWN
    named = " ".join(_word(error[name]) for name in ("type", "code") if error.get(name))
    return Outcome(
        kind,
        Stage.ANSWERED,
        provider_ref=charge.provider_ref if charge else None,
        error=_error_word(status),
        error_detail=f"status {status} {named}".strip(),
        retry_after_s=_retry_after_s(answer),
    )


def _declined(error: Object, charge: Charge | None) -> Outcome:
    intent = error.get("payment_intent")
    provider_ref = charge.provider_ref if charge else None
    if isinstance(intent, dict) and charge is not None:
        difference = _difference(intent, charge)
        if difference is not None:
            return mismatch(difference, provider_ref=provider_ref)
        provider_ref = intent["id"]
    return Outcome(
        OutcomeKind.DECLINED, Stage.ANSWERED, provider_ref=provider_ref, decline=_decline(error)
    )


def _decline(error: Object) -> Decline:
    """The provider's own code, and a message without what could harm a log or a page."""
    code = error.get("decline_code") or error.get("code") or error.get("type")
    message = _UNPRINTABLE.sub(" ", str(error.get("message") or "The payment was declined."))
    return Decline(_word(code), message[:MESSAGE_LENGTH_MAX])


def _error(answer: Answer) -> Object:
    try:
        error = parse(answer).get("error")
    except Garbage:
        return {}
    return error if isinstance(error, dict) else {}


def _error_word(status: int) -> str:
    if status in (409, 429):
        return f"http_{status}"
    if 400 <= status < 600:
        return "http_4xx" if status < 500 else "http_5xx"
    return "garbage"


def _retry_after_s(answer: Answer) -> float | None:
    asked = answer.headers.get("Retry-After", "")
    # The other form is a date, which our clock need not agree with.
    return min(float(asked), RETRY_AFTER_MAX_S) if re.fullmatch(r"\d{1,9}", asked) else None


# --- Small readings -------------------------------------------------------------------------


def mismatch(detail: str, *, provider_ref: str | None = None) -> Outcome:
    """The answer is whole and is not about what we asked."""
    return Outcome(
        OutcomeKind.UNKNOWN,
        Stage.ANSWERED,
        provider_ref=provider_ref,
        error="mismatch",
        error_detail=detail,
    )


def _metadata(found: Object) -> Mapping[str, str]:
    metadata = found.get("metadata")
    if not isinstance(metadata, dict):
        return {}
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


def _is_reference(found: Any) -> bool:
    return isinstance(found, str) and _REFERENCE.fullmatch(found) is not None


def _is_part(found: Any, whole: int) -> bool:
    return type(found) is int and 0 < found <= whole


def _word(found: Any) -> str:
    return found if isinstance(found, str) and _WORD.fullmatch(found) else "unreadable"
