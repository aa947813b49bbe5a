"""Refunds at Stripe: equal for both kinds of charge, except for the field that names the charge."""

from __future__ import annotations

from typing import Literal

from service.providers.base import KEY_REUSED, Outcome, OutcomeKind, Refund, Stage
from service.providers.http.transport import TransportError
from service.providers.stripe import answers
from service.providers.stripe import form as stripe_form
from service.providers.stripe.api import StripeApi
from service.resilience.deadline import Deadline

REFUNDS = "/v1/refunds"
REFUND_REASONS = frozenset({"duplicate", "fraudulent", "requested_by_customer"})


class StripeRefunds:
    """Refunds of the charges that `charge_field` names. Thread-safe."""

    def __init__(
        self, api: StripeApi, *, charge_field: Literal["payment_intent", "charge"]
    ) -> None:
        self._api = api
        self._charge_field = charge_field

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Give money back, unless the books already show the refund.

        The books are read first: when a row was lost with its commit, no record of the first call
        is left, and a provider that ignores keys would give the money back twice. A refusal is
        believed only when the books do not show the refund.
        """

        def give_back() -> Outcome:
            if refund.key_digest is not None:
                known = self._known_before(refund, deadline)
                if known is not None:
                    return known
            answer = self._api.post(
                "refund", REFUNDS, self._form(refund), refund.provider_key, deadline
            )
            if answer.status == 200:
                return answers.of_refund(answers.parse(answer), refund, self._charge_field)
            outcome = answers.of_error(answer, is_first=True)
            is_used = outcome.error == "key_used"
            if outcome.kind is not OutcomeKind.DECLINED and not is_used:
                return outcome
            # "Already refunded" or a used key: perhaps by our own refund, in a call without an
            # answer.
            known = self._find(refund, "refund", deadline)
            return outcome if known is None else known

        return self._api.outcome("refund", give_back)

    def look_up(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Find the state of the refund; moves no money. `not_executed` when the books lack it."""

        def find() -> Outcome:
            known = self._find(refund, "look_up", deadline)
            if known is None and refund.refund_ref is not None:
                return answers.mismatch("the books lack a refund that they have shown")
            return known or Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)

        return self._api.look_up(find)

    def _known_before(self, refund: Refund, deadline: Deadline) -> Outcome | None:
        """The books' entry before a call is sent; unreadable books forbid sending."""
        try:
            return self._find(refund, "refund", deadline)
        except TransportError as failure:
            return _unsent(failure.kind, failure.detail)
        except answers.Garbage as garbage:
            return _unsent("garbage", str(garbage))

    def _find(self, refund: Refund, operation: str, deadline: Deadline) -> Outcome | None:
        query: dict[str, str] = {self._charge_field: refund.provider_ref}
        doubt: Outcome | None = None
        another: Outcome | None = None
        for found in self._api.listed(operation, REFUNDS, query, deadline):
            if not answers.is_for(found, refund):
                continue
            outcome = answers.of_refund(found, refund, self._charge_field)
            if outcome.error != "mismatch":
                return outcome
            if answers.is_another(found, refund):
                another = _of_another(found)
            else:
                doubt = outcome
        return doubt or another

    def _form(self, refund: Refund) -> dict[str, str]:
        form: dict[str, str] = {
            self._charge_field: refund.provider_ref,
            "amount": stripe_form.amount(refund.amount_minor, refund.currency),
            "metadata[refund_id]": refund.refund_id,
            "metadata[payment_id]": refund.payment_id,
        }
        if refund.key_digest is not None:
            form["metadata[key_digest]"] = refund.key_digest
        if refund.merchant_id is not None:
            form["metadata[merchant_id]"] = refund.merchant_id
        if refund.reason in REFUND_REASONS:
            form["reason"] = refund.reason
        elif refund.reason:
            form["metadata[reason]"] = refund.reason
        return form


def _unsent(error: str, detail: str | None) -> Outcome:
    return Outcome(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, error=error, error_detail=detail)


def _of_another(found: answers.Object) -> Outcome:
    """The client's key refunded another amount before: this refund was not sent."""
    return Outcome(
        OutcomeKind.NOT_EXECUTED,
        Stage.ANSWERED,
        error=KEY_REUSED,
        error_detail=f"the key made {answers.word(found.get('id'))}",
    )
