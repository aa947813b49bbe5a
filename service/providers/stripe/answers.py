"""Translates Stripe's statuses and errors into Outcomes, in this one place. Pure.

A well-formed answer is not believed for its form: an answer that differs from the request is a
mismatch, and a mismatch is doubt.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from service.observability import redaction
from service.providers.base import (
    KEY_USED,
    Charge,
    Outcome,
    OutcomeKind,
    ProviderCharge,
    ProviderDecline,
    Refund,
    Stage,
)
from service.providers.http.transport import ProviderAnswer
from service.providers.stripe import json as stripe_json

log = logging.getLogger(__name__)

Object = Mapping[str, Any]

# References become parts of URLs: text that could leave its path segment is not a reference.
_REFERENCE = re.compile(r"[A-Za-z0-9_]{1,100}")
_WORD = re.compile(r"[A-Za-z0-9_]{1,64}")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff]+")
# The bank's refusal, inside any type of error.
_DECLINED = "card_declined"
MESSAGE_LENGTH_MAX = 200
# A longer pause needs the provider's operator, not a later retry.
RETRY_AFTER_MAX_S = 300.0


class Garbage(ValueError):
    """The answer has not the expected form."""


def parse(answer: ProviderAnswer) -> Object:
    """The JSON object of an answer; raises Garbage."""
    try:
        found = stripe_json.read(answer.body)
    except (ValueError, RecursionError) as error:
        raise Garbage(f"status {answer.status} with a body that is no JSON") from error
    if not isinstance(found, dict):
        raise Garbage(f"status {answer.status} with JSON that is no object")
    return found


# --- Charges, in both shapes ----------------------------------------------------------------


def difference(found: Object, charge: Charge, *, kind: str) -> str | None:
    """The first field in which an object of that kind differs from the requested one."""
    expected = (
        ("object", kind),
        ("amount", charge.amount_minor),
        ("currency", charge.currency),
        ("id", charge.provider_ref or found.get("id")),
    )
    if not is_of(found, charge):
        return "payment_id differs"
    if not is_reference(found.get("id")):
        return "id is no reference"
    return first_difference(found, expected)


def is_of(found: Object, charge: Charge) -> bool:
    """Whether our metadata identifies the object as this charge.

    The digest of the client's key has the same weight as the payment's id: the row with that id
    may be lost, and the same request was then claimed again under another id.
    """
    metadata = _metadata(found)
    if metadata.get("payment_id") == charge.payment_id:
        return True
    return charge.key_digest is not None and metadata.get("key_digest") == charge.key_digest


def names_another(found: Object, charge: Charge) -> bool:
    """Whether an object under our key was made for another payment of ours."""
    return _metadata(found).get("payment_id") != charge.payment_id


def first_difference(found: Object, expected: Iterable[tuple[str, Any]]) -> str | None:
    """The first unexpected field, in words; None: all are as expected."""
    for name, wanted in expected:
        # Compare the type too: in Python, True == 1 and 1.0 == 1.
        if name not in found or type(found[name]) is not type(wanted) or found[name] != wanted:
            return f"{name} differs"
    return None


def listed(found: Object, by_status: Callable[[Object], Outcome]) -> ProviderCharge:
    """A charge in the provider's books; raises Garbage."""
    amount, created = found.get("amount"), found.get("created")
    if type(amount) is not int or type(created) is not int or not is_reference(found.get("id")):
        raise Garbage("a listed charge without id, amount or time")
    try:
        created_at = datetime.fromtimestamp(created, UTC)
    except (OverflowError, ValueError, OSError):
        raise Garbage("a listed charge from beyond the calendar") from None
    metadata = _metadata(found)
    return ProviderCharge(
        provider_ref=found["id"],
        payment_id=metadata.get("payment_id"),
        merchant_id=metadata.get("merchant_id"),
        key_digest=metadata.get("key_digest"),
        amount_minor=amount,
        currency=word(found.get("currency")),
        outcome=by_status(found),
        created_at=created_at,
    )


# --- Refunds --------------------------------------------------------------------------------


_REFUND_STATUSES = {
    "succeeded": OutcomeKind.SUCCEEDED,
    "pending": OutcomeKind.PENDING,
    "requires_action": OutcomeKind.PENDING,
    "failed": OutcomeKind.DECLINED,
    "canceled": OutcomeKind.DECLINED,
}


def of_refund(found: Object, refund: Refund, charge_field: str) -> Outcome:
    """The outcome of our refund, after a check that the object is ours."""
    expected = (
        ("object", "refund"),
        (charge_field, refund.provider_ref),
        ("amount", refund.amount_minor),
        ("currency", refund.currency),
    )
    differs = first_difference(found, expected)
    if differs is None and not is_for(found, refund):
        differs = "refund_id differs"
    if differs is not None:
        return mismatch(differs)
    kind = _REFUND_STATUSES.get(str(found.get("status")))
    if kind is None or not is_reference(found.get("id")):
        return mismatch("the refund's status or id is none of Stripe's")
    failure = None
    if kind is OutcomeKind.DECLINED:
        code = word(found.get("failure_reason") or found["status"])
        failure = ProviderDecline(code, "The refund failed.")
    return Outcome(kind, Stage.ANSWERED, provider_ref=found["id"], decline=failure)


def is_for(found: Object, refund: Refund) -> bool:
    """Whether a listed refund is ours: by its reference where that is known, else by its metadata,
    which has our refund's id or the client's key."""
    if refund.refund_ref is not None:
        return bool(found.get("id") == refund.refund_ref)
    metadata = _metadata(found)
    has_our_key = refund.key_digest is not None and (
        metadata.get("key_digest") == refund.key_digest
    )
    return has_our_key or metadata.get("refund_id") == refund.refund_id


def is_another(found: Object, refund: Refund) -> bool:
    """Whether the client's key made this refund, with another id of ours and another amount."""
    metadata = _metadata(found)
    has_our_key = refund.key_digest is not None and (
        metadata.get("key_digest") == refund.key_digest
    )
    return (
        has_our_key
        and refund.refund_ref is None
        and metadata.get("refund_id") != refund.refund_id
        and type(found.get("amount")) is int
        and found["amount"] != refund.amount_minor
    )


# --- Errors ---------------------------------------------------------------------------------


def of_error(
    answer: ProviderAnswer, *, provider_ref: str | None = None, is_first: bool = False
) -> Outcome:
    """The outcome of an answer other than 200; `is_first`: no earlier call can have moved money.

    Only then is "this request is invalid" a definite refusal. In a later call it may also mean
    that the money has already moved.
    """
    status, error = answer.status, error_of(answer)
    is_decline = error.get("type") == "card_error" or error.get("code") == _DECLINED
    is_refusal = is_first and 400 <= status < 500 and status not in _NO_REFUSAL
    is_invalid = is_refusal and error.get("type") == "invalid_request_error"
    # Our key was used for another call before: proof of an earlier call of ours.
    is_key_used = status == 400 and error.get("type") == "idempotency_error"
    if (status == 402 and is_decline) or is_invalid:
        refused = decline(error) if is_decline else _of_request(error)
        return Outcome(
            OutcomeKind.DECLINED, Stage.ANSWERED, provider_ref=provider_ref, decline=refused
        )
    kind = OutcomeKind.NOT_EXECUTED if status in (401, 403, 429) else OutcomeKind.UNKNOWN
    named = " ".join(word(error[name]) for name in ("type", "code") if error.get(name))
    return Outcome(
        kind,
        Stage.ANSWERED,
        provider_ref=provider_ref,
        error=KEY_USED if is_key_used else _error_word(status),
        error_detail=f"status {status} {named}".strip(),
        retry_after_s=retry_after_s(answer),
        is_replay=is_replay(answer),
    )


def is_replay(answer: ProviderAnswer) -> bool:
    """Whether the answer was saved under our key earlier and is not an answer to this call."""
    return answer.headers.get("Idempotent-Replayed", "").strip().lower() == "true"


def decline(error: Object) -> ProviderDecline:
    """The provider's own code, and a message that is safe for a log or a page."""
    code = error.get("decline_code") or error.get("code") or error.get("type")
    message = _UNPRINTABLE.sub(" ", str(error.get("message") or "The payment was declined."))
    # Stripe's messages may quote what was sent: a card's number, a key, a client_secret.
    return ProviderDecline(word(code), redaction.clean_text(message)[:MESSAGE_LENGTH_MAX])


def of_release(outcome: Outcome, charge: Charge) -> Outcome:
    """The outcome of a call that releases reserved money: no bank is asked, so none can decline it.

    Read as the payment's own decline, it would mean that no money is held any more.
    """
    if outcome.kind is not OutcomeKind.DECLINED:
        return outcome
    return mismatch("a release was declined", provider_ref=charge.provider_ref)


# About the key, the time or the load of a call: whatever else the answer says, no party judged the
# request itself.
_NO_REFUSAL = frozenset({401, 403, 408, 409, 425, 429})
# The provider's parameters that are a caller's own fields; all others are our responsibility.
_CALLERS_FIELDS = {
    "payment_method": "payment_method",
    "source": "payment_method",
    "customer": "customer",
    "currency": "currency",
    "amount": "amount",
    "amount_to_capture": "amount",
}
# Refusals for the state of the object that the request names: no party made a mistake.
_STATES = frozenset(
    {
        *("charge_already_refunded", "charge_already_captured", "charge_disputed"),
        *("charge_expired_for_capture", "payment_intent_unexpected_state"),
    }
)


def _of_request(error: Object) -> ProviderDecline:
    """The provider refused the request itself: final, and no bank's answer about a card."""
    found = decline(error)
    field = _CALLERS_FIELDS.get(str(error.get("param")))
    if field is None and found.code not in _STATES:
        # The rest is our own text: a fault of this adapter or of the account.
        log.error(
            "provider.request_refused",
            extra={"code": found.code, "param": word(error.get("param")), "detail": found.message},
        )
    return replace(found, is_request=True, field=field)


def error_of(answer: ProviderAnswer) -> Object:
    """The error in an answer; empty where it has no readable one."""
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


def retry_after_s(answer: ProviderAnswer) -> float | None:
    """The pause that the provider asks for, within bounds."""
    asked = answer.headers.get("Retry-After", "")
    # The other form is a date, and our clock may differ from the provider's.
    return min(float(asked), RETRY_AFTER_MAX_S) if re.fullmatch(r"\d{1,9}", asked) else None


# --- Small readings -------------------------------------------------------------------------


def mismatch(detail: str, *, provider_ref: str | None = None) -> Outcome:
    """The answer is whole but is about another object than the requested one."""
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


def is_reference(found: Any) -> bool:
    return isinstance(found, str) and _REFERENCE.fullmatch(found) is not None


def is_part(found: Any, whole: int) -> bool:
    return type(found) is int and 0 < found <= whole


def word(found: Any) -> str:
    return found if isinstance(found, str) and _WORD.fullmatch(found) else "unreadable"
