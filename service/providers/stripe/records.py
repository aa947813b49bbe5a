"""The common part of Stripe's two APIs: refunds, the provider's books, records about charges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from service.providers.base import Outcome, ProviderCharge, Refund
from service.providers.later import Feed, Item, Page, ProviderDispute, ProviderRefund, Slice
from service.providers.stripe.api import StripeApi
from service.providers.stripe.books import StripeBooks
from service.providers.stripe.currencies import STRIPE_AMOUNTS
from service.providers.stripe.later import StripeLater
from service.providers.stripe.refunds import StripeRefunds
from service.resilience.deadline import Deadline


class StripeRecords:
    """The part of a Provider that is the same for PaymentIntents and Charges.

    An adapter gives its API's parts; every method passes its question on to one of them.
    """

    amounts = STRIPE_AMOUNTS

    def __init__(
        self, api: StripeApi, *, books: StripeBooks, refunds: StripeRefunds, later: StripeLater
    ) -> None:
        self._api = api
        self._books = books
        self._refunds = refunds
        self._later = later

    @property
    def available(self) -> bool:
        """Always True: the guard decides about refusals."""
        return True

    # --- Refunds and the provider's books -------------------------------------------------------

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Give money back. A refusal is believed only when the books do not show the refund."""
        return self._refunds.refund(refund, deadline)

    def look_up_refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Find the state of the refund; moves no money. `not_executed` when the books lack it."""
        return self._refunds.look_up(refund, deadline)

    def list_since(self, since: datetime, deadline: Deadline) -> Iterator[ProviderCharge]:
        """All charges made since, newest first; raises ProviderUnavailable where a page fails.

        The list of Charges leaves out those of PaymentIntents.
        """
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
