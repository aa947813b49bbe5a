"""A lost row with an immediate repeat of its call, also at a provider that ignores keys: one charge."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.errors import Busy, KeyReused
from service.payments.charge.model import ChargeRequest, Status
from service.payments.charge.provider_keys import key_digest
from service.payments.settling.recovery import Recovery
from tests.support.charge_requests import charge_request
from tests.support.providers.scripted_books import Rule
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.lost_commits import FLOWS, Rig, Unavailable, lossy_rigs
from tests.support.stack.settling import MERCHANT, soon

# Tests without a difference between the flows: one that ignores keys, and one call without prepare.
SOME = ["two_phase, keys ignored", "one_shot, keys ignored"]
_ORPHANS = Statement("orphans", "SELECT reason, resolved_at IS NULL FROM orphan_charges")


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


def orphans(rig: Rig) -> list[tuple[str, bool]]:
    return [(reason, is_open) for reason, is_open in rig.owner.run(_ORPHANS, {}, soon())]


@pytest.mark.parametrize("flow", FLOWS)
def test_a_retry_right_after_a_failover_finds_its_charge(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    paid = rig.pay(asked)
    rig.lose()
    rig.fail_over()

    again = rig.pay(asked)

    assert (again.status, again.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert again.amount_captured_minor == paid.amount_captured_minor
    assert rig.charges == 1


@pytest.mark.parametrize("flow", FLOWS)
def test_a_retry_after_the_sweep_adopts_the_orphan(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    paid = rig.pay(asked)
    rig.lose()
    rig.sweep()
    assert orphans(rig) == [("no payment here", True)]

    again = rig.pay(asked)

    assert (again.status, again.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1
    assert orphans(rig) == [("no payment here", False)]


@pytest.mark.parametrize("flow", SOME)
def test_a_queued_retry_after_the_sweep_adopts_an_old_orphan(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    paid = rig.pay(asked)
    rig.lose()
    rig.sweep()
    # Long after: the queue's own listing begins behind the charge.
    rig.scripted.script(Rule("list", body={"data": [], "has_more": False}, times=None))

    again = rig.pay(request(idempotency_key=asked.idempotency_key, respond_async=True))
    rig.work()

    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


@pytest.mark.parametrize("flow", SOME)
def test_an_expired_retry_of_an_orphan_is_not_ended(rig_of, flow):
    """The provider is down at the expiry: `expired` would be final, and the key's money was taken."""
    rig = rig_of(flow)
    asked = request()
    paid = rig.pay(asked)
    rig.lose()
    rig.sweep()
    again = rig.pay(request(idempotency_key=asked.idempotency_key, respond_async=True))
    rig.owner.run(
        Statement("late", "UPDATE payments SET expires_at = now() RETURNING 1"), {}, soon()
    )

    rig.service.forwarder._provider = Unavailable(rig.service.provider.name)
    rig.work(rounds=1)
    during = rig.service.read(again)
    rig.service.forwarder._provider = rig.service.provider
    rig.work()

    after = rig.service.read(again)
    assert during.status is Status.ACCEPTED
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


@pytest.mark.parametrize("flow", SOME)
def test_without_proof_in_time_the_retry_is_queued(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    paid = rig.pay(asked)
    rig.lose()
    rig.fail_over()
    rig.scripted.script(Rule("list", status=504, times=None, execute="never"))

    again = rig.pay(asked)
    rig.scripted.clear()
    rig.sweep()
    rig.work()

    assert (again.status, again.promised, again.leased) == (Status.ACCEPTED, True, False)
    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


@pytest.mark.parametrize("flow", SOME)
def test_without_proof_in_time_a_reject_is_not_accepted(rig_of, flow):
    rig = rig_of(flow)
    asked = request(on_outage="reject")
    paid = rig.pay(asked)
    rig.lose()
    rig.fail_over()
    rig.scripted.script(Rule("list", status=504, times=None, execute="never"))

    with pytest.raises(Busy):
        rig.pay(asked)
    rig.scripted.clear()
    rig.work()
    again = rig.pay(asked)

    assert (again.status, again.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


def test_a_loss_of_unknown_extent_is_never_proven_absent(rig_of):
    rig = rig_of("two_phase, keys ignored")
    asked = request()
    rig.pay(asked)
    rig.lose()
    Recovery(rig.service.pool, rig.service.provider.name).check(soon())
    rig.owner.run(
        Statement("loss", "UPDATE background_runs SET detail = %(d)s::jsonb RETURNING 1"),
        {"d": '{"since": "2026-01-01T00:00:00+00:00", "from": null}'},
        soon(),
    )

    again = rig.pay(asked)

    assert (again.status, again.promised) == (Status.ACCEPTED, True)
    assert rig.charges == 1


def test_a_loss_of_more_than_two_days_is_left_to_the_queue(rig_of):
    rig = rig_of("two_phase, keys ignored")
    asked = request()
    rig.pay(asked)
    rig.lose()
    rig.fail_over(ago_s=2.1 * 86_400)

    again = rig.pay(asked)

    assert (again.status, again.promised) == (Status.ACCEPTED, True)
    assert rig.scripted.requests("list") == [], "Days of books are no work for a caller's thread."
    assert rig.charges == 1


@pytest.mark.parametrize("flow", SOME)
@pytest.mark.parametrize("swept", [False, True], ids=["failed over", "swept"])
def test_another_amount_under_a_lost_key_is_refused(rig_of, flow, swept):
    rig = rig_of(flow)
    asked = request()
    rig.pay(asked)
    rig.lose()
    rig.sweep() if swept else rig.fail_over()

    with pytest.raises(KeyReused):
        rig.pay(request(idempotency_key=asked.idempotency_key, amount_minor=100))
    rig.work()

    assert rig.charges == 1
    assert [row.status for row in rig.service.store.list(MERCHANT, soon())] == [Status.NOT_EXECUTED]


@pytest.mark.parametrize("flow", SOME)
def test_a_queued_retry_with_another_amount_is_ended(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    rig.pay(asked)
    rig.lose()
    rig.sweep()

    other = request(idempotency_key=asked.idempotency_key, amount_minor=100, respond_async=True)
    again = rig.pay(other)
    rig.work()

    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.NOT_EXECUTED, None)
    assert rig.charges == 1


def test_a_listing_from_before_the_claim_proves_nothing(rig_of):
    """A call of the lost server may charge between two claims of the new one."""
    rig = rig_of("two_phase, keys ignored")
    rig.fail_over()
    rig.pay(request())
    (known,) = rig.scripted.objects("payment_intents")
    asked = request()
    digest = key_digest(MERCHANT, asked.idempotency_key, "payment")
    named = {**known["metadata"], "payment_id": "pay_" + "0" * 32, "key_digest": digest}
    late = rig.scripted.put(
        "payment_intents",
        **{**known, "id": "pi_late", "metadata": named, "status": "requires_confirmation"},
    )
    rig.scripted.pay(late["id"])

    again = rig.pay(asked)

    assert (again.status, again.provider_ref) == (Status.SUCCEEDED, "pi_late")
    assert rig.charges == 2


def test_an_expired_retry_of_a_paid_row_is_not_called_expired(rig_of):
    rig = rig_of("one_shot, keys ignored")
    soon_over = datetime.now(UTC) + timedelta(milliseconds=1500)
    asked = request(expires_at=soon_over)
    paid = rig.pay(asked)
    rig.lose()
    rig.fail_over()

    again = rig.pay(
        request(
            idempotency_key=asked.idempotency_key,
            expires_at=datetime.now(UTC) - timedelta(seconds=1),
        )
    )

    assert (again.status, again.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)


@pytest.mark.parametrize("flow", SOME)
@pytest.mark.parametrize("swept", [False, True], ids=["failed over", "swept"])
def test_other_payments_after_a_failover_are_paid(rig_of, flow, swept):
    rig = rig_of(flow)
    rig.pay(request())
    rig.lose()
    rig.fail_over()
    if swept:
        rig.sweep()

    paid = [rig.pay(request()) for _ in range(2)]

    assert {payment.status for payment in paid} == {Status.SUCCEEDED}
    assert rig.charges == 3


@pytest.mark.parametrize("swept", [False, True], ids=["failed over", "swept"])
def test_a_lost_row_that_waits_for_its_payer_is_adopted(rig_of, swept):
    rig = rig_of("two_phase, keys ignored")
    asked = request(payment_method="pm_card_authenticationRequired")
    action = {"type": "redirect_to_url", "redirect_to_url": {"url": "https://bank.test/3ds"}}
    lost = rig.pay(asked)
    (intent,) = rig.scripted.objects("payment_intents")
    rig.scripted.change(
        intent["id"], status="requires_action", next_action=action, amount_received=0
    )
    rig.lose()
    rig.sweep() if swept else rig.fail_over()

    again = rig.pay(asked)

    assert (again.status, again.provider_ref) == (Status.REQUIRES_ACTION, lost.provider_ref)
    assert len(rig.scripted.objects("payment_intents")) == 1
    # It does not page before it has moved money.
    assert [is_open for _, is_open in orphans(rig)] == [False] * swept


def test_a_checked_server_costs_no_look_into_the_books(rig_of):
    rig = rig_of("two_phase")
    Recovery(rig.service.pool, rig.service.provider.name).check(soon())

    paid = rig.pay(request())

    assert paid.status is Status.SUCCEEDED
    assert [one["operation"] for one in rig.scripted.requests()] == ["create", "confirm"]


def test_many_retries_share_a_listing_of_the_books(rig_of):
    rig = rig_of("two_phase, keys ignored")
    Recovery(rig.service.pool, rig.service.provider.name).check(soon())
    asked = [request() for _ in range(3)]
    paid = [rig.pay(one) for one in asked]
    rig.lose()
    rig.fail_over()

    again = [rig.pay(one) for one in asked]

    assert [one.provider_ref for one in again] == [one.provider_ref for one in paid]
    assert len(rig.scripted.requests("list")) <= 3
    assert rig.charges == 3
