"""Stripe's Charges, its older API: one call makes the charge and moves the money.

A charge cannot be announced without moving money, so the flow is one_shot, and safety depends on
the idempotency key: use it only with an account (or a compatible provider) that honours keys.
"""

from __future__ import annotations

from functools import partial

from service.providers.base import Charge, Outcome, OutcomeKind, Stage
from service.providers.http.transport import ProviderAnswer, Transport
from service.providers.stripe import answers
from service.providers.stripe import charge_answers as charges
from service.providers.stripe import form as stripe_form
from service.providers.stripe.api import StripeApi, metadata_form
from service.providers.stripe.books import StripeBooks
from service.providers.stripe.later import StripeLater
from service.providers.stripe.records import StripeRecords
from service.providers.stripe.refunds import REFUNDS, StripeRefunds
from service.resilience.deadline import Deadline

_CHARGES = "/v1/charges"


class StripeChargesProvider(StripeRecords):
    """A Provider on Stripe's Charges, paid with a `source` token. Thread-safe.

    As in StripeProvider, every method answers by its deadline and none raises.
    """

    name = "stripe_charges"
    two_phase = False

    def __init__(self, transport: Transport, *, api_key: str) -> None:
        api = StripeApi(transport, name=self.name, api_key=api_key)
        super().__init__(
            api,
            books=StripeBooks(
                api,
                _CHARGES,
                of_answer=charges.of_answer,
                of_object=charges.of_charge,
                of_listed=charges.of_listed,
            ),
            refunds=StripeRefunds(api, charge_field="charge"),
            later=StripeLater(api, _CHARGES, charge_field="charge", of_listed=charges.of_listed),
        )

    def prepare(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Send nothing: this API has no charge without a movement of money."""
        return Outcome(OutcomeKind.PENDING, Stage.NOT_SENT, provider_ref=charge.provider_ref)

    def confirm(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Move or reserve the money, once for each key."""

        def move() -> Outcome:
            if charge.provider_ref is not None:
                # The charge was made before: under another key this would be a second one.
                return self._books.retrieve("confirm", charge, deadline)
            answer = self._create("confirm", charge, deadline)
            return charges.of_answer(answer, charge, is_first=not charge.is_repeat)

        return self._api.outcome("confirm", move)

    def look_up(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Find the charge by its reference, by its key, or in the list of charges."""
        again = partial(self._create, "look_up", charge, deadline)
        return self._api.look_up(lambda: self._books.look_up(charge, deadline, send_again=again))

    def _create(self, operation: str, charge: Charge, deadline: Deadline) -> ProviderAnswer:
        return self._api.post(operation, _CHARGES, _creation(charge), charge.provider_key, deadline)

    def capture(self, charge: Charge, amount_minor: int, key: str, deadline: Deadline) -> Outcome:
        """Capture the reserved money, or a part of it (the rest is released); once for each key."""

        def take() -> Outcome:
            path = f"{_CHARGES}/{charge.provider_ref}/capture"
            form = {"amount": stripe_form.amount(amount_minor, charge.currency)}
            answer = self._api.post("capture", path, form, key, deadline)
            if answer.status == 200:
                return charges.of_captured(answers.parse(answer), charge, amount_minor)
            return self._books.of_refused_capture(answer, charge, deadline)

        return self._api.outcome("capture", take)

    def cancel(self, charge: Charge, key: str, deadline: Deadline) -> Outcome:
        """Release the reserved money: `not_executed` with error "canceled" is the success.

        Here a release is a refund of the whole, uncaptured charge. For a captured charge it would
        give earned money back, so the charge is read first and refunded only while it is reserved.
        """

        def release() -> Outcome:
            now = self._books.retrieve("cancel", charge, deadline)
            if now.kind is not OutcomeKind.SUCCEEDED or now.amount_capturable == 0:
                return now
            form = {
                "charge": str(charge.provider_ref),
                # The whole amount: Stripe refuses it when a part was captured after our read.
                "amount": stripe_form.amount(charge.amount_minor, charge.currency),
                **metadata_form(charge),
            }
            answer = self._api.post("cancel", REFUNDS, form, key, deadline)
            if answer.status == 200:
                return charges.of_released(answers.parse(answer), charge)
            return answers.of_release(charges.of_answer(answer, charge), charge)

        return self._api.outcome("cancel", release)


def _creation(charge: Charge) -> dict[str, str]:
    """The form of a new charge: always the same for one charge, because its key requires it."""
    form = {
        "amount": stripe_form.amount(charge.amount_minor, charge.currency),
        "currency": charge.currency,
        "source": charge.payment_method,
        "capture": "true" if charge.capture_automatically else "false",
    }
    if charge.customer is not None:
        form["customer"] = charge.customer
    return form | metadata_form(charge)
