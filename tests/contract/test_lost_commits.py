"""Commits lost in a failover: SQL sets rows back like a failover, and no payer pays twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.errors import Busy, WrongState
from service.payments.charge.model import ChargeRequest, Payment, Status
from service.payments.movements.handler import MovementHandler
from service.payments.movements.model import Kind, Movement, MovementRequest, MovementStatus
from service.payments.movements.store import MovementStore
from tests.support.charge_requests import charge_request
from tests.support.providers.scripted_books import Rule
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.lost_commits import FLOWS, Unavailable, lossy_rigs
from tests.support.stack.settling import MERCHANT, soon

HONOURING = [name for name, (_, _, honours) in FLOWS.items() if honours]


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedProvider]:
    with scripted_provider() as provider:
        yield provider


@pytest.fixture
def rig_of(running: ScriptedProvider, pool: ConnectionPool, owner_url: str) -> Iterator[Any]:
    with lossy_rigs(running, pool, owner_url) as rigs:
        yield rigs


def request(**changes: object) -> ChargeRequest:
    return charge_request(MERCHANT, **changes)


@pytest.mark.parametrize("leased", [False, True], ids=["queued", "leased"])
@pytest.mark.parametrize("flow", FLOWS)
def test_paid_row_set_back_is_found_and_not_charged_again(rig_of, flow, leased):
    rig = rig_of(flow)
    paid = rig.pay(request())
    rig.set_back(leased=leased)

    rig.work()

    after = rig.service.read(paid)
    assert (paid.status, after.status) == (Status.SUCCEEDED, Status.SUCCEEDED)
    assert after.provider_ref == paid.provider_ref
    assert rig.charges == 1


@pytest.mark.parametrize("flow", FLOWS)
def test_a_set_back_row_that_expired_is_found_all_the_same(rig_of, flow):
    rig = rig_of(flow)
    paid = rig.pay(request(expires_at=datetime.now(UTC) + timedelta(milliseconds=1500)))
    rig.set_back()
    rig.owner.run(
        Statement("late", "UPDATE payments SET expires_at = now() RETURNING 1"), {}, soon()
    )

    rig.work()

    assert rig.service.read(paid).status is Status.SUCCEEDED
    assert rig.charges == 1


@pytest.mark.parametrize("flow", FLOWS)
def test_an_expired_row_that_may_have_been_sent_is_not_ended(rig_of, flow):
    """The provider is down at its expiry: without the books nobody knows whether it was charged."""
    rig = rig_of(flow)
    paid = rig.pay(request())
    rig.set_back(leased=True)
    rig.owner.run(
        Statement("late", "UPDATE payments SET expires_at = now() RETURNING 1"), {}, soon()
    )

    rig.service.forwarder._provider = Unavailable(rig.service.provider.name)
    rig.work(rounds=1)
    during = rig.service.read(paid)
    rig.service.forwarder._provider = rig.service.provider
    rig.work()

    assert during.status is Status.ACCEPTED
    assert rig.service.read(paid).status is Status.SUCCEEDED
    assert rig.charges == 1


@pytest.mark.parametrize("flow", FLOWS)
def test_a_retry_of_a_set_back_row_is_not_paid_again(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    paid = rig.pay(asked)
    rig.set_back(leased=True)

    again = rig.pay(asked)
    rig.work()

    assert again.payment_id == paid.payment_id
    assert rig.service.read(paid).status is Status.SUCCEEDED
    assert rig.charges == 1


@pytest.mark.parametrize("flow", HONOURING)
def test_a_retry_of_a_lost_row_adopts_its_charge(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    paid = rig.pay(asked)
    rig.lose()

    again = rig.pay(asked)
    rig.work()

    after = rig.service.read(again)
    assert again.payment_id != paid.payment_id
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


@pytest.mark.parametrize("flow", FLOWS)
def test_a_queued_retry_of_a_lost_row_adopts_its_charge(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    paid = rig.pay(asked)
    rig.lose()

    again = rig.pay(request(idempotency_key=asked.idempotency_key, respond_async=True))
    rig.work()

    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


def conflict(on: str) -> Rule:
    """Stripe's answer to a used key with other parameters."""
    return Rule(on, status=400, body={"error": {"type": "idempotency_error"}}, execute="never")


@pytest.mark.parametrize(
    ("flow", "on"),
    [("two_phase", "create"), ("one_shot", "create_confirmed"), ("charges", "create_confirmed")],
)
def test_a_key_that_was_used_is_proof_and_the_next_is_never_sent(rig_of, flow, on):
    rig = rig_of(flow)
    asked = request()
    paid = rig.pay(asked)
    rig.lose()
    rig.scripted.script(conflict(on), conflict(on))

    again = rig.pay(asked)
    assert again.status is Status.UNKNOWN
    rig.work()

    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


def test_used_key_without_an_entry_in_the_books_stays_in_doubt(rig_of):
    rig = rig_of("two_phase")
    rig.scripted.script(conflict("create"))

    payment = rig.pay(request())
    rig.work()

    assert rig.service.read(payment).status is Status.UNKNOWN
    assert rig.scripted.objects("payment_intents") == []


def test_lost_unconfirmed_charge_is_confirmed_without_another(rig_of):
    rig = rig_of("two_phase")
    asked = request()
    rig.scripted.script(Rule("confirm", status=503, execute="never"))
    rig.pay(asked)
    rig.lose()

    again = rig.pay(asked)
    rig.work()

    assert rig.service.read(again).status is Status.SUCCEEDED
    assert len(rig.scripted.objects("payment_intents")) == rig.charges == 1


@pytest.mark.parametrize("flow", FLOWS)
def test_nothing_is_sent_or_ended_while_the_books_cannot_be_read(rig_of, flow):
    rig = rig_of(flow)
    paid = rig.pay(request())
    rig.set_back()
    rig.scripted.script(Rule("list", status=504, times=None, execute="never"))

    rig.work(rounds=2)
    during = rig.service.read(paid)
    rig.scripted.clear()
    rig.work()

    assert (during.status, during.leased) == (Status.ACCEPTED, False)
    assert rig.service.read(paid).status is Status.SUCCEEDED
    assert rig.charges == 1


def test_a_page_of_the_books_that_hangs_does_not_hold_the_queue(rig_of):
    rig = rig_of("two_phase")
    payment = rig.pay(request(respond_async=True))
    # Much more than the limit of one page, and much less than that of a whole listing.
    rig.scripted.script(Rule("list", delay_s=20.0))

    rig.service.drain()
    given_back = rig.service.read(payment)
    rig.work(rounds=1)

    assert (given_back.status, given_back.leased) == (Status.ACCEPTED, False)
    assert rig.service.read(payment).status is Status.SUCCEEDED


def test_a_long_queue_is_compared_with_one_listing_a_batch(rig_of):
    rig = rig_of("two_phase")
    for _ in range(14):
        rig.pay(request(respond_async=True))

    batches = [rig.service.drain() for _ in range(4)]

    assert batches == [2, 4, 8, 0]
    assert len(rig.scripted.requests("list")) == 3
    assert rig.charges == 14


def test_a_withdrawn_key_that_is_used_again_begins_a_new_series(rig_of):
    rig = rig_of("two_phase")
    asked = request(on_outage="reject")
    # Recorded, and certainly not confirmed.
    rig.scripted.script(Rule("confirm", status=429, execute="never", times=None))
    with pytest.raises(Busy):
        rig.pay(asked)
    rig.scripted.clear()

    paid = rig.pay(request(idempotency_key=asked.idempotency_key, amount_minor=100))

    assert (paid.status, paid.amount_captured_minor) == (Status.SUCCEEDED, 100)
    assert paid.key_series == 2
    assert rig.charges == 1


def test_a_queued_payment_leaves_a_withdrawn_ones_charge_alone(rig_of):
    rig = rig_of("two_phase")
    asked = request(on_outage="reject")
    rig.scripted.script(Rule("confirm", status=429, execute="never", times=None))
    with pytest.raises(Busy):
        rig.pay(asked)
    rig.scripted.clear()

    queued = rig.pay(request(idempotency_key=asked.idempotency_key, respond_async=True))
    rig.work()

    assert rig.service.read(queued).status is Status.SUCCEEDED
    assert rig.charges == 1


# --- A queued row that was set back, and is to be voided --------------------------------------------


def void(rig: Any, payment: Payment) -> Movement:
    handler = MovementHandler(
        MovementStore(rig.service.pool, lease_s=10), rig.service.provider, provider_timeout_s=5
    )
    asked = MovementRequest(MERCHANT, payment.payment_id, Kind.VOID, str(uuid4()), b"void")
    return handler.process(asked, soon())[0]


def refund(rig: Any, payment: Payment) -> Movement:
    handler = MovementHandler(rig.service.movements, rig.service.provider, provider_timeout_s=5)
    asked = MovementRequest(
        MERCHANT, payment.payment_id, Kind.REFUND, str(uuid4()), b"refund", amount_minor=1
    )
    return handler.process(asked, soon())[0]


@pytest.mark.parametrize("flow", FLOWS)
def test_a_void_of_a_paid_row_that_was_set_back_tells_so(rig_of, flow):
    rig = rig_of(flow)
    paid = rig.pay(request())
    rig.set_back()

    with pytest.raises(Busy):
        void(rig, paid)
    rig.work()
    with pytest.raises(WrongState):
        void(rig, paid)

    assert rig.service.read(paid).status is Status.SUCCEEDED


def test_a_void_of_a_queued_row_is_told_at_once(rig_of):
    rig = rig_of("two_phase")
    queued = rig.pay(request(respond_async=True))

    assert void(rig, queued).status is MovementStatus.SUCCEEDED
    rig.work()

    assert rig.service.read(queued).status is Status.CANCELED
    assert rig.charges == 0


@pytest.mark.parametrize("lost", [False, True], ids=["trusted", "failed over"])
def test_without_the_books_a_void_needs_trusted_rows(rig_of, lost):
    rig = rig_of("two_phase")
    queued = rig.pay(request(respond_async=True))
    if lost:
        rig.fail_over()
    rig.scripted.script(Rule("list", status=504, times=None, execute="never"))

    if lost:
        with pytest.raises(Busy):
            void(rig, queued)
    else:
        void(rig, queued)

    expected = Status.ACCEPTED if lost else Status.CANCELED
    assert rig.service.read(queued).status is expected


# --- What was said to have ended, and was charged before --------------------------------------------


def ended_in_an_outage(rig: Any, paid: Payment, how: str) -> Status:
    """No sign of lost commits, and no books: the queued row ends as one that was never sent."""
    rig.set_back()
    if how == "void":
        rig.scripted.script(Rule("list", status=504, times=None, execute="never"))
        void(rig, paid)
        rig.scripted.clear()
        return Status.CANCELED
    rig.owner.run(
        Statement("late", "UPDATE payments SET expires_at = now() RETURNING 1"), {}, soon()
    )
    rig.service.forwarder._provider = Unavailable(rig.service.provider.name)
    rig.work(rounds=1)
    rig.service.forwarder._provider = rig.service.provider
    return Status.EXPIRED


@pytest.mark.parametrize("how", ["void", "expiry"])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_row_that_ended_in_an_outage_becomes_true_again(rig_of, flow, how):
    rig = rig_of(flow)
    paid = rig.pay(request())
    expected = ended_in_an_outage(rig, paid, how)
    ended = rig.service.read(paid)

    rig.sweep()
    rig.service.settle_late()

    after = rig.service.read(paid)
    told = [event.type for event in rig.service.store.timeline(MERCHANT, paid.payment_id, soon())]
    assert ended.status is expected
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert after.amount_captured_minor == paid.amount_captured_minor
    assert told[-1] == "payment.succeeded"
    assert refund(rig, after).status is MovementStatus.SUCCEEDED
    assert rig.charges == 1
