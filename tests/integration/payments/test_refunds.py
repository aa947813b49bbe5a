"""Refunds on a real database: reserved before they are sent, settled by proof, never twice."""

from __future__ import annotations

import dataclasses
import threading
from uuid import uuid4

import psycopg2
import pytest

from service.database.pool.pool import Statement
from service.errors import KeyInFlight, KeyReused, NotFound, ValidationFailed, WrongState
from service.payments.movements.handler import refund_of
from service.payments.movements.model import Kind, MovementStatus, finding
from service.providers.base import Outcome, OutcomeKind, Stage
from tests.support.providers.booked_provider import (
    BookedProvider,
    declined,
    refused,
    succeeded,
    unknown,
)
from tests.support.stack.moving import MAKE_DUE, Moving, request, soon


def answered_500():
    return dataclasses.replace(unknown("http_5xx"), stage=Stage.ANSWERED)


def replayed_500():
    return dataclasses.replace(answered_500(), is_replay=True)


def pending():
    return dataclasses.replace(succeeded(0), kind=OutcomeKind.PENDING, provider_ref="re_1")


def test_a_refund_is_reserved_sent_and_recorded(pool):
    moving = Moving(pool, BookedProvider())
    payment = moving.pay()

    refund, after = moving.move(Kind.REFUND, payment, 1000)

    assert (refund.status, refund.amount_minor) == (MovementStatus.SUCCEEDED, 1000)
    assert (after.amount_refunded_minor, after.status) == (1000, payment.status)
    assert moving.amounts(payment) == (2599, 1000, 0, 0)
    assert moving.events(payment)[-2:] == ["refund.sending", "refund.succeeded"]
    assert moving.broken_promises() == {}


def test_concurrent_refunds_sum_to_the_captured_amount(pool):
    moving = Moving(pool, BookedProvider())
    payment = moving.pay()

    for amount in (2000, 500, 99):
        moving.refund(payment, amount)

    assert moving.amounts(payment) == (2599, 2599, 0, 0)
    with pytest.raises(ValidationFailed) as refusal:
        moving.refund(payment, 1)
    assert refusal.value.fields[0]["field"] == "amount"
    assert moving.broken_promises() == {}


def test_provider_call_holds_the_amount_but_no_connection(pool):
    seen = []
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.pay()
    provider.during_call = lambda: seen.append((pool.in_use, moving.amounts(payment)[2]))

    moving.refund(payment, 600)

    assert seen == [(0, 600)]


def test_an_unknown_refund_counts_as_spent(pool):
    provider = BookedProvider()
    provider.next_answers["refund"] = [unknown()]
    moving = Moving(pool, provider)
    payment = moving.pay()

    refund = moving.refund(payment, 2000)

    assert refund.status is MovementStatus.UNKNOWN
    assert moving.amounts(payment) == (2599, 0, 2000, 0)
    with pytest.raises(ValidationFailed):
        moving.refund(payment, 600)


def test_two_refunds_at_once_for_the_last_cent_one_wins(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.pay()
    moving.refund(payment, 2598)
    together, ends = threading.Barrier(2), []

    def refund_the_last_cent() -> None:
        together.wait(60)
        try:
            ends.append(moving.refund(payment, 1).status.value)
        except ValidationFailed as refusal:
            ends.append(refusal.code)

    threads = [threading.Thread(target=refund_the_last_cent) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(ends) == ["succeeded", "validation_failed"]
    assert provider.calls.count("refund") == 2
    assert moving.amounts(payment) == (2599, 2599, 0, 0)


def test_two_at_once_with_one_key_refund_once(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.pay()
    together, ends = threading.Barrier(2), []

    def refund_with_the_key() -> None:
        together.wait(60)
        try:
            ends.append(moving.refund(payment, 100, key="same").id)
        except KeyInFlight as refusal:
            ends.append(refusal.code)

    threads = [threading.Thread(target=refund_with_the_key) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert provider.calls.count("refund") == 1
    assert len(ends) == 2
    assert moving.amounts(payment) == (2599, 100, 0, 0)


def test_same_key_gets_its_refund_even_with_no_amount_left(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.pay()

    first = moving.refund(payment, 2599, key="all")
    again = moving.refund(payment, 2599, key="all")

    assert (again.id, again.status) == (first.id, first.status)
    assert provider.calls.count("refund") == 1


def test_key_in_flight_refuses_a_repeat_and_another_request(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.pay()
    told = []

    def again() -> None:
        with pytest.raises(KeyInFlight) as refusal:
            moving.refund(payment, 100, key="same")
        told.append(refusal.value.payment_id)
        with pytest.raises(KeyReused):
            moving.refund(payment, 101, key="same")

    provider.during_call = again
    moving.refund(payment, 100, key="same")

    assert told == [payment.id]


def test_the_key_of_a_payment_is_not_good_for_a_refund(pool):
    moving = Moving(pool, BookedProvider())
    payment = moving.pay(idempotency_key="order-1")

    with pytest.raises(KeyReused):
        moving.refund(payment, 100, key="order-1")
    assert moving.amounts(payment) == (2599, 0, 0, 0)


@pytest.mark.parametrize("was_executed", [True, False])
def test_unknown_refund_is_settled_and_never_sent_twice(pool, was_executed):
    provider = BookedProvider()
    provider.next_answers["refund"] = [unknown()]
    moving = Moving(pool, provider)
    payment = moving.pay()
    in_doubt = moving.refund(payment, 700)
    if was_executed:
        provider.pay_back(refund_of(in_doubt, payment))

    (settled,) = moving.settle()

    assert settled.status is MovementStatus.SUCCEEDED
    # Sent again only where the books lack it, and then under the very same key.
    assert provider.keys == [in_doubt.provider_key] * (1 if was_executed else 2)
    assert len(provider.refunded) == 1
    assert moving.amounts(payment) == (2599, 700, 0, 0)
    assert moving.broken_promises() == {}


def test_no_resend_while_the_last_call_may_still_arrive(pool):
    provider = BookedProvider()
    provider.next_answers["refund"] = [unknown()]
    moving = Moving(pool, provider, quiescence_s=60.0)
    moving.refund(moving.pay(), 700)

    (settled,) = moving.settle()

    assert settled.status is MovementStatus.UNKNOWN
    assert provider.calls.count("refund") == 1


def test_the_next_key_comes_only_after_a_replayed_error(pool):
    provider = BookedProvider()
    provider.next_answers["refund"] = [answered_500(), answered_500(), replayed_500()]
    moving = Moving(pool, provider)
    payment = moving.pay()
    moving.refund(payment, 700)

    rounds = [moving.settle()[0].status for _ in range(3)]

    assert rounds == [MovementStatus.UNKNOWN, MovementStatus.UNKNOWN, MovementStatus.SUCCEEDED]
    *same, after = provider.keys
    assert len(set(same)) == 1
    assert after not in same
    assert len(provider.refunded) == 1


def test_a_next_key_that_was_not_recorded_is_sent_again(pool):
    provider = BookedProvider()
    provider.next_answers["refund"] = [replayed_500()]
    moving = Moving(pool, provider)
    payment = moving.pay()
    spent = moving.refund(payment, 700)
    moving.pool.run(MAKE_DUE, {}, soon())
    ((leased, _),) = moving.store.lease_due(10, soon())
    next_series = moving.store.begin_again(leased, soon(), with_next_key=True)

    # The process ends here: sent or not, nothing was written.
    (settled,) = moving.settle()

    assert settled.status is MovementStatus.SUCCEEDED
    assert provider.keys == [spent.provider_key, next_series.provider_key]


def test_look_ups_without_proof_end_in_review(pool):
    provider = BookedProvider()
    provider.next_answers["refund"] = [unknown()]
    provider.next_answers["look_up_refund"] = [unknown() for _ in range(40)]
    moving = Moving(pool, provider)
    payment = moving.pay()
    moving.refund(payment, 700)

    often = [moving.settle()[0] for _ in range(20)]
    moving.age()
    moving.settle()

    assert {refund.status for refund in often} == {MovementStatus.UNKNOWN}
    (refund,) = moving.store.list_refunds(payment.merchant_id, payment.payment_id, soon())
    assert refund.status is MovementStatus.NEEDS_REVIEW
    assert moving.amounts(payment) == (2599, 0, 700, 0)


def test_a_declined_refund_gives_the_amount_free_again(pool):
    provider = BookedProvider()
    provider.next_answers["refund"] = [declined()]
    moving = Moving(pool, provider)
    payment = moving.pay()

    refund = moving.refund(payment, 2599)

    assert (refund.status, refund.decline["code"]) == (
        MovementStatus.DECLINED,
        "insufficient_funds",
    )
    assert moving.refund(payment, 2599).status is MovementStatus.SUCCEEDED
    assert moving.broken_promises() == {}


def test_unsent_refund_is_sent_after_the_outage(pool):
    provider = BookedProvider()
    provider.next_answers["refund"] = [refused()]
    moving = Moving(pool, provider)
    payment = moving.pay()

    refund = moving.refund(payment, 700)
    (settled,) = moving.settle()

    assert refund.status is MovementStatus.ACCEPTED
    assert settled.status is MovementStatus.SUCCEEDED
    assert provider.keys == [refund.provider_key] * 2
    assert moving.events(payment)[-4:] == [
        "refund.sending",
        "refund.accepted",
        "refund.sending",
        "refund.succeeded",
    ]


def test_pending_refund_is_reserved_until_the_decision(pool):
    provider = BookedProvider()
    provider.next_answers["refund"] = [pending()]
    provider.next_answers["look_up_refund"] = [pending(), declined()]
    moving = Moving(pool, provider)
    payment = moving.pay()

    refund = moving.refund(payment, 700)
    (still,) = moving.settle()
    held = moving.amounts(payment)
    (ended,) = moving.settle()

    assert [refund.status, still.status] == [MovementStatus.PENDING] * 2
    assert held == (2599, 0, 700, 0)
    assert ended.status is MovementStatus.DECLINED
    assert moving.amounts(payment) == (2599, 0, 0, 0)


@pytest.mark.parametrize("was_executed", [True, False])
def test_a_claim_that_was_never_promised_is_adopted_or_ended(pool, was_executed):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.pay()
    reserved, _, _ = moving.store.claim(request(Kind.REFUND, payment, 700), soon())

    if was_executed:
        provider.pay_back(refund_of(reserved, payment))

    assert moving.store.lease_due(10, soon()) == []
    (settled,) = moving.settle()

    assert settled.movement_id == reserved.movement_id
    assert settled.withdrawn is not was_executed
    # The background sends only what was promised.
    assert "refund" not in provider.calls
    assert moving.amounts(payment) == (2599, 700 if was_executed else 0, 0, 0)
    assert moving.broken_promises() == {}


def test_who_lost_the_lease_sends_nothing(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.pay()
    stale, _, _ = moving.store.claim(request(Kind.REFUND, payment, 700), soon())
    moving.settle()

    assert moving.store.begin_again(stale, soon()) is None


def test_late_fact_is_written_once_and_the_end_is_final(pool):
    provider = BookedProvider()
    provider.next_answers["refund"] = [unknown()]
    moving = Moving(pool, provider)
    payment = moving.pay()
    in_doubt = moving.refund(payment, 700)
    moving.settle()

    late, _ = moving.store.record(
        in_doubt, declined(), finding(in_doubt, declined()), op="refund", due_in_s=0.0
    )

    assert late.status is MovementStatus.SUCCEEDED
    assert moving.amounts(payment) == (2599, 700, 0, 0)
    assert moving.events(payment).count("refund.succeeded") == 1


def test_what_has_no_money_captured_cannot_be_refunded(pool):
    moving = Moving(pool, BookedProvider())

    with pytest.raises(WrongState):
        moving.refund(moving.authorise(), 100)


def test_another_merchants_payment_does_not_exist(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.pay()
    theirs = request(Kind.REFUND, payment, 100, merchant_id=uuid4())

    with pytest.raises(NotFound):
        moving.handler.process(theirs, soon())
    refund = moving.refund(payment, 100)
    assert moving.store.get(uuid4(), refund.movement_id, soon()) is None


def test_the_database_itself_refuses_more_than_was_captured(pool):
    moving = Moving(pool, BookedProvider())
    payment = moving.pay()
    too_much = Statement(
        "too_much",
        "UPDATE payments SET amount_refunding = 2600 WHERE payment_id = %(id)s::uuid RETURNING 1",
    )

    with pytest.raises(psycopg2.errors.CheckViolation):
        pool.run(too_much, {"id": str(payment.payment_id)}, soon())


def test_a_broken_sum_is_seen_by_the_invariants(pool):
    moving = Moving(pool, BookedProvider())
    moving.refund(moving.pay(), 700)
    cook = Statement("cook", "UPDATE payments SET amount_refunded = 600 RETURNING 1")

    pool.run(cook, {}, soon())

    assert moving.broken_promises() == {"refunds_add_up": 1}


def test_another_refunds_reference_leaves_the_money_in_doubt(pool):
    moving = Moving(pool, BookedProvider())
    payment = moving.pay()
    same = Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, provider_ref="re_same")
    moving.provider.next_answers["refund"] = [same, same]

    first = moving.refund(payment, 100)
    second = moving.refund(payment, 200)

    assert (first.status, second.status) == (MovementStatus.SUCCEEDED, MovementStatus.UNKNOWN)
    assert moving.amounts(payment) == (2599, 100, 200, 0)
