"""Stripe's PaymentIntents: created unconfirmed and then confirmed, or both in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Literal

from service.providers.base import Charge, Outcome, OutcomeKind, ProviderCharge, Refund, Stage
from service.providers.http.transport import ProviderAnswer, Transport
from service.providers.later import Feed, Item, Page, ProviderDispute, ProviderRefund, Slice
from service.providers.stripe import answers, intents
from service.providers.stripe import form as stripe_form
from service.providers.stripe.api import StripeApi, metadata_form
from service.providers.stripe.books import StripeBooks
from service.providers.stripe.currencies import STRIPE_AMOUNTS
from service.providers.stripe.later import StripeLater
from service.providers.stripe.refunds import StripeRefunds
from service.resilience.deadline import Deadline

_INTENTS = "/v1/payment_intents"


class StripeProvider:
    """A Provider on Stripe's PaymentIntents. Thread-safe.

    Every method answers with an Outcome by its deadline; none raises for a fault of Stripe or the
    network, and a bug of this adapter is doubt.
    """

    name = "stripe"
    amounts = STRIPE_AMOUNTS

    def __init__(
        self, transport: Transport, *, api_key: str, flow: Literal["two_phase", "one_shot"]
    ) -> None:
        self.two_phase = flow == "two_phase"
        self._api = StripeApi(transport, name=self.name, api_key=api_key)
        self._books = StripeBooks(
            self._api,
            _INTENTS,
            of_answer=intents.of_answer,
            of_object=intents.of_intent,
            of_listed=intents.of_listed,
        )
        self._refunds = StripeRefunds(self._api, charge_field="payment_intent")
        self._later = StripeLater(
            self._api, _INTENTS, charge_field="payment_intent", of_listed=intents.of_listed
        )

    @property
    def available(self) -> bool:
        """Always True: the guard decides about refusals."""
        return True

    # --- Charges --------------------------------------------------------------------------------

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

    # --- Refunds and the provider's books -------------------------------------------------------

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Give money back. A refusal is believed only when the books do not show the refund."""
        return self._refunds.refund(refund, deadline)

    def look_up_refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Find the state of the refund; moves no money. `not_executed` when the books lack it."""
        return self._refunds.look_up(refund, deadline)

    def list_since(self, since: datetime, deadline: Deadline) -> Iterator[ProviderCharge]:
        """All charges made since, newest first; raises ProviderUnavailable where a page fails."""
        return self._books.list_since(since, deadline)

    # --- Records about existing charges ---------------------------------------------------------

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        """One page of a list, for the sweep; raises ProviderUnavailable, FeedMissing."""
        return self._later.page(feed, part, deadline)

    def read_again(self, feed: Feed, provider_ref: str, deadline: Deadline) -> Sequence[Item]:
        """One object of a list by its own address; raises ProviderUnavailable."""
        return self._later.read_again(feed, provider_ref, deadline)

    def refunds_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderRefund]:
        """All refunds of a charge, made by us or by others; raises ProviderUnavailable."""
        return self._later.refunds_of(charge_ref, deadline)

    def disputes_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderDispute]:
        """All disputes about a charge; raises ProviderUnavailable."""
        return self._later.disputes_of(charge_ref, deadline)

    def identify(self, charge_ref: str, deadline: Deadline) -> ProviderCharge | None:
        """The charge with that reference; raises ProviderUnavailable."""
        return self._later.identify(charge_ref, deadline)


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
