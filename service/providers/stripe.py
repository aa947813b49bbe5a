"""Stripe: PaymentIntents created unconfirmed and confirmed after, or both in one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Literal
from urllib.parse import urlencode

from service.errors import ProviderUnavailable
from service.providers import incident
from service.providers import stripe_answers as answers
from service.providers.base import (
    Charge,
    Outcome,
    OutcomeKind,
    ProviderCharge,
    Refund,
    Stage,
)
from service.providers.stripe_answers import Garbage, Object
from service.providers.transport import Answer, NotSent, SentUnknown, Transport, TransportError
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The shape of the answers that this adapter was written against.
STRIPE_VERSION = "2024-06-20"
# Stripe keeps a key for at least 24 h; past this its reuse could be a second charge.
KEY_LIFETIME = timedelta(hours=20)
# Stripe's clock and ours, and the time between our commit and its create.
CLOCKS_DIFFER = timedelta(minutes=10)
# Stripe's largest page, and what to ask for when metadata makes one larger than we take.
PAGE_SIZES = (100, 10, 1)
REFUND_REASONS = frozenset({"duplicate", "fraudulent", "requested_by_customer"})

_INTENTS = "/v1/payment_intents"
_REFUNDS = "/v1/refunds"


class StripeProvider:
    """A Provider on Stripe's API. For many threads.

    Every method answers with an Outcome by its deadline; none raises for what Stripe or the
    network does, and a fault of this adapter itself is doubt.
    """

    name = "stripe"

    def __init__(
        self, transport: Transport, *, api_key: str, flow: Literal["two_phase", "one_shot"]
    ) -> None:
        self.two_phase = flow == "two_phase"
        self._transport = transport
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "Stripe-Version": STRIPE_VERSION,
            "User-Agent": "holdfast",
        }

    @property
    def available(self) -> bool:
        """Always: refusing beforehand is the guard's work."""
        return True

    # --- Charges --------------------------------------------------------------------------------

    def prepare(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Create the PaymentIntent unconfirmed; in one_shot nothing is sent."""
        if not self.two_phase:
            return Outcome(OutcomeKind.PENDING, Stage.NOT_SENT, provider_ref=charge.provider_ref)

        def create() -> Outcome:
            # Without a key: Stripe would replay a saved 500 under it for a day, and what is
            # created twice and never confirmed moves nothing.
            answer = self._post("prepare", _INTENTS, _creation(charge), None, deadline)
            if answer.status == 200:
                return answers.of_prepared(answers.parse(answer), charge)
            return answers.of_error(answer, charge, is_first=True)

        return self._outcome("prepare", create)

    def confirm(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Move or reserve the money; without a reference yet, create and confirm in one call."""

        def move() -> Outcome:
            if charge.provider_ref is None:
                answer = self._create_confirmed("confirm", charge, deadline)
            else:
                path = f"{_INTENTS}/{charge.provider_ref}/confirm"
                answer = self._post("confirm", path, {}, charge.provider_key, deadline)
            if answer.status == 200:
                return answers.of_intent(answers.parse(answer), charge)
            return answers.of_error(answer, charge, is_first=charge.provider_ref is None)

        return self._outcome("confirm", move)

    def look_up(self, charge: Charge, deadline: Deadline) -> Outcome:
        """What became of the charge, by its reference, its key, or its place in the books.

        Only the one_shot way sends anything that could move money: the same key again, which
        completes the attempt that is in doubt and never begins another.
        """

        def find() -> Outcome:
            if charge.provider_ref is not None:
                return self._retrieve(charge.provider_ref, charge, deadline)
            if not self.two_phase and _key_is_young(charge):
                answer = self._create_confirmed("look_up", charge, deadline)
                if answer.status == 200:
                    return answers.of_intent(answers.parse(answer), charge)
                # Neither a saved 500 nor "invalid" tells whether the first call charged.
                if answer.status < 500 and answer.status not in (400, 404):
                    return answers.of_error(answer, charge)
            return self._find_in_books(charge, deadline)

        return _without_false_proof(self._outcome("look_up", find))

    def capture(self, charge: Charge, amount_minor: int, key: str, deadline: Deadline) -> Outcome:
        """Take the reserved money, or a part of it; once for each key."""

        def take() -> Outcome:
            path = f"{_INTENTS}/{charge.provider_ref}/capture"
            form = {"amount_to_capture": str(amount_minor)}
            answer = self._post("capture", path, form, key, deadline)
            if answer.status == 200:
                return answers.of_captured(answers.parse(answer), charge, amount_minor)
            return answers.of_error(answer, charge)

        return self._outcome("capture", take)

    def cancel(self, charge: Charge, key: str, deadline: Deadline) -> Outcome:
        """Release the reserved money: `not_executed` with error "canceled" is the success."""

        def release() -> Outcome:
            path = f"{_INTENTS}/{charge.provider_ref}/cancel"
            answer = self._post("cancel", path, {}, key, deadline)
            if answer.status == 200:
                return answers.of_intent(answers.parse(answer), charge)
            return answers.of_error(answer, charge)

        return self._outcome("cancel", release)

    # --- Refunds --------------------------------------------------------------------------------

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Give money back. A refusal is believed only when the books do not show the refund."""

        def give_back() -> Outcome:
            answer = self._post(
                "refund", _REFUNDS, _refund_form(refund), refund.provider_key, deadline
            )
            if answer.status == 200:
                return answers.of_refund(answers.parse(answer), refund)
            outcome = answers.of_error(answer, is_first=True)
            if outcome.kind is not OutcomeKind.DECLINED:
                return outcome
            # "Already refunded" may be our own refund, of a call whose answer was lost.
            known = self._find_refund(refund, "refund", deadline)
            return outcome if known is None else known

        return self._outcome("refund", give_back)

    def look_up_refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """What became of the refund. Moves nothing. `not_executed` when the books lack it."""

        def find() -> Outcome:
            known = self._find_refund(refund, "look_up", deadline)
            return known or Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)

        return _without_false_proof(self._outcome("look_up", find))

    def _find_refund(self, refund: Refund, operation: str, deadline: Deadline) -> Outcome | None:
        query = {"payment_intent": refund.provider_ref}
        for found in self._listed(operation, _REFUNDS, query, deadline):
            if answers.is_for(found, refund):
                return answers.of_refund(found, refund)
        return None

    # --- The provider's books -------------------------------------------------------------------

    def list_since(self, since: datetime, deadline: Deadline) -> Iterator[ProviderCharge]:
        """All charges made since, newest first; raises ProviderUnavailable where a page fails."""
        query = {"created[gte]": str(int(since.timestamp()))}
        try:
            for found in self._listed("list", _INTENTS, query, deadline):
                yield answers.of_charge_listed(found)
        except (TransportError, Garbage) as error:
            raise ProviderUnavailable("The provider's books could not be read.") from error

    def _retrieve(self, provider_ref: str, charge: Charge, deadline: Deadline) -> Outcome:
        answer = self._get("look_up", f"{_INTENTS}/{provider_ref}", deadline)
        if answer.status == 200:
            return answers.of_intent(answers.parse(answer), charge)
        return answers.of_error(answer, charge)

    def _find_in_books(self, charge: Charge, deadline: Deadline) -> Outcome:
        """By our metadata in the list, which Stripe keeps up to date (its search is not)."""
        created_at = charge.created_at or datetime.fromtimestamp(0, UTC) + CLOCKS_DIFFER
        query = {"created[gte]": str(int((created_at - CLOCKS_DIFFER).timestamp()))}
        # What is not there now was proven absent; whether it may still come is for the caller.
        best = Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)
        for found in self._listed("look_up", _INTENTS, query, deadline):
            if answers.of_charge_listed(found).payment_id != charge.payment_id:
                continue
            outcome = answers.of_intent(found, charge)
            if outcome.kind is OutcomeKind.SUCCEEDED:
                return outcome
            if _doubt(outcome) > _doubt(best) or best.provider_ref is None:
                best = outcome
        return best

    def _listed(
        self, operation: str, path: str, query: Mapping[str, str], deadline: Deadline
    ) -> Iterator[Object]:
        """The objects of a list, over all its pages; raises TransportError or Garbage."""
        after: Mapping[str, str] = {}
        while True:
            page = self._page(operation, path, {**query, **after}, deadline)
            items = page.get("data")
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise Garbage("a list without its items")
            yield from items
            if page.get("has_more") is not True or not items:
                return
            last = {"starting_after": str(items[-1].get("id"))}
            if last == after:
                raise Garbage("a list that does not end")
            after = last

    def _page(
        self, operation: str, path: str, query: Mapping[str, str], deadline: Deadline
    ) -> Object:
        for size in PAGE_SIZES:
            address = f"{path}?{urlencode({'limit': size, **query})}"
            try:
                answer = self._get(operation, address, deadline)
            except SentUnknown as failure:
                if failure.kind == "too_large" and size > 1:
                    continue
                raise
            if answer.status != 200:
                raise Garbage(f"a list with status {answer.status}")
            return answers.parse(answer)
        raise AssertionError("The last page size returns or raises.")

    # --- Calls ----------------------------------------------------------------------------------

    def _create_confirmed(self, operation: str, charge: Charge, deadline: Deadline) -> Answer:
        form = {**_creation(charge), "confirm": "true"}
        return self._post(operation, _INTENTS, form, charge.provider_key, deadline)

    def _post(
        self,
        operation: str,
        path: str,
        form: Mapping[str, str],
        key: str | None,
        deadline: Deadline,
    ) -> Answer:
        headers = self._headers if key is None else {**self._headers, "Idempotency-Key": key}
        return self._exchange(operation, "POST", path, form, headers, deadline)

    def _get(self, operation: str, path: str, deadline: Deadline) -> Answer:
        return self._exchange(operation, "GET", path, None, self._headers, deadline)

    def _exchange(
        self,
        operation: str,
        method: str,
        path: str,
        form: Mapping[str, str] | None,
        headers: Mapping[str, str],
        deadline: Deadline,
    ) -> Answer:
        try:
            answer = self._transport.exchange(
                method, path, form=form, headers=headers, deadline=deadline
            )
        except TransportError as failure:
            incident.report(self.name, operation, failure, deadline)
            raise
        if answer.status in (401, 403):
            log.error(
                "provider.key_refused",
                extra={"provider": self.name, "operation": operation, "status": answer.status},
            )
        return answer

    def _outcome(self, operation: str, work: Callable[[], Outcome]) -> Outcome:
        """The outcome of an operation, whatever happens in it, with the time that it took."""
        began_s = monotonic()
        try:
            outcome = work()
        except NotSent as failure:
            outcome = _failed(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, failure)
        except SentUnknown as failure:
            outcome = _failed(OutcomeKind.UNKNOWN, Stage.SENT_UNKNOWN, failure)
        except Garbage as garbage:
            log.error(
                "provider.bad_answer",
                extra={"provider": self.name, "operation": operation, "detail": str(garbage)},
            )
            outcome = Outcome(
                OutcomeKind.UNKNOWN,
                Stage.SENT_UNKNOWN,
                error="garbage",
                error_detail=str(garbage),
            )
        except Exception as error:
            # A fault of ours, and the money may have moved before it: doubt, and loud.
            log.exception("provider.adapter_failed", extra={"operation": operation})
            outcome = Outcome(
                OutcomeKind.UNKNOWN,
                Stage.SENT_UNKNOWN,
                error="internal",
                error_detail=type(error).__name__,
            )
        if outcome.error == "mismatch":
            log.error(
                "provider.mismatch",
                extra={
                    "provider": self.name,
                    "operation": operation,
                    "detail": outcome.error_detail,
                },
            )
        return replace(outcome, ms=round((monotonic() - began_s) * 1000))


def _creation(charge: Charge) -> dict[str, str]:
    """The form of a new PaymentIntent: for one charge always the same, as its key demands."""
    ours = {"payment_id": charge.payment_id, "merchant_id": charge.merchant_id}
    if charge.reference is not None:
        ours["reference"] = charge.reference
    form = {
        "amount": str(charge.amount_minor),
        "currency": charge.currency,
        "payment_method": charge.payment_method,
        # Cards only: methods that redirect would need a page of ours to come back to.
        "payment_method_types[]": "card",
        "capture_method": "automatic" if charge.capture_automatically else "manual",
    }
    if charge.customer is not None:
        form["customer"] = charge.customer
    # Ours last: the sweep must be able to believe them, whatever the caller wrote.
    metadata = {**charge.metadata, **ours}
    return form | {f"metadata[{name}]": metadata[name] for name in sorted(metadata)}


def _refund_form(refund: Refund) -> dict[str, str]:
    form = {
        "payment_intent": refund.provider_ref,
        "amount": str(refund.amount_minor),
        "metadata[refund_id]": refund.refund_id,
        "metadata[payment_id]": refund.payment_id,
    }
    if refund.merchant_id is not None:
        form["metadata[merchant_id]"] = refund.merchant_id
    if refund.reason in REFUND_REASONS:
        form["reason"] = refund.reason
    elif refund.reason:
        form["metadata[reason]"] = refund.reason
    return form


def _key_is_young(charge: Charge) -> bool:
    return charge.created_at is not None and datetime.now(UTC) - charge.created_at < KEY_LIFETIME


def _doubt(outcome: Outcome) -> int:
    """The order in which one of several matches is believed: what could move money comes first."""
    order = (OutcomeKind.NOT_EXECUTED, OutcomeKind.DECLINED, OutcomeKind.PENDING)
    return order.index(outcome.kind) if outcome.kind in order else len(order)


def _without_false_proof(outcome: Outcome) -> Outcome:
    """A look-up that failed proves nothing: `not_executed` would send the charge again."""
    is_proof = outcome.stage is Stage.ANSWERED and outcome.error in (None, "canceled")
    if outcome.kind is OutcomeKind.NOT_EXECUTED and not is_proof:
        return replace(outcome, kind=OutcomeKind.UNKNOWN)
    return outcome


def _failed(kind: OutcomeKind, stage: Stage, failure: TransportError) -> Outcome:
    return Outcome(kind, stage, error=failure.kind, error_detail=failure.detail)
