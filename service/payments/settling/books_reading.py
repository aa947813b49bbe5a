"""One stretch of the provider's list of charges, read oldest first and kept in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

from service.errors import ProviderUnavailable
from service.payments.charge.model import Payment
from service.payments.charge.provider_books import CLOCKS_DIFFER, OVERLAP, weight
from service.payments.settling.sweep_progress import Progress
from service.payments.settling.sweep_unread import in_doubt
from service.providers.base import ProviderCharge
from service.providers.later import CursorLost, Feed, LaterProvider, Page, PageUnreadable
from service.resilience.deadline import Deadline

# About 40 MB; of more charges the oldest are forgotten, but for those that were asked for.
CHARGES_MAX = 50_000
# Rows that are searched in one reading; a row beyond is searched in the next.
WANTED_MAX = 10_000
# A page that hangs must not use up the lease of the batch that waits for it.
PAGE_TIMEOUT_S = 5.0
# Of a turn: the last page of a long pass, and the one with what came meanwhile.
PAGES_MIN = 2


@dataclass
class BooksReading:
    """The charges from `whole_from` on, as far as `progress` has come. For one thread."""

    progress: Progress
    # From here on every charge of ours is kept.
    whole_from: datetime
    # Before it only the charges of these payments: id and key digest.
    wanted: dict[str, str | None] = field(default_factory=dict)
    by_payment: dict[str, ProviderCharge] = field(default_factory=dict)
    by_digest: dict[str, ProviderCharge] = field(default_factory=dict)
    # By the provider's clock; None: it has listed nothing yet.
    newest: datetime | None = None

    @classmethod
    def of(cls, start: datetime, until: datetime) -> BooksReading:
        return cls(Progress(until, start), start)

    @property
    def position(self) -> datetime:
        """Everything between the start and this moment was read."""
        return min(self.progress.position, self.progress.began)

    def want(self, payment: Payment, need: datetime) -> bool:
        """Keep the payment's charge from now on; False: what it needs was forgotten already."""
        is_found = self.finds(payment, need) or need >= self.progress.position
        if is_found and len(self.wanted) < WANTED_MAX:
            self.wanted[payment.id] = payment.key_digest
        return self.finds(payment, need)

    def finds(self, payment: Payment, need: datetime) -> bool:
        """Whether the payment's charge is kept, if it is in what was read."""
        return need >= self.whole_from or payment.id in self.wanted

    def next_start(self) -> datetime:
        """Where the newest charges are read on."""
        return self._next_start(is_newest=True) if self.progress.is_done else self.position

    def read_to(
        self, until: datetime, provider: LaterProvider, turn_s: float, *, is_newest: bool
    ) -> tuple[bool, int]:
        """Read on, for about `turn_s`: whether all before `until` was read, and the pages it took.

        Raises Busy where a page cannot be had; what was read before stays.
        """
        end_s, pages = monotonic() + turn_s, 0
        while True:
            if self.progress.is_done:
                if self.progress.began >= until:
                    return True, pages
                self.progress = Progress(
                    until,
                    self._next_start(is_newest=is_newest),
                    width_s=self.progress.width_s,
                    page_size=self.progress.page_size,
                )
            if pages >= PAGES_MIN and monotonic() >= end_s:
                return False, pages
            self._read_page(provider)
            pages += 1

    def _next_start(self, *, is_newest: bool) -> datetime:
        """Where the next pass begins: at the newest charge, by the provider's own clock."""
        if not is_newest:
            return self.progress.began
        return self.whole_from if self.newest is None else self.newest - OVERLAP

    def _read_page(self, provider: LaterProvider) -> None:
        part = self.progress.slice
        try:
            page = provider.page(Feed.CHARGES, part, Deadline.after(PAGE_TIMEOUT_S))
        except (PageUnreadable, CursorLost):
            return self._without()
        except ProviderUnavailable:
            self.progress = self.progress.with_smaller_pages()
            raise
        for charge in _charges_of(page):
            self._add(charge)
        size = len(page.items) + len(page.unreadable)
        after = self.progress.past(page, size)
        if after.is_endless:
            return self._without()
        self.progress = after
        if len(self.by_payment) > CHARGES_MAX:
            self._trim()
        return None

    def _without(self) -> None:
        """Ask for half; of what is left out in the end nothing is known of any earlier payment."""
        if not self.progress.is_narrowest:
            self.progress = self.progress.again_narrower()
            return
        hole = self.progress.slice
        self.progress = self.progress.skipped()
        self.whole_from = max(self.whole_from, hole.until + OVERLAP)
        self.wanted.clear()

    def _add(self, charge: ProviderCharge) -> None:
        self.newest = max(self.newest or charge.created_at, charge.created_at)
        for index, name in (
            (self.by_payment, charge.payment_id),
            (self.by_digest, charge.key_digest),
        ):
            if name and weight(charge) >= weight(index.get(name)):
                index[name] = charge

    def _trim(self) -> None:
        """Forget the older half of what nobody asked for."""
        moments = sorted(charge.created_at for charge in self.by_payment.values())
        self.whole_from = max(self.whole_from, moments[len(moments) // 2])
        digests = set(self.wanted.values())
        self.by_payment = {
            name: charge
            for name, charge in self.by_payment.items()
            if charge.created_at >= self.whole_from or name in self.wanted
        }
        self.by_digest = {
            name: charge
            for name, charge in self.by_digest.items()
            if charge.created_at >= self.whole_from or name in digests
        }


def need_of(payment: Payment) -> datetime:
    """From where on a charge may be this payment's."""
    return (payment.books_from or payment.created_at) - CLOCKS_DIFFER


def _charges_of(page: Page) -> Iterator[ProviderCharge]:
    """The charges of a page; what cannot be read there is in doubt."""
    for item in page.items:
        if isinstance(item, ProviderCharge):
            yield item
    for one in page.unreadable:
        yield in_doubt(
            one.provider_ref,
            payment_id=one.payment_id,
            merchant_id=one.merchant_id,
            key_digest=one.key_digest,
            created_at=one.created_at,
        )
