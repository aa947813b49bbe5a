"""Attacks of a hostile reader of the protocol on the settling: haste, silence, lost commits."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from service.payments.charge.handler import charge_of
from service.payments.charge.model import Status
from service.payments.leases.schedule import PATIENCE_S
from service.payments.movements.model import MovementStatus
from service.payments.movements.store import MovementStore
from service.payments.settling.invariants import check_invariants
from service.payments.settling.lease_store import LeaseStore
from service.providers.base import Outcome, OutcomeKind, Stage
from tests.support.providers.booked_provider import BookedProvider, unknown
from tests.support.stack.moving import MAKE_DUE, Moving
from tests.support.stack.settling import MERCHANT, Service, soon


def in_doubt_for_ever() -> BookedProvider:
    return BookedProvider(unknown(), look_ups=tuple(unknown() for _ in range(100)))


# --- Patience -----------------------------------------------------------------------------------


def test_callers_who_ask_again_and_again_use_up_no_patience(pool):
    service = Service(pool, in_doubt_for_ever())
    payment = service.pay()

    for _ in range(40):
        service.settle()

    assert service.read(payment).status is Status.UNKNOWN


def test_repeated_reads_do_not_thin_out_the_schedule(pool):
    service = Service(pool, in_doubt_for_ever())
    payment = service.pay()

    for _ in range(40):
        service.settle()

    after = service.read(payment)
    assert after.due_at is not None
    assert after.due_at - datetime.now(UTC) < timedelta(minutes=1)


def test_one_failed_look_up_after_our_long_silence_is_no_end(pool):
    service = Service(pool, in_doubt_for_ever())
    payment = service.pay()
    service.age(by_s=PATIENCE_S + 1)

    service.settle()

    assert service.read(payment).status is Status.UNKNOWN


def test_waiting_payer_never_leads_to_a_review(pool):
    wait = Outcome(OutcomeKind.PENDING, Stage.ANSWERED, next_action={"type": "use_stripe_sdk"})
    provider = BookedProvider(wait, look_ups=tuple(unknown() for _ in range(40)))
    service = Service(pool, provider)
    payment = service.pay()
    service.age(by_s=PATIENCE_S + 1)

    for _ in range(20):
        service.settle()

    assert service.read(payment).status is Status.REQUIRES_ACTION


# --- Hints --------------------------------------------------------------------------------------


def test_a_webhook_settles_what_was_already_handed_to_a_person(pool):
    provider = BookedProvider(unknown(), look_ups=tuple(unknown() for _ in range(16)))
    service = Service(pool, provider)
    payment = service.pay()
    service.age(by_s=PATIENCE_S + 1)
    for _ in range(16):
        service.settle()
    assert service.read(payment).status is Status.NEEDS_REVIEW
    provider.execute(charge_of(payment))

    service.inbox.receive_webhook(
        soon(),
        provider="fake",
        event_id="evt_late",
        type_="payment_intent.succeeded",
        provider_ref=payment.provider_ref,
        merchant_id=MERCHANT,
        payment_id=payment.payment_id,
    )
    service.inbox.apply_hints(10, soon())
    for due in service.leases.lease_look_ups(10, soon()):
        service.reconciler.settle(due, soon())

    assert service.read(payment).status is Status.SUCCEEDED


# --- Lost commits -------------------------------------------------------------------------------


def test_charge_lost_in_a_failover_is_repaired_not_resent(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    provider.available = False
    queued = service.pay()
    charged = dataclasses.replace(charge_of(queued), provider_ref="pi_before_the_failover")
    provider.listed = [provider.listed_charge(charged)]

    service.sweep.run_if_due(soon())
    provider.available = True
    service.make_due()
    service.drain()

    after = service.read(queued)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, "pi_before_the_failover")
    assert set(provider.calls) == {"list"}


# --- The queue ----------------------------------------------------------------------------------


def test_queued_payment_expires_on_time_during_an_outage(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    provider.available = False
    late = service.pay(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    patient = service.pay()

    service.drain()

    assert service.read(late).status is Status.EXPIRED
    assert service.read(patient).status is Status.ACCEPTED
    assert provider.calls == []


def test_no_more_are_leased_than_can_be_sent_at_once(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    provider.available = False
    for _ in range(22):
        service.pay()
    provider.available = True

    assert [service.drain() for _ in range(4)] == [2, 4, 8, 8]


# --- Another provider ---------------------------------------------------------------------------


def test_doubt_is_settled_only_by_its_own_provider(pool):
    service = Service(pool, BookedProvider(unknown()))
    payment = service.pay()
    other = BookedProvider()
    other.name = "other"
    successor = Service(pool, other)

    successor.settle()

    after = service.read(payment)
    assert (after.status, after.provider) == (Status.UNKNOWN, "fake")
    assert other.calls == []


def test_what_one_provider_was_to_be_sent_is_not_sent_to_another(pool):
    service = Service(pool, BookedProvider())
    service.provider.available = False
    payment = service.pay()
    other = BookedProvider()
    other.name = "other"

    Service(pool, other).drain()

    assert service.read(payment).status is Status.ACCEPTED
    assert other.calls == []


def test_refund_waits_for_the_provider_of_its_payment(pool):
    moving = Moving(pool, BookedProvider())
    payment = moving.pay()
    other = BookedProvider()
    other.name = "other"
    successor = Moving(pool, other)

    refund = successor.refund(payment, 100)
    successor.settle()

    assert refund.status is MovementStatus.ACCEPTED
    assert other.calls == []
    (settled,) = moving.settle()
    assert settled.status is MovementStatus.SUCCEEDED


def test_a_second_charge_at_another_provider_is_an_orphan(pool):
    payment = Service(pool, BookedProvider(unknown())).pay()
    other = BookedProvider()
    other.name = "other"
    other.listed = [other.listed_charge(charge_of(payment))]
    successor = Service(pool, other)

    successor.sweep.run_if_due(soon())

    assert successor.read(payment).status is Status.UNKNOWN
    assert check_invariants(pool, soon())["charge_has_payment"] == 1


def test_reconciler_leases_only_its_own_providers_payments(pool):
    service = Service(pool, BookedProvider(unknown()))
    in_doubt = service.pay()
    service.provider.available = False
    queued = service.pay()
    service.make_due()

    others = LeaseStore(pool, lease_s=10, provider="other")
    own = LeaseStore(pool, lease_s=10, provider="fake")

    assert others.lease_look_ups(10, soon()) == others.lease_queued(10, soon()) == []
    assert [payment.id for payment in own.lease_look_ups(10, soon())] == [in_doubt.id]
    assert [payment.id for payment in own.lease_queued(10, soon())] == [queued.id]


def test_queued_payment_of_another_provider_ends_in_time(pool):
    service = Service(pool, BookedProvider())
    service.provider.available = False
    service.pay(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    service.make_due()

    others = LeaseStore(pool, lease_s=10, provider="other")

    assert [payment.is_expired for payment in others.lease_queued(10, soon())] == [True]


def test_refund_is_leased_with_its_payments_provider(pool):
    moving = Moving(pool, BookedProvider())
    moving.provider.next_answers["refund"] = [unknown()]
    refund = moving.refund(moving.pay(), 100)
    pool.run(MAKE_DUE, {}, soon())

    others = MovementStore(pool, lease_s=10, provider="other")
    own = MovementStore(pool, lease_s=10, provider="fake")

    assert others.lease_due(10, soon()) == []
    assert [movement.id for movement, _ in own.lease_due(10, soon())] == [refund.id]


def test_the_books_of_each_provider_are_swept_on_their_own(pool):
    own, other = BookedProvider(), BookedProvider()
    other.name = "other"
    services = [Service(pool, own), Service(pool, other)]

    for service in services:
        while service.sweep.run_if_due(soon()):
            pass

    assert set(own.calls) == set(other.calls) == {"list"}
    assert len(own.calls) == len(other.calls)
