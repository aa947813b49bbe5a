"""Settling on a real database: look-ups, the queue, the sweep, hints and the promises as SQL."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from service.payments.charge.handler import CONFIRM_NEEDS_S, PaymentHandler, charge_of
from service.payments.charge.model import Status
from service.payments.leases.schedule import PATIENCE_S
from service.payments.settling.invariants import check_invariants
from service.providers.base import Stage
from tests.support.providers.booked_provider import BookedProvider, absent, refused, unknown
from tests.support.stack.running_stack import wait_for
from tests.support.stack.settling import MERCHANT, Service, soon


def test_charged_unknown_is_found_and_not_charged_again(pool):
    provider = BookedProvider(unknown())
    service = Service(pool, provider)
    payment = service.pay()
    provider.execute(charge_of(payment))

    (settled,) = service.settle()

    assert settled.status is Status.SUCCEEDED
    assert len(provider.charged) == 1
    assert provider.calls.count("confirm") == 1


def test_absent_unknown_is_sent_again_under_the_next_key(pool):
    provider = BookedProvider(unknown())
    service = Service(pool, provider)
    payment = service.pay()

    (settled,) = service.settle()

    assert settled.status is Status.SUCCEEDED
    assert settled.provider_key != payment.provider_key
    assert list(provider.charged) == [settled.provider_key]


def test_no_resend_while_the_last_call_may_still_arrive(pool):
    provider = BookedProvider(unknown())
    service = Service(pool, provider, quiescence_s=60.0)
    service.pay()

    (settled,) = service.settle()

    assert settled.status is Status.UNKNOWN
    assert provider.calls.count("confirm") == 1


def test_a_look_up_in_doubt_settles_nothing_and_comes_later(pool):
    provider = BookedProvider(unknown(), look_ups=(unknown(),))
    service = Service(pool, provider)
    service.pay()

    (settled,) = service.settle()

    assert (settled.status, settled.look_ups) == (Status.UNKNOWN, 1)
    assert settled.next_check_at is not None


def test_look_up_refused_by_a_guard_keeps_its_attempt(pool):
    provider = BookedProvider(
        unknown(), look_ups=(dataclasses.replace(unknown("breaker_open"), stage=Stage.NOT_SENT),)
    )
    service = Service(pool, provider)
    payment = service.pay()

    service.settle()

    after = service.read(payment)
    assert (after.status, after.look_ups, after.leased) == (Status.UNKNOWN, 0, False)


def test_no_proof_ever_ends_in_review_and_never_in_failure(pool):
    provider = BookedProvider(unknown(), look_ups=tuple(unknown() for _ in range(40)))
    service = Service(pool, provider)
    payment = service.pay()
    service.age(by_s=PATIENCE_S + 1)

    for _ in range(20):
        service.settle()

    assert service.read(payment).status is Status.NEEDS_REVIEW


def test_a_leased_payment_is_nobody_elses(pool):
    service = Service(pool, BookedProvider(unknown()))
    service.pay()
    service.make_due()

    first = service.leases.lease_look_ups(10, soon())
    second = service.leases.lease_look_ups(10, soon())

    assert (len(first), len(second)) == (1, 0)


def test_a_lease_whose_holder_died_is_taken_by_the_next(pool):
    service = Service(pool, BookedProvider(unknown()))
    payment = service.pay()
    service.make_due()
    (lost,) = service.leases.lease_look_ups(10, soon())

    (settled,) = service.settle()

    assert settled.fence == lost.fence + 1
    assert service.read(payment).status is Status.SUCCEEDED


def test_a_queued_payment_is_sent_when_the_provider_is_back(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    provider.available = False
    payment = service.pay()
    provider.available = True

    assert service.drain() == 1

    assert service.read(payment).status is Status.SUCCEEDED


def test_the_queue_is_left_alone_while_the_provider_is_down(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    provider.available = False
    service.pay()

    assert service.drain() == 0
    assert provider.calls == []


def test_the_queue_starts_slowly_and_grows_while_all_goes_well(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    provider.available = False
    for _ in range(14):
        service.pay()
    provider.available = True

    assert [service.drain() for _ in range(4)] == [2, 4, 8, 0]


def test_merchants_take_turns_in_the_queue(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    provider.available = False
    for _ in range(3):
        service.pay()
    other = service.pay(merchant_id=uuid4())
    provider.available = True

    service.drain()

    assert service.read(other).status is Status.SUCCEEDED


def test_a_queued_payment_past_its_time_is_never_sent(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    provider.available = False
    payment = service.pay(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    provider.available = True

    service.drain()

    assert service.read(payment).status is Status.EXPIRED
    assert provider.calls == ["list"]


def test_asking_about_an_unknown_brings_its_look_up_forward(pool):
    service = Service(pool, BookedProvider(unknown()))
    payment = service.pay()

    service.store.nudge(MERCHANT, payment.payment_id, soon(), at_most_every_s=0)

    assert len(service.leases.lease_look_ups(10, soon())) == 1


def test_a_webhook_is_kept_once_and_brings_the_look_up_forward(pool):
    service = Service(pool, BookedProvider(unknown()))
    payment = service.pay()
    event = {
        "provider": "fake",
        "event_id": "evt_1",
        "type_": "payment_intent.succeeded",
        "provider_ref": payment.provider_ref,
        "merchant_id": MERCHANT,
        "payment_id": payment.payment_id,
    }

    assert service.inbox.receive_webhook(soon(), **event)
    assert not service.inbox.receive_webhook(soon(), **event)
    assert service.inbox.apply_hints(10, soon()) == 1

    assert len(service.leases.lease_look_ups(10, soon())) == 1


def test_a_webhook_before_its_payment_is_kept_for_later(pool):
    service = Service(pool, BookedProvider())
    service.inbox.receive_webhook(
        soon(),
        provider="fake",
        event_id="evt_early",
        type_="payment_intent.succeeded",
        provider_ref="pi_1",
        merchant_id=MERCHANT,
        payment_id=uuid4(),
    )

    assert service.inbox.apply_hints(10, soon()) == 0


def test_the_sweep_repairs_what_the_provider_knows_and_we_do_not(pool):
    provider = BookedProvider(unknown())
    service = Service(pool, provider)
    payment = service.pay()
    provider.listed = [provider.listed_charge(charge_of(payment))]

    assert service.sweep.run_if_due(soon())

    assert service.read(payment).status is Status.SUCCEEDED


def test_charge_without_a_payment_breaks_an_invariant(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    lost = dataclasses.replace(
        charge_of(service.pay()), payment_id=f"pay_{uuid4().hex}", provider_ref="pi_lost"
    )
    provider.listed = [provider.listed_charge(lost)]

    service.sweep.run_if_due(soon())

    assert check_invariants(pool, soon())["charge_has_payment"] == 1


@pytest.mark.parametrize("changed", [{"amount_minor": 1}])
def test_a_charge_of_another_amount_is_an_orphan(pool, changed):
    provider = BookedProvider(unknown())
    service = Service(pool, provider)
    payment = service.pay()
    provider.listed = [provider.listed_charge(charge_of(payment), **changed)]

    service.sweep.run_if_due(soon())

    assert service.read(payment).status is Status.UNKNOWN
    assert check_invariants(pool, soon())["charge_has_payment"] == 1


def test_a_sweep_is_done_once_in_its_time_by_whoever_comes_first(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    assert service.sweep.run_if_due(soon())
    while service.sweep.run_if_due(soon()):
        pass
    asked = len(provider.calls)

    assert not Service(pool, provider).sweep.run_if_due(soon())
    assert len(provider.calls) == asked


def test_after_payments_of_every_kind_no_promise_is_broken(pool):
    provider = BookedProvider(unknown(), absent(), refused())
    service = Service(pool, provider)
    for _ in range(5):
        service.pay()
    service.settle()

    assert set(check_invariants(pool, soon()).values()) == {0}


def test_expired_payment_is_canceled_at_the_provider_first(pool):
    provider = BookedProvider(unknown())
    service = Service(pool, provider)
    payment = service.pay(expires_at=datetime.now(UTC) + timedelta(seconds=0.5))
    assert payment.status is Status.UNKNOWN
    wait_for(lambda: service.read(payment).is_expired)

    (settled,) = service.settle()

    assert settled.status is Status.NOT_EXECUTED
    assert provider.calls[-1] == "cancel"
    assert not provider.charged
    assert service.read(payment).is_terminal


def test_what_a_person_found_out_is_kept_with_the_evidence(pool):
    service = Service(pool, BookedProvider(unknown()))
    payment = service.pay()

    resolved = service.store.resolve(
        payment, Status.SUCCEEDED, "statement of 3 March, line 12", "key_1", soon()
    )

    assert resolved is not None
    assert (resolved.status, resolved.amount_captured_minor) == (Status.SUCCEEDED, 2599)
    last = service.store.timeline(MERCHANT, payment.payment_id, soon())[-1]
    assert (last.detail["reason"], last.detail["by"]) == ("statement of 3 March, line 12", "key_1")


def test_a_settled_payment_cannot_be_resolved_again(pool):
    service = Service(pool, BookedProvider())
    payment = service.pay()

    assert service.store.resolve(payment, Status.DECLINED, "no such charge", "k", soon()) is None


def test_when_the_provider_is_back_doubt_is_looked_at_at_once(pool):
    service = Service(pool, BookedProvider(unknown(), look_ups=(unknown(), unknown())))
    payment = service.pay()
    service.age(by_s=100)
    service.settle()
    service.settle()

    assert service.leases.reschedule_now(soon()) == 1

    after = service.read(payment)
    assert after.due_at is not None
    assert (after.due_at - datetime.now(UTC)).total_seconds() < 3


def test_payment_prepared_too_late_is_not_prepared_again(pool):
    provider = BookedProvider()
    service = Service(pool, provider)
    no_time_to_confirm = PaymentHandler(
        service.store, provider, provider_timeout_s=CONFIRM_NEEDS_S * 0.9
    )
    service.handler, patient = no_time_to_confirm, service.handler
    payment = service.pay()
    service.handler = patient
    service.make_due()

    service.drain()

    after = service.read(payment)
    assert (payment.status, after.status) == (Status.ACCEPTED, Status.SUCCEEDED)
    assert provider.calls == ["prepare", "confirm"]
    assert after.provider_ref == payment.provider_ref
