"""Captures and voids on a real database: one end for each reservation, settled by looking."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from service.errors import ValidationFailed, WrongState
from service.payments.charge.model import Status
from service.payments.movements.model import Kind, MovementStatus
from service.providers.base import Outcome, OutcomeKind, Stage
from tests.support.providers.booked_provider import (
    BookedProvider,
    canceled,
    declined,
    refused,
    reserved,
    succeeded,
    unknown,
)
from tests.support.stack.moving import Moving, request, soon

ACTION = Outcome(OutcomeKind.PENDING, Stage.ANSWERED, next_action={"type": "redirect_to_url"})


def test_a_capture_takes_the_part_and_ends_the_payment(pool):
    moving = Moving(pool, BookedProvider())
    payment = moving.authorise()

    capture, captured = moving.move(Kind.CAPTURE, payment, 2000)

    assert capture.status is MovementStatus.SUCCEEDED
    assert (captured.status, captured.amount_captured_minor) == (Status.SUCCEEDED, 2000)
    assert moving.amounts(payment) == (2000, 0, 0, 0)
    assert moving.events(payment)[-3:] == [
        "capture.sending",
        "capture.succeeded",
        "payment.succeeded",
    ]
    assert moving.broken_promises() == {}


def test_a_capture_without_an_amount_takes_all(pool):
    moving = Moving(pool, BookedProvider())

    _, captured = moving.move(Kind.CAPTURE, moving.authorise())

    assert captured.amount_captured_minor == 2599


def test_more_than_was_authorised_is_refused_and_nothing_is_sent(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.authorise()

    with pytest.raises(ValidationFailed):
        moving.move(Kind.CAPTURE, payment, 2600)

    assert "capture" not in provider.calls
    assert moving.amounts(payment) == (0, 0, 0, 0)


def test_only_what_was_captured_can_be_refunded(pool):
    moving = Moving(pool, BookedProvider())
    payment = moving.authorise()
    moving.move(Kind.CAPTURE, payment, 2000)

    with pytest.raises(ValidationFailed):
        moving.refund(payment, 2001)
    assert moving.refund(payment, 2000).status is MovementStatus.SUCCEEDED


def test_a_void_releases_the_money_for_good(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.authorise()

    void, voided = moving.move(Kind.VOID, payment)

    assert (void.status, voided.status) == (MovementStatus.SUCCEEDED, Status.CANCELED)
    assert provider.released == {payment.id}
    with pytest.raises(WrongState):
        moving.move(Kind.CAPTURE, payment)
    assert moving.broken_promises() == {}


def test_unsent_payment_is_voided_without_the_provider(pool):
    provider = BookedProvider()
    provider.available = False
    moving = Moving(pool, provider)
    payment = moving.pay()

    void, voided = moving.move(Kind.VOID, payment)

    assert (void.status, voided.status) == (MovementStatus.SUCCEEDED, Status.CANCELED)
    assert provider.calls == []
    assert voided.due_at is None
    assert moving.broken_promises() == {}


def test_a_void_of_a_payment_that_waits_for_the_payer_ends_it(pool):
    moving = Moving(pool, BookedProvider(ACTION))
    payment = moving.pay()

    _, voided = moving.move(Kind.VOID, payment)

    assert payment.status is Status.REQUIRES_ACTION
    assert (voided.status, voided.next_action) == (Status.CANCELED, None)


@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.VOID])
def test_a_settled_payment_is_in_the_wrong_state(pool, kind):
    moving = Moving(pool, BookedProvider())

    with pytest.raises(WrongState):
        moving.move(kind, moving.pay())


def test_a_capture_and_a_void_at_once_one_wins(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.authorise()
    together, ends = threading.Barrier(2), []

    def end_it(kind: Kind) -> None:
        together.wait(60)
        try:
            ends.append(moving.move(kind, payment)[0].status.value)
        except WrongState as refusal:
            ends.append(refusal.code)

    threads = [threading.Thread(target=end_it, args=(kind,)) for kind in (Kind.CAPTURE, Kind.VOID)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(ends) == ["succeeded", "wrong_state"]
    assert len(provider.captured) + len(provider.released) == 1


def test_capture_in_doubt_excludes_a_second_and_a_void(pool):
    provider = BookedProvider()
    provider.next_answers["capture"] = [unknown()]
    moving = Moving(pool, provider)
    payment = moving.authorise()

    capture, after = moving.move(Kind.CAPTURE, payment, 1000)

    assert capture.status is MovementStatus.UNKNOWN
    assert (after.status, moving.amounts(payment)) == (Status.REQUIRES_CAPTURE, (0, 0, 0, 1000))
    for kind in (Kind.CAPTURE, Kind.VOID):
        with pytest.raises(WrongState):
            moving.move(kind, payment)


@pytest.mark.parametrize("was_executed", [True, False])
def test_a_capture_in_doubt_is_settled_by_looking_and_taken_once(pool, was_executed):
    provider = BookedProvider()
    provider.next_answers["capture"] = [unknown()]
    moving = Moving(pool, provider)
    payment = moving.authorise()
    in_doubt, _ = moving.move(Kind.CAPTURE, payment, 1000)
    if was_executed:
        provider.captured[payment.id] = 1000

    (settled,) = moving.settle()

    assert settled.status is MovementStatus.SUCCEEDED
    assert provider.keys == [in_doubt.provider_key] * (1 if was_executed else 2)
    assert (moving.read(payment).status, moving.amounts(payment)) == (
        Status.SUCCEEDED,
        (1000, 0, 0, 0),
    )
    assert moving.broken_promises() == {}


def test_a_void_in_doubt_that_was_carried_out_is_found_out(pool):
    provider = BookedProvider()
    provider.next_answers["cancel"] = [unknown()]
    moving = Moving(pool, provider)
    payment = moving.authorise()
    moving.move(Kind.VOID, payment)
    provider.released.add(payment.id)

    (settled,) = moving.settle()

    assert settled.status is MovementStatus.SUCCEEDED
    assert moving.read(payment).status is Status.CANCELED


def test_void_is_declined_when_the_money_was_captured(pool):
    provider = BookedProvider()
    provider.next_answers["cancel"] = [unknown("http_4xx")]
    moving = Moving(pool, provider)
    payment = moving.authorise()
    moving.move(Kind.VOID, payment)
    provider.captured[payment.id] = 2599

    (settled,) = moving.settle()

    assert (settled.status, settled.decline["code"]) == (
        MovementStatus.DECLINED,
        "already_captured",
    )
    assert (moving.read(payment).status, moving.amounts(payment)) == (
        Status.SUCCEEDED,
        (2599, 0, 0, 0),
    )
    assert moving.broken_promises() == {}


@pytest.mark.parametrize(
    ("found", "ends_as"),
    [(canceled(), Status.CANCELED), (succeeded(900), Status.SUCCEEDED)],
)
def test_capture_after_another_end_records_the_providers_state(pool, found, ends_as):
    provider = BookedProvider(reserved(), look_ups=(found,))
    provider.next_answers["capture"] = [unknown("http_4xx")]
    moving = Moving(pool, provider)
    payment = moving.authorise()

    capture, _ = moving.move(Kind.CAPTURE, payment, 1000)

    assert capture.status is MovementStatus.DECLINED
    assert moving.read(payment).status is ends_as
    assert moving.read(payment).amount_captured_minor == found.amount_received
    assert moving.broken_promises() == {}


def test_capture_refused_by_the_books_may_be_tried_again(pool):
    provider = BookedProvider()
    provider.next_answers["capture"] = [
        dataclasses.replace(unknown("http_4xx"), stage=Stage.ANSWERED)
    ]
    moving = Moving(pool, provider)
    payment = moving.authorise()
    moving.move(Kind.CAPTURE, payment, 1000)

    (settled,) = moving.settle()
    again, captured = moving.move(Kind.CAPTURE, payment, 500)

    assert settled.status is MovementStatus.DECLINED
    assert (again.status, captured.amount_captured_minor) == (MovementStatus.SUCCEEDED, 500)


@pytest.mark.parametrize("answer", [declined(), refused()])
def test_capture_not_taken_leaves_the_money_reserved(pool, answer):
    provider = BookedProvider()
    provider.next_answers["capture"] = [answer]
    moving = Moving(pool, provider)
    payment = moving.authorise()

    capture, after = moving.move(Kind.CAPTURE, payment, 1000)

    assert after.status is Status.REQUIRES_CAPTURE
    is_over = capture.status is MovementStatus.DECLINED
    assert moving.amounts(payment)[3] == (0 if is_over else 1000)


@pytest.mark.parametrize("was_executed", [True, False])
def test_a_capture_that_was_never_promised_is_adopted_or_ended(pool, was_executed):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.authorise()
    moving.store.claim(request(Kind.CAPTURE, payment, 1000), soon())
    if was_executed:
        provider.captured[payment.id] = 1000

    (settled,) = moving.settle()

    assert settled.withdrawn is not was_executed
    assert "capture" not in provider.calls
    assert moving.amounts(payment) == (1000 if was_executed else 0, 0, 0, 0)
