"""Unreadable objects in the provider's lists are parked; the sweep and other payments go on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from service.__main__ import main
from service.database.pool.pool import ConnectionPool, Statement
from service.errors import ProviderUnavailable
from service.observability.metrics import catalogue as metrics
from service.payments.audit import AuditLog
from service.payments.charge.handler import charge_of
from service.payments.charge.model import Payment, Status
from service.payments.settling.recovery import Recovery
from service.providers.base import ProviderCharge
from service.providers.later import (
    Answered,
    CursorLost,
    Feed,
    Item,
    Page,
    PageUnreadable,
    Slice,
    Unreadable,
)
from service.resilience.deadline import Deadline
from tests.support.providers.booked_provider import BookedProvider, unknown
from tests.support.stack.settling import Service, soon

# The sweep reads whole seconds.
NOW = datetime.now(UTC).replace(microsecond=0)
ODD_AT = NOW - timedelta(minutes=40)


def run(pool: ConnectionPool, sql: str, **params: object) -> list[Any]:
    return pool.run(Statement("as_told", f"{sql} RETURNING 1"), params, soon())


def parked(pool: ConnectionPool) -> list[Any]:
    sql = "SELECT feed, mark, provider_ref, holds_all FROM unread_objects ORDER BY mark"
    return pool.run(Statement("parked", sql), {}, soon())


def told() -> float:
    return float(metrics.rows_parked_total._value.get())


class ListingProvider(BookedProvider):
    """Lists charges by their time, newest first; some seconds of its list are garbage."""

    def __init__(self, *charges: ProviderCharge) -> None:
        super().__init__(unknown(), unknown())
        self.listed = list(charges)
        self.garbage: list[datetime] = []
        self.garbage_is: Exception = PageUnreadable("garbage")
        self.parts: list[Slice] = []
        # By their own GET these can be read by now.
        self.readable: set[str] = set()
        self.twice = False
        self.per_page = 100

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        if feed is not Feed.CHARGES:
            return Page([], None, part.page_size)
        self.parts.append(part)
        since, until = (moment.replace(microsecond=0) for moment in (part.since, part.until))
        if any(since <= at < until for at in self.garbage):
            raise self.garbage_is
        inside = sorted(
            (one for one in self.listed if since <= one.created_at < until),
            key=lambda one: (one.created_at, one.provider_ref),
            reverse=True,
        )
        names = [one.provider_ref for one in inside]
        begin = names.index(part.after) + 1 if part.after else 0
        size = min(self.per_page, part.page_size)
        shown, more = inside[begin : begin + size], begin + size < len(inside)
        unreadable = [self.unreadable[one.provider_ref] for one in shown if self._is_odd(one)]
        read: list[Item] = [one for one in shown if not self._is_odd(one)]
        return Page(
            read * (2 if self.twice else 1),
            shown[-1].provider_ref if more else None,
            part.page_size,
            unreadable * (2 if self.twice else 1),
        )

    def read_again(self, feed: Feed, provider_ref: str, deadline: Deadline) -> list[Item]:
        if provider_ref not in self.readable:
            raise PageUnreadable("still odd")
        return [one for one in self.listed if one.provider_ref == provider_ref]


def lost_charge(service: Service, payment: Payment, ref: str, at: datetime) -> ProviderCharge:
    charge = replace(charge_of(payment), provider_ref=ref)
    return replace(service.provider.listed_charge(charge), created_at=at)


@pytest.fixture
def service(pool) -> Service:
    """Two payments in doubt, of which the provider's list shows two charges, one unreadable."""
    service = Service(pool, ListingProvider())
    service.payments = [service.pay(), service.pay()]
    service.provider.listed = [
        lost_charge(service, payment, payment.provider_ref, ODD_AT + timedelta(seconds=n))
        for n, payment in enumerate(service.payments)
    ]
    return service


def make_odd(service: Service, number: int = 0, **changes: Any) -> Unreadable:
    charge = service.provider.listed[number]
    odd = Unreadable(
        Feed.CHARGES,
        mark=charge.provider_ref,
        provider_ref=charge.provider_ref,
        reason="odd",
        payment_id=charge.payment_id,
        merchant_id=charge.merchant_id,
        key_digest=charge.key_digest,
        created_at=charge.created_at,
    )
    odd = replace(odd, **changes)
    service.provider.unreadable[charge.provider_ref] = odd
    return odd


def sweep(service: Service) -> None:
    service.sweep.run_if_due(Deadline.after(30), every_s=0.0)


def look_again(service: Service) -> None:
    run(service.pool, "UPDATE unread_objects SET due_at = now()")
    service.sweep.run_if_due(Deadline.after(30))


def test_the_sweep_goes_on_past_an_unreadable_charge_of_ours(service):
    odd, before = make_odd(service), told()

    sweep(service)
    sweep(service)

    assert service.read(service.payments[1]).status is Status.SUCCEEDED
    assert service.read(service.payments[0]).status is Status.UNKNOWN
    assert parked(service.pool) == [("charges", odd.mark, odd.provider_ref, False)]
    assert told() - before == 1, "Told of once, although it was listed twice."
    assert service.runs.swept_to(soon(), feeds=(Feed.CHARGES,)) is not None


def test_an_unreadable_charge_is_read_by_itself_later(service):
    odd = make_odd(service)
    sweep(service)
    before = told()

    look_again(service)
    still = (parked(service.pool) != [], told() - before)
    service.provider.readable.add(odd.provider_ref)
    look_again(service)

    assert still == (True, 1)
    assert parked(service.pool) == []
    assert service.read(service.payments[0]).status is Status.SUCCEEDED


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, False),
        ({"payment_id": None, "merchant_id": None}, False),
        ({"key_digest": None}, False),
        ({"key_digest": None, "payment_id": None}, True),
        ({"key_digest": None, "payment_id": f"pay_{uuid4().hex}"}, True),
        ({"key_digest": None, "merchant_id": str(uuid4())}, True),
        ({"key_digest": None, "payment_id": None, "provider_ref": None, "mark": "x"}, True),
    ],
)
def test_recovery_waits_only_for_what_could_be_any_lost_charge(service, changes, holds):
    odd = make_odd(service, **changes)
    recovery = Recovery(service.pool, "fake", in_flight_s=0.0)
    recovery.check(soon())
    run(service.pool, "UPDATE background_runs SET last_run_at = now() - interval '1 hour'")
    recovery.check(soon())

    sweep(service)
    recovery.check(soon())
    held = recovery.is_recovering()
    service.provider.unreadable.clear()
    service.provider.readable.add(odd.mark)
    look_again(service)
    recovery.check(soon())

    assert (held, recovery.is_recovering()) == (holds, False)


def test_a_person_releases_what_cannot_be_read(service):
    make_odd(service, key_digest=None, payment_id=None)
    sweep(service)
    assert service.unread.counts(soon()) == (1, 1)

    run(service.pool, "UPDATE unread_objects SET released = true")
    before = told()
    sweep(service)
    look_again(service)

    assert service.unread.counts(soon()) == (0, 0)
    assert told() == before


def test_the_command_lists_and_releases_an_unread_object(
    service, database_url, monkeypatch, capsys
):
    monkeypatch.setenv("DATABASE_URL", database_url)
    odd = make_odd(service, key_digest=None, payment_id=None)
    sweep(service)

    def command(*words: str) -> Any:
        assert main(["unread", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    (listed,) = command("list")
    with pytest.raises(SystemExit):
        main(["unread", "release", odd.mark, "--evidence", "short"])
    before = service.unread.counts(soon())
    released = command("release", odd.mark, "--evidence", "no charge of ours, ticket 1")
    with pytest.raises(SystemExit):
        main(["unread", "release", odd.mark, "--evidence", "no charge of ours, ticket 1"])

    assert (listed["mark"], listed["holds_all"], listed["released"]) == (odd.mark, True, False)
    assert released["released"]
    assert (before, service.unread.counts(soon())) == ((1, 1), (0, 0))
    assert command("list") == []
    (act,) = AuditLog(service.pool).read(soon(), action="unread")
    assert (act.action, act.target, act.actor_kind) == ("unread.released", odd.mark, "cli")
    assert act.detail["evidence"] == "no charge of ours, ticket 1"


@pytest.mark.parametrize("garbage_is", [PageUnreadable("garbage"), CursorLost("gone")])
def test_a_second_of_garbage_is_cornered_and_parked(service, garbage_is):
    provider = service.provider
    provider.garbage, provider.garbage_is = [ODD_AT], garbage_is

    sweep(service)

    assert service.read(service.payments[1]).status is Status.SUCCEEDED
    [(feed, mark, reference, holds_all)] = parked(service.pool)
    assert (feed, reference, holds_all) == ("charges", None, True)
    since, until = (int(part) for part in mark.split("_")[1:])
    assert (since, until - since) == (int(ODD_AT.timestamp()), 1)
    assert len(provider.parts) < 80

    provider.garbage = []
    look_again(service)

    assert parked(service.pool) == []
    assert service.read(service.payments[0]).status is Status.SUCCEEDED


def test_garbage_everywhere_is_an_outage_and_parks_nothing(service):
    service.provider.garbage = [NOW + timedelta(seconds=n) for n in range(-3600, 900)]

    for _ in range(3):
        with pytest.raises(ProviderUnavailable):
            sweep(service)
        run(service.pool, "UPDATE background_runs SET leased_until = now()")

    assert parked(service.pool) == []
    swept_to = service.runs.swept_to(soon(), feeds=(Feed.CHARGES,))
    assert swept_to is None or swept_to < NOW - timedelta(minutes=50)


def test_a_forgotten_cursor_begins_its_slice_again(service):
    provider = service.provider
    foreign = replace(provider.listed[0], payment_id=None, merchant_id=None, key_digest=None)
    provider.listed += [
        replace(foreign, provider_ref=f"pi_{n}", created_at=ODD_AT + timedelta(seconds=10 + n))
        for n in range(250)
    ]
    honest, forgotten = provider.page, []

    def page(feed: Feed, part: Slice, deadline: Deadline) -> Page:
        if part.after is not None and len(forgotten) < 3:
            forgotten.append(part)
            raise CursorLost("no such object")
        return honest(feed, part, deadline)

    provider.page = page
    sweep(service)

    assert len(forgotten) == 3
    assert parked(service.pool) == []
    assert [service.read(one).status for one in service.payments] == [Status.SUCCEEDED] * 2


def test_an_object_listed_twice_is_compared_as_one(service):
    make_odd(service, 1)
    service.provider.twice = True
    before = told()

    sweep(service)

    assert told() - before == 1
    assert service.read(service.payments[0]).status is Status.SUCCEEDED
    assert service.pool.run(Statement("n", "SELECT count(*) FROM orphan_charges"), {}, soon()) == [
        (0,)
    ]


def test_a_provider_that_asks_for_a_pause_is_left_alone(service):
    def page(feed: Feed, part: Slice, deadline: Deadline) -> Page:
        service.provider.parts.append(part)
        raise Answered("slow down", retry_after_s=120.0)

    service.provider.page = page
    with pytest.raises(Answered):
        sweep(service)
    asked = len(service.provider.parts)

    assert service.sweep.run_if_due(soon(), every_s=0.0) is False
    assert len(service.provider.parts) == asked == len(Feed)
    sql = (
        "SELECT bool_and(leased_until > now() + interval '1 minute') AND bool_and("
        "(detail->>'page_size')::int = 100) FROM background_runs WHERE name LIKE 'sweep %%'"
    )
    assert service.pool.run(Statement("paused", sql), {}, soon()) == [(True,)]
