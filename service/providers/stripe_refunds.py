"""Refunds at Stripe: the same for both shapes of charge, but for the field that names the charge."""

from __future__ import annotations

from typing import Literal

from service.providers import stripe_answers as answers
from service.providers.base import Outcome, OutcomeKind, Refund, Stage
from service.providers.stripe_api import StripeApi
from service.resilience.deadline import Deadline

REFUNDS = "/v1/refunds"
REFUND_REASONS = frozenset({"duplicate", "fraudulent", "requested_by_customer"})


class StripeRefunds:
    """Refunds of the charges that `charge_field` names. For many threads."""

    def __init__(
        self, api: StripeApi, *, charge_field: Literal["payment_intent", "charge"]
    ) -> None:
        self._api = api
        self._charge_field = charge_field

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Give money back. A refusal is believed only when the books do not show the refund."""

        def give_back() -> Outcome:
            answer = self._api.post(
                "refund", REFUNDS, self._form(refund), refund.provider_key, deadline
            )
            if answer.status == 200:
                return answers.of_refund(answers.parse(answer), refund, self._charge_field)
            outcome = answers.of_error(answer, is_first=True)
            if outcome.kind is not OutcomeKind.DECLINED:
                return outcome
            # "Already refunded" may be our own refund, of a call whose answer was lost.
            known = self._find(refund, "refund", deadline)
            return outcome if known is None else known

        return self._api.outcome("refund", give_back)

    def look_up(self, refund: Refund, deadline: Deadline) -> Outcome:
        """What became of the refund. Moves nothing. `not_executed` when the books lack it."""

        def find() -> Outcome:
            known = self._find(refund, "look_up", deadline)
            return known or Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)

        return self._api.look_up(find)

    def _find(self, refund: Refund, operation: str, deadline: Deadline) -> Outcome | None:
        query: dict[str, str] = {self._charge_field: refund.provider_ref}
        for found in self._api.listed(operation, REFUNDS, query, deadline):
            if answers.is_for(found, refund):
                return answers.of_refund(found, refund, self._charge_field)
        return None

    def _form(self, refund: Refund) -> dict[str, str]:
        form: dict[str, str] = {
            self._charge_field: refund.provider_ref,
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
