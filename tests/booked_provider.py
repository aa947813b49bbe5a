"""A provider that keeps books, for tests that are about our own and not about the wire."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from service.providers.base import (
    Charge,
    Decline,
    Outcome,
    OutcomeKind,
    ProviderCharge,
    Refund,
    Stage,
)
from service.resilience.deadline import Deadline


def succeeded(amount: int = 2599) -> Outcome:
    return Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, amount_received=amount)


def declined() -> Outcome:
    return Outcome(
        OutcomeKind.DECLINED,
        Stage.ANSWERED,
        decline=Decline("insufficient_funds", "Your card has insufficient funds."),
    )


def unknown(error: str = "timeout") -> Outcome:
    return Outcome(OutcomeKind.UNKNOWN, Stage.SENT_UNKNOWN, error=error)


def refused() -> Outcome:
    return Outcome(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, error="refused")


def absent() -> Outcome:
    """The provider's own word that nothing was executed."""
    return Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)


class BookedProvider:
    """Answers each operation as told, a call each, and from then on by its books."""

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
        self.available = True
        self.calls: list[str] = []
        # provider key -> the charge that was executed under it.
        self.charged: dict[str, Charge] = {}
        self.listed: list[ProviderCharge] = []
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
        outcome = self._confirms.pop(0) if self._confirms else succeeded(charge.amount_minor)
        if outcome.kind is OutcomeKind.SUCCEEDED:
            self.execute(charge)
        return outcome

    def look_up(self, charge: Charge, deadline: Deadline) -> Outcome:
        self._begin("look_up")
        if self._look_ups:
            return self._look_ups.pop(0)
        was_charged = any(c.payment_id == charge.payment_id for c in self.charged.values())
        return succeeded(charge.amount_minor) if was_charged else absent()

    def capture(self, charge: Charge, amount_minor: int, key: str, deadline: Deadline) -> Outcome:
        self._begin("capture")
        return succeeded(amount_minor)

    def cancel(self, charge: Charge, key: str, deadline: Deadline) -> Outcome:
        self._begin("cancel")
        return Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED, error="canceled")

    def look_up_refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        self._begin("look_up_refund")
        return succeeded(refund.amount_minor)

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        self._begin("refund")
        return succeeded(refund.amount_minor)

    def list_since(self, since: datetime, deadline: Deadline) -> Iterator[ProviderCharge]:
        self._begin("list")
        yield from self.listed

    def confirm_with(self, *confirms: Outcome) -> None:
        """From now on."""
        self._confirms = list(confirms)

    def execute(self, charge: Charge) -> None:
        """Move the money; called by a test: it moved after the call was cut off."""
        with self._lock:
            self.charged[charge.provider_key] = charge

    def listed_charge(self, charge: Charge, *, amount_minor: int | None = None) -> ProviderCharge:
        """The charge as its own books show it."""
        amount = charge.amount_minor if amount_minor is None else amount_minor
        return ProviderCharge(
            provider_ref=charge.provider_ref or "pi_unseen",
            payment_id=charge.payment_id,
            amount_minor=amount,
            currency=charge.currency,
            outcome=succeeded(amount),
            created_at=datetime.now(UTC),
            merchant_id=charge.merchant_id,
        )

    def _begin(self, call: str) -> None:
        with self._lock:
            self.calls.append(call)
        self.during_call()
