"""Searches the charge of a lost row in the foreground, before a payment's first call is sent.

Only for a claim that cannot trust our rows (`model.Loss`). The provider's books are listed once for
all callers of a process, and later only from the newest entry: callers that wait for a listing which
began after their claim share it.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime, timedelta
from time import monotonic

from service.errors import ProviderUnavailable
from service.ids import parse_id
from service.payments.charge.model import Loss, Payment
from service.payments.charge.provider_books import CLOCKS_DIFFER, ProviderBooks
from service.payments.charge.store import PaymentStore
from service.providers.base import OutcomeKind, Provider, ProviderCharge
from service.resilience.deadline import Deadline

# Beyond this time the queue sends the retry of a lost row, after the whole sweep.
SINCE_MAX = timedelta(days=2)
_CANCELED = "canceled"


class LostCharges:
    """The charges of lost rows in the provider's books. Thread-safe."""

    def __init__(self, store: PaymentStore, provider: Provider) -> None:
        self._store = store
        self._books = ProviderBooks(provider)
        self._lock = threading.Lock()
        # The last whole listing: the time from which it is complete, and its start.
        self._read_from: datetime | None = None
        self._read_at_s = 0.0

    def find(self, payment: Payment, loss: Loss, deadline: Deadline) -> ProviderCharge | None:
        """The charge made under the payment's key; None: the books lack it.

        Raises Busy where neither can be proven in time.
        """
        if loss.since is None or payment.created_at - loss.since > SINCE_MAX:
            raise _unproven()
        searched = replace(payment, books_from=loss.since)
        found = self._listed(searched, loss.since, deadline)
        return None if found is None or self._is_past(found, payment, deadline) else found

    def _listed(
        self, payment: Payment, since: datetime, deadline: Deadline
    ) -> ProviderCharge | None:
        began_s = monotonic()
        if not self._lock.acquire(timeout=deadline.remaining_s()):
            raise _unproven()
        try:
            is_covered = self._read_from is not None and self._read_from <= since - CLOCKS_DIFFER
            if not is_covered or self._read_at_s < began_s:
                reads_at_s = monotonic()
                self._books.refresh([payment], deadline)
                self._read_from, self._read_at_s = self._books.covered_from, reads_at_s
            return self._books.find(payment)
        finally:
            self._lock.release()

    def _is_past(self, found: ProviderCharge, payment: Payment, deadline: Deadline) -> bool:
        """Whether it moved no money and never will: canceled, or of an ended payment of ours."""
        if found.outcome.kind not in (OutcomeKind.NOT_EXECUTED, OutcomeKind.DECLINED):
            return False
        if found.outcome.error == _CANCELED:
            return True
        earlier = parse_id(found.payment_id or "", "pay_")
        is_here = earlier and self._store.get(payment.merchant_id, earlier, deadline)
        return bool(is_here)


def _unproven() -> ProviderUnavailable:
    return ProviderUnavailable(
        "After lost commits, the provider's books are compared first; send it again.",
        retry_after_s=5.0,
    )
