"""Calls to Stripe's API for all adapters: headers, keys, pages, and the outcome of each call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from time import monotonic
from urllib.parse import urlencode

from service.observability import spans
from service.providers import incident
from service.providers.base import Charge, Outcome, OutcomeKind, ProviderDecline, Stage
from service.providers.http.transport import (
    NotSent,
    ProviderAnswer,
    SentUnknown,
    Transport,
    TransportError,
)
from service.providers.stripe import answers
from service.providers.stripe import form as stripe_form
from service.providers.stripe.answers import Garbage, Object
from service.providers.stripe.form import Unsendable
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The API version that the adapters were written for.
STRIPE_VERSION = "2024-06-20"
# Stripe's largest page, and the next sizes when metadata makes a page larger than our limit.
PAGE_SIZES = (100, 10, 1)
# A page that hangs must not use the time of a whole listing: the queue waits behind it.
PAGE_TIMEOUT_S = 5.0


class StripeApi:
    """One Stripe account, for the adapter called `name`. Thread-safe."""

    def __init__(self, transport: Transport, *, name: str, api_key: str) -> None:
        self._name = name
        self._transport = transport
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "Stripe-Version": STRIPE_VERSION,
            "User-Agent": "holdfast",
        }

    def post(
        self,
        operation: str,
        path: str,
        form: Mapping[str, str],
        key: str | None,
        deadline: Deadline,
    ) -> ProviderAnswer:
        """Send a form, with or without an idempotency key; raises TransportError, Unsendable."""
        stripe_form.check(path, form)
        headers = self._headers if key is None else {**self._headers, "Idempotency-Key": key}
        return self._exchange(operation, "POST", path, form, headers, deadline)

    def get(self, operation: str, path: str, deadline: Deadline) -> ProviderAnswer:
        """Read one object or page; raises TransportError."""
        return self._exchange(operation, "GET", path, None, self._headers, deadline)

    def _exchange(
        self,
        operation: str,
        method: str,
        path: str,
        form: Mapping[str, str] | None,
        headers: Mapping[str, str],
        deadline: Deadline,
    ) -> ProviderAnswer:
        try:
            with spans.span(f"provider.{operation}", provider=self._name):
                answer = self._transport.exchange(
                    method, path, form=form, headers=headers, deadline=deadline
                )
        except TransportError as failure:
            incident.report(self._name, operation, failure, deadline)
            raise
        if answer.status in (401, 403):
            log.error(
                "provider.key_refused",
                extra={"provider": self._name, "operation": operation, "status": answer.status},
            )
        return answer

    # --- Lists ----------------------------------------------------------------------------------

    def listed(
        self, operation: str, path: str, query: Mapping[str, str], deadline: Deadline
    ) -> Iterator[Object]:
        """The objects of a list, over all its pages; raises TransportError or Garbage."""
        after: Mapping[str, str] = {}
        while True:
            page = self._page(operation, path, {**query, **after}, deadline)
            items = page.get("data")
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise Garbage("a list without its items")
            if not isinstance(page.get("has_more"), bool) or (page["has_more"] and not items):
                # Read as whole, it would prove that what it lacks is absent.
                raise Garbage("a list that does not say where it goes on")
            yield from items
            if not page["has_more"]:
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
                answer = self.get(operation, address, deadline.within(PAGE_TIMEOUT_S))
            except SentUnknown as failure:
                if failure.kind == "too_large" and size > 1:
                    continue
                raise
            if answer.status != 200:
                raise Garbage(f"a list with status {answer.status}")
            return answers.parse(answer)
        raise AssertionError("The last page size returns or raises.")

    # --- Outcomes -------------------------------------------------------------------------------

    def look_up(self, work: Callable[[], Outcome]) -> Outcome:
        """Like `outcome`, for a look-up: a failed one proves nothing."""
        return _without_false_proof(self.outcome("look_up", work))

    def outcome(self, operation: str, work: Callable[[], Outcome]) -> Outcome:
        """The outcome of an operation, for every exception in it, with its duration."""
        began_s = monotonic()
        try:
            outcome = work()
        except NotSent as failure:
            outcome = _failed(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, failure)
        except SentUnknown as failure:
            outcome = _failed(OutcomeKind.UNKNOWN, Stage.SENT_UNKNOWN, failure)
        except Unsendable as unsendable:
            log.error(
                "provider.unsendable",
                extra={"provider": self._name, "operation": operation, "detail": str(unsendable)},
            )
            outcome = _unsendable(operation, unsendable)
        except Garbage as garbage:
            log.error(
                "provider.bad_answer",
                extra={"provider": self._name, "operation": operation, "detail": str(garbage)},
            )
            outcome = Outcome(
                OutcomeKind.UNKNOWN,
                Stage.SENT_UNKNOWN,
                error="garbage",
                error_detail=str(garbage),
            )
        except Exception as error:
            # A bug of ours, and the money may have moved before it: log an error, answer with doubt.
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
                    "provider": self._name,
                    "operation": operation,
                    "detail": outcome.error_detail,
                },
            )
        return replace(outcome, ms=round((monotonic() - began_s) * 1000))


def metadata_form(charge: Charge) -> dict[str, str]:
    """The form fields that lead from the provider's books back to ours."""
    ours = {"payment_id": charge.payment_id, "merchant_id": charge.merchant_id}
    if charge.key_digest is not None:
        ours["key_digest"] = charge.key_digest
    # Our entries come last and replace the caller's, so that the sweep can believe them.
    metadata = {**charge.metadata, **ours}
    # The caller may fill all but our three entries; our fourth is sent only where it has room.
    most = stripe_form.METADATA_ENTRIES_MAX
    if charge.reference is not None and len({*metadata, "reference"}) <= most:
        metadata["reference"] = charge.reference
    return {f"metadata[{name}]": metadata[name] for name in sorted(metadata)}


def _without_false_proof(outcome: Outcome) -> Outcome:
    """A failed look-up proves nothing: `not_executed` would send the charge again."""
    is_proof = outcome.stage is Stage.ANSWERED and outcome.error in (None, "canceled")
    if outcome.kind is OutcomeKind.NOT_EXECUTED and not is_proof:
        return replace(outcome, kind=OutcomeKind.UNKNOWN)
    return outcome


def _unsendable(operation: str, reason: Unsendable) -> Outcome:
    """Final for this request, which can never be sent; no statement about an earlier call."""
    if operation in ("look_up", "cancel"):
        return Outcome(
            OutcomeKind.UNKNOWN, Stage.NOT_SENT, error="internal", error_detail=str(reason)
        )
    message = f"The provider cannot be sent {reason}."
    refused = ProviderDecline("unsendable", message, is_request=True)
    return Outcome(OutcomeKind.DECLINED, Stage.NOT_SENT, decline=refused)


def _failed(kind: OutcomeKind, stage: Stage, failure: TransportError) -> Outcome:
    return Outcome(kind, stage, error=failure.kind, error_detail=failure.detail)
