"""Stripe's PaymentIntents: created unconfirmed and then confirmed, or both in one call."""

from __future__ import annotations

from functools import partial
from typing import Literal

from service.providers.base import Charge, Outcome, OutcomeKind, Stage
from service.providers.http.transport import ProviderAnswer, Transport
from service.providers.stripe import answers, intents
from service.providers.stripe import form as stripe_form
from service.providers.stripe.api import StripeApi, metadata_form
from service.providers.stripe.books import StripeBooks
from service.providers.stripe.later import StripeLater
from service.providers.stripe.records import StripeRecords
from service.providers.stripe.refunds import StripeRefunds
from service.resilience.deadline import Deadline

_INTENTS = "/v1/payment_intents"


class StripeProvider(StripeRecords):
    """A Provider on Stripe's PaymentIntents. Thread-safe.

    Every method answers with an Outcome by its deadline; none raises for a fault of Stripe or the
    network, and a bug of this adapter is doubt.
    """

    name = "stripe"

    def __init__(
        self, transport: Transport, *, api_key: str, flow: Literal["two_phase", "one_shot"]
    ) -> None:
        self.two_phase = flow == "two_phase"
        api = StripeApi(transport, name=self.name, api_key=api_key)
        super().__init__(
            api,
            books=StripeBooks(
                api,
                _INTENTS,
                of_answer=intents.of_answer,
                of_object=intents.of_intent,
                of_listed=intents.of_listed,
            ),
            refunds=StripeRefunds(api, charge_field="payment_intent"),
            later=StripeLater(
                api, _INTENTS, charge_field="payment_intent", of_listed=intents.of_listed
            ),
        )

    def prepare(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Create the PaymentIntent unconfirmed; in one_shot nothing is sent."""
        if not self.two_phase:
            return Outcome(OutcomeKind.PENDING, Stage.NOT_SENT, provider_ref=charge.provider_ref)

        def create() -> Outcome:
            # The call has a key, although an unconfirmed intent moves no money: when our row was lost
            # and claimed again, the provider answers that the key was used for another call.
            key = f"{charge.provider_key}-prepare"
            answer = self._api.post("prepare", _INTENTS, _creation(charge), key, deadline)
            if answer.status == 200:
                return intents.of_prepared(answers.parse(answer), charge)
            return intents.of_answer(answer, charge, is_first=True)

        return self._api.outcome("prepare", create)

    def confirm(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Move or reserve the money; without a reference, create and confirm in one call."""

        def move() -> Outcome:
            if charge.provider_ref is None:
                answer = self._create_confirmed("confirm", charge, deadline)
                return intents.of_answer(answer, charge, is_first=not charge.is_repeat)
            path = f"{_INTENTS}/{charge.provider_ref}/confirm"
            answer = self._api.post("confirm", path, {}, charge.provider_key, deadline)
            return intents.of_answer(answer, charge)

        return self._api.outcome("confirm", move)

    def look_up(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Find the charge by its reference, in the list of charges, or by its key (one_shot)."""
        again = partial(self._create_confirmed, "look_up", charge, deadline)
        return self._api.look_up(
            lambda: self._books.look_up(
                charge, deadline, send_again=None if self.two_phase else again
            )
        )

    def _create_confirmed(
        self, operation: str, charge: Charge, deadline: Deadline
    ) -> ProviderAnswer:
        form = {**_creation(charge), "confirm": "true"}
        return self._api.post(operation, _INTENTS, form, charge.provider_key, deadline)

    def capture(self, charge: Charge, amount_minor: int, key: str, deadline: Deadline) -> Outcome:
        """Capture the reserved money, or a part of it; once for each key."""

        def take() -> Outcome:
            path = f"{_INTENTS}/{charge.provider_ref}/capture"
            form = {"amount_to_capture": stripe_form.amount(amount_minor, charge.currency)}
            answer = self._api.post("capture", path, form, key, deadline)
            if answer.status == 200:
                return intents.of_captured(answers.parse(answer), charge, amount_minor)
            return self._books.of_refused_capture(answer, charge, deadline)

        return self._api.outcome("capture", take)

    def cancel(self, charge: Charge, key: str, deadline: Deadline) -> Outcome:
        """Release the reserved money: `not_executed` with error "canceled" is the success."""

        def release() -> Outcome:
            path = f"{_INTENTS}/{charge.provider_ref}/cancel"
            return intents.of_canceled(self._api.post("cancel", path, {}, key, deadline), charge)

        return self._api.outcome("cancel", release)


def _creation(charge: Charge) -> dict[str, str]:
    """The form of a new PaymentIntent: always the same for one charge, because its key requires it."""
    form = {
        "amount": stripe_form.amount(charge.amount_minor, charge.currency),
        "currency": charge.currency,
        "payment_method": charge.payment_method,
        # Cards only: methods that redirect would need a page of ours for the return.
        "payment_method_types[]": "card",
        "capture_method": "automatic" if charge.capture_automatically else "manual",
    }
    if charge.customer is not None:
        form["customer"] = charge.customer
    return form | metadata_form(charge)
