"""The queue compares itself with books of any size: bounded work a call, and no row for another."""

from __future__ import annotations

import bisect
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from service.errors import ProviderUnavailable
from service.payments.charge.handler import charge_of
from service.payments.charge.model import Payment, Status
from service.payments.settling import books_reading
from service.payments.settling.queue_books import QueueBooks
from service.providers.base import ProviderCharge
from service.providers.later import Feed, Page, PageUnreadable, Slice, Unreadable
from service.resilience.deadline import Deadline
from tests.integration.payments.test_sweep_unread import run
from tests.support.providers.booked_provider import BookedProvider, absent
from tests.support.stack.settling import Service, soon

HOURS_5 = timedelta(hours=5)


class VolumeProvider(BookedProvider):
    """Its list holds so many charges of ours that we have no rows of, spread over six hours."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        now = datetime.now(UTC).replace(microsecond=0)
        step = timedelta(hours=6) / max(count, 1)
        self.moments = [now - timedelta(hours=6) + step * n for n in range(count)]
        self.template: ProviderCharge | None = None
        self.parts: list[Slice] = []
        self.fails_at: set[int] = set()
        self.garbage: list[datetime] = []

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        self.parts.append(part)
        if len(self.parts) in self.fails_at:
            raise ProviderUnavailable("no answer")
        since, until = part.since.replace(microsecond=0), part.until.replace(microsecond=0)
        if any(since <= at < until for at in self.garbage):
            raise PageUnreadable("garbage")
        first, last = (bisect.bisect_left(self.moments, at) for at in (since, until))
        if part.after is not None:
            last = int(part.after)
        begin = max(first, last - part.page_size)
        items = [self._charge(n) for n in range(last - 1, begin - 1, -1)]
        special = [one for one in self.listed if since <= one.created_at < until]
        charged = [self.listed_charge(one) for one in list(self.charged.values())]
        if part.after is None:
            items += [one for one in charged if since <= one.created_at < until]
            items += [one for one in special if one.provider_ref not in self.unreadable]
        odd = [self.unreadable[one.provider_ref] for one in special if self._is_odd(one)]
        return Page(items, str(begin) if begin > first else None, part.page_size, odd)

    def _charge(self, number: int) -> ProviderCharge:
        assert self.template is not None
        return replace(
            self.template,
            provider_ref=f"pi_{number}",
            payment_id=f"pay_{number:032x}",
            key_digest=None,
            created_at=self.moments[number],
        )


def queue_of(pool, provider: VolumeProvider, *ages: timedelta) -> tuple[Service, list[Payment]]:
    """Queued payments of these ages, all due."""
    service = Service(pool, provider)
    provider.available = False
    queued = [service.pay() for _ in ages]
    provider.available = True
    provider.template = provider.listed_charge(charge_of(queued[0]))
    for payment, age in zip(queued, ages, strict=True):
        run(
            pool,
            "UPDATE payments SET created_at = now() - %(age)s::interval,"
            " expires_at = now() + interval '1 hour' WHERE payment_id = %(id)s::uuid",
            age=f"{age.total_seconds()} seconds",
            id=str(payment.payment_id),
        )
    service.make_due()
    return service, [service.read(payment) for payment in queued]


def charge_for(provider: VolumeProvider, payment: Payment, at: datetime) -> ProviderCharge:
    charge = replace(charge_of(payment), provider_ref="pi_lost")
    return replace(provider.listed_charge(charge), created_at=at.replace(microsecond=0))


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(books_reading, "CHARGES_MAX", 2000)
    return 2000


def read_until_covered(books: QueueBooks, *payments: Payment) -> int:
    for calls in range(1, 200):
        books.refresh(payments)
        books._older_ended_s = float("-inf")
        if all(books.covers(payment) for payment in payments):
            return calls
    raise AssertionError("It never ends.")


def test_an_old_row_is_proven_in_books_of_any_size(pool, little_memory):
    provider = VolumeProvider(20_000)
    _, [old] = queue_of(pool, provider, HOURS_5)
    provider.listed = [charge_for(provider, old, old.created_at + timedelta(minutes=1))]
    # The fewest pages a turn.
    books = QueueBooks(provider, turn_s=0.0)

    calls, most = 0, 0
    while not books.covers(old):
        before = len(provider.parts)
        books.refresh([old])
        books._older_ended_s = float("-inf")
        calls += 1
        assert len(provider.parts) - before <= 4, "The work of a call has a bound."
        held = [books._front, *books._older]
        most = max(most, *(len(one.by_payment) for one in held if one))
        assert calls < 2000

    assert calls > 50, "It has ended too soon: nothing was proven."
    assert most <= little_memory + 100
    found = books.find(old)
    assert found is not None
    assert found.provider_ref == "pi_lost", "Kept, although far more came after it."
    read = [(part.since, part.until, part.after) for part in provider.parts]
    assert len(set(read)) > 0.95 * len(read), "Pages are not read again and again."


def test_a_young_row_does_not_wait_for_an_old_one(pool, little_memory):
    provider = VolumeProvider(20_000)
    service, [old, young] = queue_of(pool, provider, HOURS_5, timedelta(seconds=5))
    service.forwarder._books = QueueBooks(provider, turn_s=0.0)

    for _ in range(60):
        service.drain()
        if service.read(young).status is Status.SUCCEEDED:
            break
        run(pool, "UPDATE payments SET due_at = now() WHERE NOT leased")
    during = service.read(old)

    assert service.read(young).status is Status.SUCCEEDED
    assert (during.status, during.leased) == (Status.ACCEPTED, False)
    for _ in range(400):
        run(pool, "UPDATE payments SET due_at = now() WHERE NOT leased")
        service.forwarder._books._older_ended_s = float("-inf")
        service.drain()
        if service.read(old).status is not Status.ACCEPTED:
            break
    assert service.read(old).status is Status.SUCCEEDED
    assert len(provider.charged) == 2


def test_a_failed_page_costs_one_page(pool):
    provider = VolumeProvider(5_000)
    _, [old] = queue_of(pool, provider, HOURS_5)
    books = QueueBooks(provider, turn_s=0.0)
    while not books._is_front_whole or not books._older[-1].by_payment:
        books.refresh([old])
        books._older_ended_s = float("-inf")
    before = books._older[-1].position

    provider.fails_at = {len(provider.parts) + 2}
    books.refresh([old])

    assert books._older[-1].position >= before
    read_until_covered(books, old)


def test_a_failure_of_the_newest_page_proves_nothing(pool):
    provider = VolumeProvider(10)
    _, [young] = queue_of(pool, provider, timedelta(seconds=5))
    books = QueueBooks(provider)
    books.refresh([young])
    assert books.covers(young)

    provider.fails_at = {len(provider.parts) + 1}
    with pytest.raises(ProviderUnavailable):
        books.refresh([young])

    assert not books.covers(young)


def test_a_charge_made_between_two_calls_is_found(pool):
    provider = VolumeProvider(300)
    _, [young] = queue_of(pool, provider, timedelta(seconds=5))
    books = QueueBooks(provider)
    books.refresh([young])
    before = books.find(young)

    provider.listed = [charge_for(provider, young, datetime.now(UTC))]
    books.refresh([young])

    assert before is None
    assert books.covers(young)
    assert books.find(young) is not None


def test_a_lost_rows_paid_charge_counts_before_its_own(pool):
    """The key was freed and used again: its own charge was never confirmed, the later one was."""
    provider = VolumeProvider()
    _, [payment] = queue_of(pool, provider, timedelta(seconds=5))
    paid = charge_for(provider, payment, datetime.now(UTC))
    own = replace(paid, provider_ref="pi_own", outcome=absent())
    later = replace(paid, payment_id="pay_" + "0" * 32)
    provider.listed = [own, later]
    books = QueueBooks(provider)

    books.refresh([payment])

    assert books.covers(payment)
    assert books.find(payment) == later


def test_garbage_in_the_list_holds_only_what_is_older(pool):
    provider = VolumeProvider(100)
    _, [old, young] = queue_of(pool, provider, HOURS_5, timedelta(minutes=5))
    hole = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
    provider.garbage = [hole]
    books = QueueBooks(provider)

    for _ in range(30):
        books.refresh([old, young])
        books._older_ended_s = float("-inf")
    during = (books.covers(young), books.covers(old))
    provider.garbage = []
    read_until_covered(books, old, young)

    assert during == (True, False)


def test_a_payment_with_an_unreadable_charge_is_not_sent(pool):
    provider = VolumeProvider(0)
    service, [first, second, third] = queue_of(pool, provider, *[timedelta(minutes=1)] * 3)
    for number, payment in enumerate((first, second)):
        name = f"pi_odd_{number}"
        charge = charge_for(provider, payment, datetime.now(UTC))
        provider.listed.append(replace(charge, provider_ref=name))
        provider.unreadable[name] = Unreadable(
            Feed.CHARGES,
            mark=name,
            # Of the second not even the id can be read.
            provider_ref=name if number == 0 else None,
            reason="odd",
            payment_id=charge.payment_id,
            merchant_id=charge.merchant_id,
            key_digest=charge.key_digest,
            created_at=charge.created_at,
        )

    for _ in range(3):
        service.drain()

    assert service.read(third).status is Status.SUCCEEDED
    assert [charge.payment_id for charge in provider.charged.values()] == [third.id]
    assert service.read(first).provider_ref == "pi_odd_0"
    assert service.read(second).status is Status.ACCEPTED


def test_what_the_sweep_parked_is_adopted_by_a_later_row(pool):
    """The unreadable charge is older than the row: only the sweep has met it."""
    provider = VolumeProvider(0)
    service, [payment] = queue_of(pool, provider, timedelta(minutes=1))
    odd = Unreadable(
        Feed.CHARGES, "pi_odd", "pi_odd", "odd", None, None, payment.key_digest, payment.created_at
    )
    since = datetime.now(UTC) - timedelta(days=1)
    part = Slice(since, since + timedelta(hours=1))
    service.unread.park(Feed.CHARGES, [odd], part, set(), soon())

    service.drain()

    assert provider.charged == {}
    assert service.read(payment).provider_ref == "pi_odd"
