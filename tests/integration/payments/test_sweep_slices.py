"""The sweep ends for any amount of data, and continues where it was interrupted."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from service.database.pool.pool import Statement
from service.errors import ProviderUnavailable
from service.payments.charge.handler import charge_of
from service.payments.charge.model import Status
from service.payments.settling.sweep_progress import DISTRUSTED, OVERLAP, Progress
from service.providers.later import EventHint, Feed, FeedMissing, Page, Slice
from service.resilience.deadline import Deadline
from tests.support.providers.booked_provider import BookedProvider, unknown
from tests.support.stack.settling import Service, soon

_ORPHANS = Statement("orphans", "SELECT count(*) FROM orphan_charges")
PAGE = 100


class BusyProvider(BookedProvider):
    """Lists so many foreign charges, spread over the last hour, at a page a time."""

    def __init__(self, count: int, *, page_s: float = 0.0) -> None:
        super().__init__(unknown())
        self.count = count
        self.page_s = page_s
        self.pages: list[Slice] = []
        self.failures: list[Exception] = []
        self.made_at = [
            datetime.now(UTC) - OVERLAP + timedelta(seconds=10 + 3500 * n / count)
            for n in range(count)
        ]

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        if feed is not Feed.CHARGES:
            return Page([], None, part.page_size)
        self.pages.append(part)
        if self.failures:
            raise self.failures.pop(0)
        time.sleep(self.page_s)
        inside = [n for n, at in enumerate(self.made_at) if part.since <= at < part.until]
        inside.reverse()
        begin = inside.index(int(part.after)) + 1 if part.after else 0
        shown = inside[begin : begin + part.page_size]
        more = begin + part.page_size < len(inside)
        return Page([self._charge(n) for n in shown], str(shown[-1]) if more else None, PAGE)

    def _charge(self, number: int):
        if self.listed and number == 0:
            return self.listed[0]
        return self.listed_charge_of(number)

    def listed_charge_of(self, number: int):
        charge = BookedProvider.listed_charge(self, self._template, amount_minor=1)
        return type(charge)(
            f"pi_{number}", None, 1, "usd", charge.outcome, self.made_at[number], None
        )


@pytest.fixture
def busy(pool):
    provider = BusyProvider(30_000, page_s=0.002)
    service = Service(pool, provider)
    payment = service.pay()
    provider._template = charge_of(payment)
    # The oldest of all is a lost answer of ours.
    provider.listed = [provider.listed_charge(charge_of(payment))]
    return service, payment


def sweep_for(service: Service, seconds: float) -> bool:
    return service.sweep.run_if_due(Deadline.after(seconds), every_s=300.0)


def test_tens_of_thousands_of_charges_are_swept_over_many_turns(busy):
    service, payment = busy
    turns, reached = 0, []

    while sweep_for(service, 0.3):
        turns += 1
        reached.append(service.runs.swept_to(soon(), feeds=(Feed.CHARGES,)))
        assert turns < 200

    assert turns > 2, "It has ended in one turn: nothing was proven."
    assert service.read(payment).status is Status.SUCCEEDED
    read = [(part.since, part.after) for part in service.provider.pages]
    assert len(read) == len(set(read)), "A page was read twice."
    known = [moment for moment in reached if moment]
    assert known == sorted(known)
    assert datetime.now(UTC) - known[-1] < timedelta(minutes=2)


def test_a_crash_costs_one_page(busy):
    service, _ = busy
    sweep_for(service, 0.2)
    before = len(service.provider.pages)
    service.provider.failures = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        sweep_for(service, 0.2)
    service.pool.run(
        Statement("lease_over", "UPDATE background_runs SET leased_until = now() RETURNING 1"),
        {},
        soon(),
    )

    sweep_for(service, 0.2)

    pages = service.provider.pages
    assert (pages[before + 1].since, pages[before + 1].after) == (
        pages[before].since,
        pages[before].after,
    )


def test_a_page_that_fails_is_asked_for_again_smaller(busy):
    service, _ = busy
    service.provider.failures = [ProviderUnavailable("too slow")]
    with pytest.raises(ProviderUnavailable):
        sweep_for(service, 0.2)
    service.pool.run(
        Statement("lease_over", "UPDATE background_runs SET leased_until = now() RETURNING 1"),
        {},
        soon(),
    )

    sweep_for(service, 0.2)

    first, second = service.provider.pages[:2]
    assert (first.page_size, second.page_size) == (100, 50)
    assert first.since == second.since


def test_the_age_grows_while_one_list_cannot_be_read(busy):
    service, _ = busy
    service.provider.count = 0
    service.provider.made_at = []
    sweep_for(service, 5)

    assert service.runs.swept_to(soon()) is not None
    assert Service(service.pool, BookedProvider()).runs.swept_to(soon()) is not None
    other = BookedProvider()
    other.name = "other"
    assert Service(service.pool, other).runs.swept_to(soon()) is None


def test_a_list_that_the_provider_lacks_holds_nothing_up(pool):
    provider = BookedProvider()
    honest = provider.page

    def page(feed: Feed, part: Slice, deadline: Deadline) -> Page:
        if feed is Feed.EVENTS:
            raise FeedMissing("/v1/events")
        return honest(feed, part, deadline)

    provider.page = page
    service = Service(pool, provider)

    service.sweep.run_if_due(soon())

    assert service.runs.swept_to(soon()) is not None


@pytest.mark.parametrize(("setting", "orphans"), [("ignore", 0), ("page", 3)])
def test_foreign_charges_are_a_setting(pool, setting, orphans):
    provider = BusyProvider(3)
    service = Service(pool, provider, foreign_charges=setting)
    provider._template = charge_of(service.pay())

    service.sweep.run_if_due(soon())

    assert pool.run(_ORPHANS, {}, soon()) == [(orphans,)]


def test_a_slice_follows_the_last_without_a_gap():
    now = datetime.now(UTC)
    progress = Progress.of({"swept_to": (now - timedelta(days=2)).isoformat()}, now)
    ends = [progress.position]
    while not progress.is_done:
        assert progress.slice.since == ends[-1]
        ends.append(progress.slice.until)
        progress = progress.past(Page([], None, 100), 0)

    assert ends[0] == now - timedelta(days=2) - OVERLAP
    assert ends[-1] > now
    assert progress.swept_to == now


def test_a_checkpoint_from_the_future_proves_nothing():
    now = datetime.now(UTC)
    ahead = (now + timedelta(days=1)).isoformat()

    rested = Progress.of({"swept_to": ahead}, now)
    cut_short = Progress.of({"swept_to": ahead, "position": ahead, "began": ahead}, now)

    for progress in (rested, cut_short):
        assert progress.position <= now - DISTRUSTED
        assert not progress.is_done
        assert progress.detail()["swept_to"] <= now.isoformat()


class EndlessProvider(BusyProvider):
    """Each page has a next one: the same few items again and again."""

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        if feed is not Feed.CHARGES:
            return Page([], None, part.page_size)
        self.pages.append(part)
        return Page([], {"a": "b", "b": "c"}.get(part.after or "", "a"), part.page_size)


def test_endless_list_is_an_outage_after_a_bounded_read(pool):
    provider = EndlessProvider(0)
    service = Service(pool, provider)

    with pytest.raises(ProviderUnavailable):
        sweep_for(service, 60)

    asked = len(provider.pages)
    assert asked <= 100
    sweep_for(service, 60)
    assert len(provider.pages) == asked, "The next try waits."
    run = Statement("run", "SELECT detail FROM background_runs WHERE name = 'sweep fake'")
    [(detail,)] = pool.run(run, {}, soon())
    assert (detail["width_s"], detail["swept_to"]) == (1, None)


@pytest.mark.parametrize(("setting", "orphans"), [("ignore", 1), ("page", 3)])
def test_another_instances_charges_page_once_a_merchant(pool, setting, orphans):
    provider = BusyProvider(3)
    service = Service(pool, provider, foreign_charges=setting)
    provider._template = replace(
        charge_of(service.pay()), payment_id=f"pay_{uuid4().hex}", merchant_id=uuid4().hex
    )
    provider.listed_charge_of = lambda number: replace(
        BookedProvider.listed_charge(provider, provider._template, amount_minor=1),
        provider_ref=f"pi_{number}",
        created_at=provider.made_at[number],
    )

    for _ in range(2):
        service.sweep.run_if_due(soon(), every_s=0.0)

    assert pool.run(_ORPHANS, {}, soon()) == [(orphans,)]


def test_another_instances_hints_are_used_up_at_once(pool):
    service = Service(pool, BookedProvider())
    hint = EventHint("evt_1", "charge.refunded", "pi_1", f"pay_{uuid4().hex}", str(uuid4()))
    ids = (UUID(hint.merchant_id), uuid4())

    swept = service.late_store.receive("stripe", [(hint, ids)], soon())
    service.inbox.receive_webhook(
        soon(),
        provider="stripe",
        event_id="evt_2",
        type_="charge.refunded",
        provider_ref="pi_1",
        merchant_id=ids[0],
        payment_id=ids[1],
    )

    assert (swept, service.inbox.apply_hints(10, soon())) == (0, 1)


@pytest.mark.parametrize(
    ("feed", "paused_days", "read_days"),
    [
        (Feed.CHARGES, 28, 28),
        (Feed.CHARGES, 31, 61),
        (Feed.REFUNDS, 31, 61),
        (Feed.DISPUTES, 31, 151),
        (Feed.EVENTS, 31, 31),
    ],
)
def test_a_pause_that_events_do_not_outlive_is_read_by_lists(feed, paused_days, read_days):
    now = datetime.now(UTC)
    detail = {"swept_to": (now - timedelta(days=paused_days)).isoformat()}

    progress = Progress.of(detail, now, feed)

    assert (now - progress.position - timedelta(days=read_days)) <= OVERLAP
    assert now - progress.position >= timedelta(days=read_days)
