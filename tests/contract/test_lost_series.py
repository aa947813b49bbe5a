"""Keys that were freed and used again, and commits lost afterwards: no payer pays twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from service.database.pool.pool import ConnectionPool
from service.errors import Busy, KeyInFlight
from service.payments.charge.handler import charge_of
from service.payments.charge.model import ChargeRequest, Payment, Status
from tests.support.charge_requests import charge_request
from tests.support.providers.scripted_books import Rule
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.lost_commits import FLOWS, Rig, lossy_rigs
from tests.support.stack.settling import MERCHANT, soon

HONOURING = [name for name, (_, _, honours) in FLOWS.items() if honours]
TWO_PHASE = [name for name, (_, flow, _) in FLOWS.items() if flow == "two_phase"]


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


def die_after_prepare(rig: Rig, asked: ChargeRequest) -> Payment:
    """A worker's claim and prepare, before the worker is killed."""
    payment, _ = rig.service.store.claim(
        asked, soon(), provider=rig.service.provider.name, status=Status.ACCEPTED
    )
    rig.service.provider.prepare(charge_of(payment), soon())
    return payment


def refuse(rig: Rig, asked: ChargeRequest, on: str) -> None:
    """A first call that the provider certainly does not execute: 503, and the key is free."""
    rig.scripted.script(Rule(on, status=429, execute="never", times=None))
    with pytest.raises(Busy):
        rig.pay(asked)
    rig.scripted.clear()


@pytest.mark.parametrize("flow", TWO_PHASE)
def test_a_freed_keys_lost_charge_is_adopted_by_its_first_row(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    first = die_after_prepare(rig, asked)
    rig.work()
    assert rig.service.read(first).status is Status.NOT_EXECUTED
    paid = rig.pay(asked)
    rig.lose_all_but(first)
    rig.set_back(leased=True)

    again = rig.pay(asked)
    rig.work()

    after = rig.service.read(again)
    assert (after.payment_id, after.status) == (first.payment_id, Status.SUCCEEDED)
    assert after.provider_ref == paid.provider_ref
    assert rig.charges == 1


@pytest.mark.parametrize("flow", HONOURING)
def test_freed_key_with_all_rows_lost_is_not_charged_again(rig_of, flow):
    rig = rig_of(flow)
    asked = request(on_outage="reject")
    refuse(rig, asked, "create" if flow == "two_phase" else "create_confirmed")
    paid = rig.pay(asked)
    rig.lose()

    again = rig.pay(asked)
    rig.work()

    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


@pytest.mark.parametrize("flow", HONOURING)
def test_freed_key_with_its_newest_row_lost_is_not_charged_again(rig_of, flow):
    rig = rig_of(flow)
    asked = request(on_outage="reject")
    refuse(rig, asked, "create" if flow == "two_phase" else "create_confirmed")
    first = rig.service.store.find_first(asked, soon())
    assert first is None
    rows = rig.service.store.list(MERCHANT, soon())
    paid = rig.pay(asked)
    rig.lose_all_but(rows[0])

    again = rig.pay(asked)
    rig.work()

    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


@pytest.mark.parametrize("flow", TWO_PHASE)
def test_a_refused_row_that_was_set_back_is_never_confirmed(rig_of, flow):
    rig = rig_of(flow)
    asked = request(on_outage="reject")
    refuse(rig, asked, "confirm")
    (first,) = rig.service.store.list(MERCHANT, soon())
    rig.pay(asked)
    rig.lose_all_but(first, status="sending", leased=True, due_at=datetime.now(UTC))

    with pytest.raises(KeyInFlight):
        rig.pay(asked)
    rig.work()

    assert rig.service.read(first).status is Status.NOT_EXECUTED
    assert rig.charges == 1


def test_used_key_of_a_recorded_charge_is_searched_first(rig_of):
    rig = rig_of("two_phase")
    conflict = {"error": {"type": "idempotency_error"}}
    rig.scripted.script(Rule("confirm", status=400, body=conflict, execute="never"))
    payment = rig.pay(request())
    assert payment.status is Status.UNKNOWN
    (intent,) = rig.scripted.objects("payment_intents")
    # The charge of a lost row, made with the same client key.
    made = {**intent, "metadata": {**intent["metadata"], "payment_id": "pay_" + "0" * 32}}
    del made["id"]
    lost = rig.scripted.put("payment_intents", **made)
    rig.scripted.pay(lost["id"])

    rig.work()

    after = rig.service.read(payment)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, lost["id"])
    assert rig.charges == 1


@pytest.mark.parametrize("refusals", [0, 1], ids=["charged", "refused before"])
def test_a_replay_for_another_payment_is_never_confirmed(rig_of, refusals):
    """A provider that knows the key, and does not compare the parameters, replays an old answer."""
    rig = rig_of("two_phase")
    asked = request(on_outage="reject")
    _, paid = charged_after(rig, asked, refusals)
    oldest = {**rig.scripted.objects("payment_intents")[0], "status": "requires_confirmation"}
    rig.lose()
    replayed = {"Idempotent-Replayed": "true"}
    rig.scripted.script(
        Rule("create", status=200, body=oldest, headers=replayed, execute="never", times=None)
    )

    again = rig.pay(asked)
    rig.work()

    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1
    assert len(rig.scripted.requests("confirm")) == refusals + 1


def test_a_used_key_with_no_other_charge_ends_without_the_next(rig_of):
    rig = rig_of("two_phase")
    conflict = {"error": {"type": "idempotency_error"}}
    rig.scripted.script(Rule("confirm", status=400, body=conflict, execute="never"))
    payment = rig.pay(request())

    rig.work()

    assert rig.service.read(payment).status is Status.NOT_EXECUTED
    assert rig.scripted.objects("payment_intents")[0]["status"] == "canceled"
    assert rig.charges == 0


def test_later_refund_finds_the_payment_with_the_charge(rig_of):
    rig = rig_of("two_phase")
    asked = request()
    rig.pay(asked)
    rig.lose()
    again = rig.pay(asked)
    rig.work()
    rig.scripted.refund(str(rig.service.read(again).provider_ref), 10)

    rig.service.sweep.run_if_due(soon())
    rig.service.settle_late()

    assert rig.service.read(again).amount_refunded_minor == 10


# --- However many payments a freed key had ----------------------------------------------------------


def charged_after(rig: Rig, asked: ChargeRequest, refusals: int) -> tuple[list[Payment], Payment]:
    """So many calls that were noted and certainly not confirmed, and then one that was charged."""
    refused: list[Payment] = []
    for _ in range(refusals):
        refuse(rig, asked, "confirm" if rig.service.provider.two_phase else "create_confirmed")
        known = {payment.payment_id for payment in refused}
        rows = rig.service.store.list(MERCHANT, soon())
        refused += [row for row in rows if row.payment_id not in known]
    return refused, rig.pay(asked)


@pytest.mark.parametrize("left", [0, 1, 2, 3])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_freed_keys_charge_is_found_however_many_rows_are_lost(rig_of, flow, left):
    rig = rig_of(flow)
    asked = request(on_outage="reject")
    refused, paid = charged_after(rig, asked, 3)
    assert len(refused) == 3
    if left:
        rig.lose_all_after(refused[left - 1])
    else:
        rig.lose()
        if flow not in HONOURING:
            # Without any row and without keys, only the failover itself tells.
            rig.fail_over()

    again = rig.pay(asked)
    rig.work()

    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1


@pytest.mark.parametrize("flow", TWO_PHASE)
def test_a_set_back_row_of_a_freed_key_is_searched_first(rig_of, flow):
    rig = rig_of(flow)
    asked = request()
    first = die_after_prepare(rig, asked)
    noted = rig.scripted.objects("payment_intents")[0]["id"]
    rig.work()
    paid = rig.pay(asked)
    # Noted and not confirmed, as it was before the background ended it.
    rig.lose_all_but(first)
    rig.lose_all_but(
        first, status="sending", provider_ref=noted, leased=True, due_at=datetime.now(UTC)
    )

    again = rig.pay(asked)
    rig.work()

    after = rig.service.read(again)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, paid.provider_ref)
    assert rig.charges == 1
