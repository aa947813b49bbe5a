"""What the provider's books show of queued payments: a charge there means that our note is lost.

A failover or a restore takes our newest commits, so a queued row may be one that was charged. Each
call reads a bounded number of pages and keeps its place: the newest charges for young payments, and
apart from them what older payments need, so that no row waits for another row's age.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic

from service.errors import Busy
from service.payments.charge.model import Payment
from service.payments.charge.provider_books import has_moved, may_be_of, weight
from service.payments.settling.books_reading import BooksReading, need_of
from service.providers.base import ProviderCharge
from service.providers.later import LaterProvider

log = logging.getLogger(__name__)

# Payments of this age share the newest charges; older ones are searched beside them.
YOUNG = timedelta(minutes=30)
# One call's reading of the newest charges, and of older ones: well within the lease of a batch.
TURN_S = 1.0
# Between two turns for older payments young ones have the queue to themselves.
OLDER_EVERY_S = 1.0


class QueueBooks:
    """The provider's charges, as far back as the queue needs them. For one thread."""

    def __init__(self, provider: LaterProvider, *, turn_s: float = TURN_S) -> None:
        self._provider = provider
        self._turn_s = turn_s
        self._front: BooksReading | None = None
        self._is_front_whole = False
        # The reading under way for older payments, and the last one that came to its end.
        self._older: list[BooksReading] = []
        self._older_ended_s = float("-inf")

    def refresh(self, payments: Iterable[Payment]) -> int:
        """Read on for these payments, for at most two turns; the number of pages. Raises Busy where
        the newest charges cannot be had, and then nothing is proven about any of them."""
        asked, now = list(payments), datetime.now(UTC)
        front = self._front_for(asked, now)
        self._is_front_whole = False
        self._is_front_whole, pages = front.read_to(
            now, self._provider, self._turn_s, is_newest=True
        )
        older = [payment for payment in asked if not front.finds(payment, need_of(payment))]
        if older:
            pages += self._read_older(older, front)
        return pages

    def covers(self, payment: Payment) -> bool:
        """Whether every charge that may be this payment's was read by the last refresh."""
        front, need = self._front, need_of(payment)
        if front is None or not self._is_front_whole:
            return False
        if front.finds(payment, need):
            return True
        return any(
            reading.finds(payment, need) and reading.position >= front.whole_from
            for reading in self._older
        )

    def find(self, payment: Payment) -> ProviderCharge | None:
        """The charge that was made for this payment, by its id or by its client's key."""
        readings = [*self._older, *([self._front] if self._front else [])]
        own = _heaviest([one.by_payment.get(payment.id) for one in readings])
        lost = _heaviest([one.by_digest.get(payment.key_digest or "") for one in readings])
        if own is not None:
            # The key was freed and used again, and that row is lost: what moved is believed.
            return lost if has_moved(lost) and not has_moved(own) else own
        return lost if lost is not None and may_be_of(lost, payment) else None

    def _front_for(self, asked: Sequence[Payment], now: datetime) -> BooksReading:
        """The reading of the newest charges; a new one where it has far more left than is needed."""
        young = [need for one in asked if (need := need_of(one)) >= now - YOUNG]
        start = min(young, default=now - YOUNG)
        if self._front is None or self._front.next_start() < start - YOUNG:
            self._front = BooksReading.of(start, now)
        return self._front

    def _read_older(self, older: Sequence[Payment], front: BooksReading) -> int:
        """Give one turn to what the front does not reach; a failure there holds only these."""
        waiting = [one for one in older if not self._is_wanted(one)]
        is_at_rest = all(one.position >= front.whole_from for one in self._older)
        if waiting and is_at_rest:
            started = BooksReading.of(min(map(need_of, waiting)), front.whole_from)
            # The one before stays: payments that it has found are still to be leased.
            self._older = [*self._older[-1:], started]
            for one in older:
                started.want(one, need_of(one))
        if monotonic() - self._older_ended_s < OLDER_EVERY_S:
            return 0
        pages = 0
        try:
            for reading in self._older:
                pages += reading.read_to(
                    front.whole_from, self._provider, self._turn_s, is_newest=False
                )[1]
        except Busy as error:
            log.warning("queue.older_books_not_read", extra={"detail": error.detail})
        self._older_ended_s = monotonic()
        return pages

    def _is_wanted(self, payment: Payment) -> bool:
        wanted = [one.want(payment, need_of(payment)) for one in self._older]
        return any(wanted)


def _heaviest(charges: Sequence[ProviderCharge | None]) -> ProviderCharge | None:
    return max(charges, key=weight, default=None)
