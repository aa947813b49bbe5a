"""process_payment on a real database, with a provider that does what the test says."""

from __future__ import annotations

import dataclasses
import threading
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.errors import DatabaseUnavailable, KeyInFlight, KeyReused, ProviderUnavailable
from service.payments.charge.handler import PaymentHandler
from service.payments.charge.model import ChargeRequest, Status
from service.payments.charge.store import PaymentStore
from service.providers.base import OutcomeKind
from service.resilience.deadline import Deadline
from tests.support.charge_requests import charge_request
from tests.support.providers.booked_provider import (
    BookedProvider,
    absent,
    declined,
    refused,
    succeeded,
    unknown,
)

MERCHANT = uuid4()


def request(**changes: object) -> ChargeRequest:
    return charge_request(MERCHANT, **changes)


def handler_of(pool: ConnectionPool, provider: BookedProvider) -> PaymentHandler:
    store = PaymentStore(pool, lease_s=10, queue_expires_s=3600)
    return PaymentHandler(store, provider, provider_timeout_s=5)


def store_of(pool: ConnectionPool) -> PaymentStore:
    return PaymentStore(pool, lease_s=10, queue_expires_s=3600)


def events_of(pool: ConnectionPool, payment_id: object) -> list[str]:
    events = store_of(pool).timeline(MERCHANT, payment_id, Deadline.after(60))
    return [event.type for event in events]


def test_a_payment_is_prepared_noted_confirmed_and_recorded(pool):
    provider = BookedProvider()

    payment, is_new = handler_of(pool, provider).process_payment(request(), Deadline.after(60))

    assert is_new
    assert (payment.status, payment.amount_captured_minor) == (Status.SUCCEEDED, 2599)
    assert provider.calls == ["prepare", "confirm"]
    assert events_of(pool, payment.payment_id) == [
        "payment.accepted",
        "payment.sending",
        "payment.succeeded",
    ]
    assert [attempt["op"] for attempt in payment.attempts] == ["prepare", "confirm"]


def test_no_connection_is_held_while_the_provider_works(pool):
    in_use = []
    provider = BookedProvider(during_call=lambda: in_use.append(pool.in_use))

    handler_of(pool, provider).process_payment(request(), Deadline.after(60))

    assert in_use == [0, 0]


def test_the_reference_is_committed_before_any_money_can_move(pool):
    seen = []

    def look() -> None:
        rows = pool.run(
            Statement("peek", "SELECT status, provider_ref IS NOT NULL FROM payments"),
            {},
            Deadline.after(60),
        )
        seen.append(tuple(rows[0]))

    handler_of(pool, BookedProvider(during_call=look)).process_payment(
        request(), Deadline.after(60)
    )

    assert seen == [("accepted", False), ("sending", True)]


def test_same_key_is_the_same_payment_without_a_second_charge(pool):
    provider = BookedProvider()
    handler = handler_of(pool, provider)
    first = request()

    payment, _ = handler.process_payment(first, Deadline.after(60))
    again, is_new = handler.process_payment(first, Deadline.after(60))

    assert (again.payment_id, is_new) == (payment.payment_id, False)
    assert len(provider.charged) == 1


def test_a_key_with_another_request_is_refused(pool):
    handler = handler_of(pool, BookedProvider())
    first = request()
    handler.process_payment(first, Deadline.after(60))

    with pytest.raises(KeyReused):
        handler.process_payment(
            dataclasses.replace(first, fingerprint=b"another"), Deadline.after(60)
        )


def test_a_key_in_flight_is_told_so(pool):
    first = request()
    told = []

    def send_again() -> None:
        with pytest.raises(KeyInFlight) as refusal:
            handler.process_payment(first, Deadline.after(60))
        told.append(refusal.value.payment_id)

    provider = BookedProvider(during_call=send_again)
    handler = handler_of(pool, provider)
    payment, _ = handler.process_payment(first, Deadline.after(60))

    assert told == [payment.id, payment.id]
    assert payment.status is Status.SUCCEEDED


def test_two_merchants_may_use_the_same_key(pool):
    handler = handler_of(pool, BookedProvider())
    first = request()

    one, _ = handler.process_payment(first, Deadline.after(60))
    other, is_new = handler.process_payment(
        dataclasses.replace(first, merchant_id=uuid4()), Deadline.after(60)
    )

    assert is_new
    assert one.payment_id != other.payment_id


def test_many_at_once_with_one_key_charge_once(pool):
    provider = BookedProvider()
    handler = handler_of(pool, provider)
    first = request()
    together = threading.Barrier(8)

    def pay() -> None:
        together.wait(60)
        try:
            handler.process_payment(first, Deadline.after(60))
        except KeyInFlight:
            return

    threads = [threading.Thread(target=pay) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(provider.charged) == 1
    assert provider.calls.count("confirm") == 1


def test_a_decline_is_final_and_says_why(pool):
    handler = handler_of(pool, BookedProvider(declined()))

    payment, _ = handler.process_payment(request(), Deadline.after(60))

    assert payment.status is Status.DECLINED
    assert payment.decline == {
        "code": "insufficient_funds",
        "message": "Your card has insufficient funds.",
        "type": "card",
    }


def test_doubt_is_unknown_and_looked_up_soon(pool):
    handler = handler_of(pool, BookedProvider(unknown()))

    payment, _ = handler.process_payment(request(), Deadline.after(60))

    assert payment.status is Status.UNKNOWN
    assert payment.next_check_at is not None
    assert (payment.next_check_at - datetime.now(UTC)).total_seconds() < 5


def test_doubt_about_preparing_is_no_doubt_about_money(pool):
    handler = handler_of(pool, BookedProvider(prepares=(unknown(),)))

    payment, _ = handler.process_payment(request(), Deadline.after(60))

    assert payment.status is Status.ACCEPTED
    assert payment.next_check_at is not None


def test_payment_not_taken_waits_unless_the_caller_rejects(pool):
    provider = BookedProvider(prepares=(refused(), refused()))
    handler = handler_of(pool, provider)

    queued, _ = handler.process_payment(request(), Deadline.after(60))
    with pytest.raises(ProviderUnavailable):
        handler.process_payment(request(on_outage="reject"), Deadline.after(60))

    assert queued.status is Status.ACCEPTED


def test_a_refused_payment_frees_its_key(pool):
    provider = BookedProvider(prepares=(refused(),))
    handler = handler_of(pool, provider)
    first = request(on_outage="reject")
    with pytest.raises(ProviderUnavailable):
        handler.process_payment(first, Deadline.after(60))

    payment, is_new = handler.process_payment(first, Deadline.after(60))

    assert is_new
    assert payment.status is Status.SUCCEEDED


def test_reject_during_a_known_outage_stores_no_payment(pool):
    provider = BookedProvider()
    provider.available = False

    with pytest.raises(ProviderUnavailable):
        handler_of(pool, provider).process_payment(request(on_outage="reject"), Deadline.after(60))

    assert store_of(pool).list(MERCHANT, Deadline.after(60)) == []


def test_a_known_outage_queues_without_a_call(pool):
    provider = BookedProvider()
    provider.available = False

    payment, is_new = handler_of(pool, provider).process_payment(request(), Deadline.after(60))

    assert (payment.status, is_new) == (Status.ACCEPTED, True)
    assert provider.calls == []


def test_in_one_call_the_claim_already_says_that_money_may_move(pool):
    provider = BookedProvider(two_phase=False)
    seen = []
    provider.during_call = lambda: seen.append(
        pool.run(Statement("peek", "SELECT status FROM payments"), {}, Deadline.after(60))[0][0]
    )

    payment, _ = handler_of(pool, provider).process_payment(request(), Deadline.after(60))

    assert seen == ["sending"]
    assert provider.calls == ["confirm"]
    assert payment.status is Status.SUCCEEDED


@pytest.mark.parametrize("two_phase", [True, False])
def test_a_payment_whose_time_is_over_is_not_sent(pool, two_phase):
    provider = BookedProvider(two_phase=two_phase)
    over = request(expires_at=datetime.now(UTC) - timedelta(seconds=1))

    payment, is_new = handler_of(pool, provider).process_payment(over, Deadline.after(60))

    assert (payment.status, is_new) == (Status.EXPIRED, True)
    assert provider.calls == []
    assert events_of(pool, payment.payment_id)[-1] == "payment.expired"


@pytest.mark.parametrize("two_phase", [True, False])
def test_a_payment_that_is_in_time_is_sent(pool, two_phase):
    provider = BookedProvider(two_phase=two_phase)
    in_time = request(expires_at=datetime.now(UTC) + timedelta(minutes=1))

    payment, _ = handler_of(pool, provider).process_payment(in_time, Deadline.after(60))

    assert payment.status is Status.SUCCEEDED


def test_without_a_database_nothing_is_sent(postgres, pool):
    provider = BookedProvider()
    postgres.stop()
    try:
        with pytest.raises(DatabaseUnavailable):
            handler_of(pool, provider).process_payment(request(), Deadline.after(60))
    finally:
        postgres.start()

    assert provider.calls == []


def test_a_late_answer_cannot_downgrade_a_terminal_payment(pool):
    store = store_of(pool)
    payment, _ = handler_of(pool, BookedProvider()).process_payment(request(), Deadline.after(60))

    for late in (declined(), unknown(), absent()):
        after = store.record(payment, late, due_in_s=1)
        assert after.status is Status.SUCCEEDED

    assert events_of(pool, payment.payment_id).count("payment.declined") == 0


def test_a_guess_without_the_newest_fence_changes_nothing(pool):
    store = store_of(pool)
    stale, _ = store.claim(
        request(), Deadline.after(60), provider="fake", status=Status.SENDING, due_in_s=None
    )
    taken = dataclasses.replace(stale, fence=stale.fence - 1)

    after = store.record(taken, unknown(), due_in_s=1)

    assert after.status is Status.SENDING


def test_a_fact_needs_no_lease(pool):
    store = store_of(pool)
    claimed, _ = store.claim(
        request(), Deadline.after(60), provider="fake", status=Status.SENDING, due_in_s=None
    )
    stale = dataclasses.replace(claimed, fence=claimed.fence - 1)

    after = store.record(stale, succeeded(), due_in_s=1)

    assert after.status is Status.SUCCEEDED


def test_an_answer_that_cannot_be_true_leaves_the_money_in_doubt(pool):
    more_than_authorised = succeeded(amount=2600)
    handler = handler_of(pool, BookedProvider(more_than_authorised))

    payment, _ = handler.process_payment(request(), Deadline.after(60))

    assert (payment.status, payment.amount_captured_minor) == (Status.UNKNOWN, 0)


def test_a_reference_that_is_another_payments_is_never_confirmed(pool):
    same = dataclasses.replace(unknown(), kind=OutcomeKind.PENDING, provider_ref="pi_same")
    provider = BookedProvider(prepares=(same, same))
    handler = handler_of(pool, provider)

    handler.process_payment(request(), Deadline.after(60))
    second, _ = handler.process_payment(request(), Deadline.after(60))

    assert second.status is Status.ACCEPTED
    assert provider.calls.count("confirm") == 1
