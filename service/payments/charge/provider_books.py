"""Compares queued payments with the provider's books: a charge there means that our record is lost.

A failover or a restore loses our newest commits, so a queued payment may have been charged. The
books are listed once for a batch, from its oldest payment on, and later only from the newest entry.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta

from service.payments.charge.model import Payment
from service.providers.base import OutcomeKind, Provider, ProviderCharge
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The difference between the provider's clock and ours, and the time from our commit to its create.
CLOCKS_DIFFER = timedelta(minutes=10)
# By the provider's own clock: two charges of one second may appear in its list one after the other.
OVERLAP = timedelta(seconds=2)
# About 40 MB; beyond it the memory starts again from the oldest queued payment.
CHARGES_MAX = 50_000
# A listing of a busy hour has hundreds of pages; the lease of the batch lasts no longer than this.
LIST_TIMEOUT_S = 120.0
_CANCELED = "canceled"
_CANNOT_MOVE = (OutcomeKind.NOT_EXECUTED, OutcomeKind.DECLINED)


class ProviderBooks:
    """The provider's newest charges, as far back as the queue needs them. Not thread-safe."""

    def __init__(self, provider: Provider, *, timeout_s: float = LIST_TIMEOUT_S) -> None:
        self._provider = provider
        self._timeout_s = timeout_s
        self._by_payment: dict[str, ProviderCharge] = {}
        self._by_digest: dict[str, ProviderCharge] = {}
        # None: no charges were read.
        self._covered_from: datetime | None = None
        self._newest: datetime | None = None

    def refresh(self, payments: Iterable[Payment], deadline: Deadline | None = None) -> None:
        """List new charges that may belong to these payments; raises Busy, which proves nothing
        about any of them."""
        oldest = min(p.books_from or p.created_at for p in payments) - CLOCKS_DIFFER
        since = self._since(oldest)
        newest = self._newest
        within = deadline or Deadline.after(self._timeout_s)
        for charge in self._provider.list_since(since, within):
            self._add(charge)
            newest = max(newest or charge.created_at, charge.created_at)
        # Only a whole listing counts: an interrupted one is read again.
        self._newest = newest
        if self._covered_from is None:
            self._covered_from = oldest

    @property
    def covered_from(self) -> datetime | None:
        """From here on the books are known as of the last refresh; None: nothing is."""
        return self._covered_from

    def find(self, payment: Payment) -> ProviderCharge | None:
        """The charge of this payment, by its id or by its client's key."""
        own = self._by_payment.get(payment.id)
        lost = self._by_digest.get(payment.key_digest or "")
        if own is not None:
            # The key was freed and used again, and that row is lost: the charge that moved money counts.
            return lost if has_moved(lost) and not has_moved(own) else own
        return lost if lost is not None and may_be_of(lost, payment) else None

    def _since(self, oldest: datetime) -> datetime:
        is_full = len(self._by_payment) > CHARGES_MAX
        if self._covered_from is not None and self._covered_from <= oldest and not is_full:
            continued = self._covered_from if self._newest is None else self._newest - OVERLAP
            if continued >= oldest:
                return continued
        self._forget()
        return oldest

    def _add(self, charge: ProviderCharge) -> None:
        for index, name in (
            (self._by_payment, charge.payment_id),
            (self._by_digest, charge.key_digest),
        ):
            if name and weight(charge) >= weight(index.get(name)):
                index[name] = charge

    def _forget(self) -> None:
        self._by_payment = {}
        self._by_digest = {}
        self._covered_from = None
        self._newest = None


def may_be_of(charge: ProviderCharge, payment: Payment) -> bool:
    """Whether a charge under the payment's key, and another id of ours, can be this payment's.

    A charge without moved money may belong to an earlier payment that left its key free: with
    another amount it does.
    """
    if charge.outcome.kind is not OutcomeKind.NOT_EXECUTED:
        return True
    is_same = (charge.amount_minor, charge.currency) == (payment.amount_minor, payment.currency)
    return is_same and charge.outcome.error != _CANCELED


def has_moved(charge: ProviderCharge | None) -> bool:
    """Whether money moved, or could move without another call."""
    return charge is not None and charge.outcome.kind not in _CANNOT_MOVE


def weight(charge: ProviderCharge | None) -> int:
    """Of two charges of one payment, the one that moved money, or could."""
    if charge is None:
        return -1
    order = (
        *(OutcomeKind.NOT_EXECUTED, OutcomeKind.DECLINED, OutcomeKind.PENDING),
        *(OutcomeKind.UNKNOWN, OutcomeKind.SUCCEEDED),
    )
    return order.index(charge.outcome.kind)
