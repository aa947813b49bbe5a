"""A database that was never swept reads the provider's lists back as far as its setting says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from service.database.pool.pool import Statement
from service.payments.charge.handler import charge_of
from service.payments.settling.recovery import Recovery
from service.payments.settling.sweep import FIRST_BACK
from service.payments.settling.sweep_progress import FIRST_READ, Progress
from service.providers.later import Feed
from service.resilience.deadline import Deadline
from tests.integration.payments.test_sweep_unread import ListingProvider, lost_charge, run
from tests.support.stack.settling import Service, soon

_ORPHANS = Statement("orphans", "SELECT provider_ref FROM orphan_charges ORDER BY 1")


def sweep(service: Service) -> bool:
    return service.sweep.run_if_due(Deadline.after(60), every_s=300.0)


@pytest.fixture
def restored(pool) -> Service:
    """An empty database beside an account with charges of ours: of a minute, and of weeks ago."""
    service = Service(pool, ListingProvider())
    template = lost_charge(service, service.pay(), "pi_new", datetime.now(UTC))
    service.provider.listed = [
        replace(template, provider_ref=name, payment_id=f"pay_{uuid4().hex}", created_at=at)
        for name, at in (
            ("pi_minutes", datetime.now(UTC) - timedelta(minutes=90)),
            ("pi_weeks", datetime.now(UTC) - timedelta(days=20)),
            ("pi_beyond", datetime.now(UTC) - timedelta(days=40)),
        )
    ]
    return service


def test_charges_of_before_the_first_sweep_are_found(pool, restored):
    while sweep(restored):
        pass

    assert pool.run(_ORPHANS, {}, soon()) == [("pi_minutes",), ("pi_weeks",)]


def test_the_newest_days_are_read_first_and_then_oldest_first(restored):
    while sweep(restored):
        pass

    parts = restored.provider.parts
    starts = [part.since for part in parts]
    breaks = [n for n in range(1, len(starts)) if starts[n] < starts[n - 1]]
    assert len(breaks) == 1, "Two passes, each from its oldest on."
    now = datetime.now(UTC)
    assert now - starts[0] - FIRST_READ < timedelta(minutes=5)
    assert now - starts[breaks[0]] - FIRST_BACK - FIRST_READ < timedelta(minutes=5)
    assert len(parts) < 40, "Quiet weeks cost few pages."


def test_the_queue_does_not_wait_for_what_is_older(pool, restored):
    recovery = Recovery(pool, "fake", in_flight_s=0.0)
    recovery.check(soon())
    run(pool, "UPDATE background_runs SET last_run_at = now() - interval '1 hour'")
    recovery.check(soon())
    began = recovery.is_recovering()
    honest = restored.provider.page

    def page(feed, part, deadline):
        recovery.check(soon())
        seen.append((part.since, recovery.is_recovering()))
        return honest(feed, part, deadline)

    seen: list[tuple[datetime, bool]] = []
    restored.provider.page = page
    while sweep(restored):
        pass

    older = datetime.now(UTC) - FIRST_READ - timedelta(hours=1)
    assert began
    assert {held for since, held in seen if since < older} == {False}


def test_the_queue_waits_for_two_days_of_the_books(pool, restored):
    """Providers remember keys for a day or more: a retry of yesterday's payment meets its charge."""
    restored.provider.listed[0] = replace(
        restored.provider.listed[0], created_at=datetime.now(UTC) - timedelta(hours=47)
    )
    recovery = Recovery(pool, "fake", in_flight_s=0.0)
    recovery.check(soon())
    run(pool, "UPDATE background_runs SET last_run_at = now() - interval '1 hour'")
    recovery.check(soon())
    honest = restored.provider.page
    known: list[list[tuple[str]]] = []

    def page(feed, part, deadline):
        recovery.check(soon())
        if not recovery.is_recovering():
            known.append(pool.run(_ORPHANS, {}, soon()))
        return honest(feed, part, deadline)

    restored.provider.page = page
    while sweep(restored):
        pass

    assert known[0] == [("pi_minutes",)], "The queue sends before the charge was seen."


def test_the_older_part_is_read_once(restored):
    while sweep(restored):
        pass
    asked = len(restored.provider.parts)

    restored.sweep.run_if_due(Deadline.after(60), every_s=0.0)
    again = Service(restored.pool, restored.provider)
    again.sweep.run_if_due(Deadline.after(60), every_s=300.0)

    assert len(restored.provider.parts) <= asked + 2


def test_a_list_that_was_swept_before_has_no_older_part():
    now = datetime.now(UTC)

    known = Progress.of({"swept_to": (now - timedelta(days=3)).isoformat()}, now)
    new = Progress.of({}, now)

    assert known.older_until is None
    assert new.older_until == now - FIRST_READ


@pytest.mark.parametrize(
    ("feed", "back_days", "read_days"),
    [
        (Feed.CHARGES, 30, 30),
        (Feed.REFUNDS, 60, 60),
        (Feed.DISPUTES, 30, 120),
        (Feed.EVENTS, 60, 29),
    ],
)
def test_each_list_reads_back_as_far_as_it_can_tell(feed, back_days, read_days):
    until = datetime.now(UTC)

    progress = Progress.of_older({}, until, timedelta(days=back_days), feed)

    assert progress.began - progress.position == timedelta(days=read_days)


def test_an_interrupted_older_part_goes_on_where_it_was(restored):
    service = restored
    payment = charge_of(service.pay())
    service.provider.per_page = 5
    service.provider.listed += [
        replace(
            service.provider.listed_charge(payment),
            provider_ref=f"pi_{n}",
            payment_id=None,
            merchant_id=None,
            key_digest=None,
            created_at=datetime.now(UTC) - timedelta(days=9, seconds=n),
        )
        for n in range(60)
    ]

    turns = 0
    while service.sweep.run_if_due(Deadline.after(0.001), every_s=300.0):
        turns += 1
        assert turns < 500

    read = [(part.since, part.after) for part in service.provider.parts]
    assert turns > 10
    assert len(read) == len(set(read)), "A page was read twice."
