"""A provider with books in memory, for tests of our own books without the wire."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from service.errors import ProviderUnavailable
from service.providers.amounts import ISO_4217
from service.providers.base import (
    Charge,
    Outcome,
    OutcomeKind,
    ProviderCharge,
    ProviderDecline,
    Refund,
    Stage,
)
from service.providers.later import (
    Feed,
    Item,
    Page,
    PageUnreadable,
    ProviderDispute,
    ProviderRefund,
    Slice,
    Unreadable,
)
from service.resilience.deadline import Deadline


def succeeded(amount: int = 2599) -> Outcome:
    return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, amount_received=amount)


def declined() -> Outcome:
    return Outcome(
        OutcomeKind.DECLINED,
        Stage.ANSWERED,
        decline=ProviderDecline("insufficient_funds", "Your card has insufficient funds."),
    )


def unknown(error: str = "timeout") -> Outcome:
    return Outcome(OutcomeKind.UNKNOWN, Stage.SENT_UNKNOWN, error=error)


def refused() -> Outcome:
    return Outcome(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, error="refused")


def reserved(amount: int = 2599) -> Outcome:
    """Authorised, waiting for a capture."""
    return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, amount_capturable=amount)


def canceled() -> Outcome:
    return Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED, error="canceled")


def absent() -> Outcome:
    """The provider's own statement that it executed nothing."""
    return Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)


class BookedProvider:
    """Answers calls with the test's answers, one for each call, and afterwards from its books."""

    name = "fake"

    def __init__(
        self,
        *confirms: Outcome,
        prepares: tuple[Outcome, ...] = (),
        look_ups: tuple[Outcome, ...] = (),
        two_phase: bool = True,
        during_call: Callable[[], None] = lambda: None,
    ) -> None:
        self.two_phase = two_phase
        self.amounts = ISO_4217
        self.available = True
        self.calls: list[str] = []
        # The provider keys of captures, cancels and refunds, in order.
        self.keys: list[str] = []
        # provider key -> the charge that was executed under it.
        self.charged: dict[str, Charge] = {}
        # payment id -> captured amount; provider key -> the refund executed under it.
        self.captured: dict[str, int] = {}
        self.refunded: dict[str, Refund] = {}
        self.released: set[str] = set()
        # Entries besides the charges.
        self.listed: list[ProviderCharge] = []
        self.books_are_shut = False
        # Their references -> the entries of the list of charges instead.
        self.unreadable: dict[str, Unreadable] = {}
        # operation -> the answers to its next calls; the books do not contain them.
        self.next_answers: dict[str, list[Outcome]] = defaultdict(list)
        self.during_call = during_call
        self._confirms = list(confirms)
        self._prepares = list(prepares)
        self._look_ups = list(look_ups)
        self._lock = threading.Lock()

    def prepare(self, charge: Charge, deadline: Deadline) -> Outcome:
        if not self.two_phase:
            return Outcome(OutcomeKind.PENDING, Stage.NOT_SENT)
        self._begin("prepare")
        if self._prepares:
            return self._prepares.pop(0)
        return Outcome(OutcomeKind.PENDING, Stage.ANSWERED, provider_ref=f"pi_{charge.payment_id}")

    def confirm(self, charge: Charge, deadline: Deadline) -> Outcome:
        self._begin("confirm")
        outcome = self._confirms.pop(0) if self._confirms else _executed(charge)
        if outcome.kind is OutcomeKind.SUCCEEDED:
            self.execute(charge)
        return outcome

    def look_up(self, charge: Charge, deadline: Deadline) -> Outcome:
        self._begin("look_up")
        if self._look_ups:
            return self._look_ups.pop(0)
        if charge.payment_id in self.released:
            return canceled()
        if charge.payment_id in self.captured:
            return succeeded(self.captured[charge.payment_id])
        was_charged = any(c.payment_id == charge.payment_id for c in self.charged.values())
        return _executed(charge) if was_charged else absent()

    def capture(self, charge: Charge, amount_minor: int, key: str, deadline: Deadline) -> Outcome:
        self._begin("capture", key)
        if self.next_answers["capture"]:
            return self.next_answers["capture"].pop(0)
        self.captured[charge.payment_id] = amount_minor
        return succeeded(amount_minor)

    def cancel(self, charge: Charge, key: str, deadline: Deadline) -> Outcome:
        self._begin("cancel", key)
        if self.next_answers["cancel"]:
            return self.next_answers["cancel"].pop(0)
        self.released.add(charge.payment_id)
        return canceled()

    def look_up_refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        self._begin("look_up_refund")
        if self.next_answers["look_up_refund"]:
            return self.next_answers["look_up_refund"].pop(0)
        is_known = any(known.refund_id == refund.refund_id for known in self.refunded.values())
        return self._refund_outcome(refund) if is_known else absent()

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        self._begin("refund", refund.provider_key)
        if self.next_answers["refund"]:
            return self.next_answers["refund"].pop(0)
        self.pay_back(refund)
        return self._refund_outcome(refund)

    @staticmethod
    def _refund_outcome(refund: Refund) -> Outcome:
        provider_ref = f"re_{refund.refund_id}"
        return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, provider_ref=provider_ref)

    def list_since(self, since: datetime, deadline: Deadline) -> Iterator[ProviderCharge]:
        self._begin("list")
        if self.books_are_shut:
            raise ProviderUnavailable("The provider's books could not be read.")
        yield from self.listed
        for charge in list(self.charged.values()):
            yield self.listed_charge(charge)

    # --- Records about existing charges ---------------------------------------------------------

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        if feed is not Feed.CHARGES:
            return Page([], None, part.page_size)
        self._begin("list")
        if self.books_are_shut:
            raise ProviderUnavailable("The provider's books could not be read.")
        charged = [self.listed_charge(charge) for charge in list(self.charged.values())]
        found = [
            *self.listed,
            *(one for one in charged if part.since <= one.created_at < part.until),
        ]
        unreadable = [self.unreadable[one.provider_ref] for one in found if self._is_odd(one)]
        read = [one for one in found if not self._is_odd(one)]
        return Page(read, None, part.page_size, unreadable)

    def _is_odd(self, charge: ProviderCharge) -> bool:
        return charge.provider_ref in self.unreadable

    def read_again(self, feed: Feed, provider_ref: str, deadline: Deadline) -> Sequence[Item]:
        self._begin("look_up")
        if provider_ref in self.unreadable:
            raise PageUnreadable("The object cannot be read.")
        return [one for one in self.listed if one.provider_ref == provider_ref]

    def refunds_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderRefund]:
        return []

    def disputes_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderDispute]:
        return []

    def identify(self, charge_ref: str, deadline: Deadline) -> ProviderCharge | None:
        return next((one for one in self.listed if one.provider_ref == charge_ref), None)

    def confirm_with(self, *confirms: Outcome) -> None:
        """From now on."""
        self._confirms = list(confirms)

    def execute(self, charge: Charge) -> None:
        """Move the money; a test calls it for money that moves after the call was cut off."""
        with self._lock:
            self.charged[charge.provider_key] = charge

    def pay_back(self, refund: Refund) -> None:
        """Move the money back; a test calls it for money that moves after the call was cut off."""
        with self._lock:
            self.refunded[refund.provider_key] = refund

    def listed_charge(self, charge: Charge, *, amount_minor: int | None = None) -> ProviderCharge:
        """The charge in the provider's own books."""
        amount = charge.amount_minor if amount_minor is None else amount_minor
        provider_ref = charge.provider_ref or "pi_unseen"
        return ProviderCharge(
            provider_ref=provider_ref,
            payment_id=charge.payment_id,
            amount_minor=amount,
            currency=charge.currency,
            outcome=replace(succeeded(amount), provider_ref=provider_ref),
            created_at=datetime.now(UTC),
            merchant_id=charge.merchant_id,
            key_digest=charge.key_digest,
        )

    def _begin(self, call: str, key: str | None = None) -> None:
        with self._lock:
            self.calls.append(call)
            if key is not None:
                self.keys.append(key)
        self.during_call()


def _executed(charge: Charge) -> Outcome:
    amount = charge.amount_minor
    return succeeded(amount) if charge.capture_automatically else reserved(amount)
