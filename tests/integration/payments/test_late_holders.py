"""A charge, refund or capture that names one row of ours and is held by another is no orphan.

The first row ends as not executed and leaves its key free; its call is executed afterwards. The retry
under the key adopts that charge, with the first row in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.ids import new_id
from service.payments.charge.model import Payment, Status
from service.payments.movements.model import Kind, Movement, MovementStatus
from service.payments.settling.invariants import check_invariants
from service.payments.settling.late_facts import row_of
from service.providers.base import OutcomeKind
from service.providers.later import ProviderRefund
from service.web.api.webhooks import read_event
from tests.support.charge_requests import charge_request
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.settling import MERCHANT, Service, soon

FLOWS = {"one_shot": ("stripe", "one_shot"), "charges": ("stripe_charges", "one_shot")}

# Proof of absence came first, the execution after it: as a straggler leaves the row.
_END_UNSENT = Statement(
    "end_unsent",
    """
    UPDATE payments SET status = 'not_executed', promised = false, provider_ref = NULL,
        amount_captured = 0, leased = false, due_at = NULL
    WHERE payment_id = %(payment_id)s::uuid RETURNING 1
    """,
)
# As a claim leaves the row of a call in one piece, before its answer is recorded.
_IN_FLIGHT = Statement(
    "in_flight",
    """
    UPDATE payments SET status = 'sending', provider_ref = NULL, amount_captured = 0, leased = true,
        due_at = now() + interval '1 min'
    WHERE payment_id = %(payment_id)s::uuid RETURNING 1
    """,
)
_CHANGE = (
    "UPDATE payments SET {column} = {value} WHERE payment_id = %(payment_id)s::uuid RETURNING 1"
)
_AMOUNTS = Statement(
    "amounts",
    """
    SELECT amount_captured, amount_refunded FROM payments WHERE payment_id = %(payment_id)s::uuid
    """,
)
_ORPHANS = Statement("orphans", "SELECT reason FROM orphan_charges")


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedProvider]:
    with scripted_provider() as provider:
        yield provider


@pytest.fixture(params=FLOWS)
def service(request, pool: ConnectionPool, running: ScriptedProvider) -> Iterator[Service]:
    running.clear(books=True)
    shape, flow = FLOWS[request.param]
    with running.adapter(shape, flow=flow) as provider:
        yield Service(pool, provider)


@pytest.fixture(params=["webhook", "sweep"])
def learn(request, service: Service, running: ScriptedProvider) -> Callable[[], None]:
    def by_webhook() -> None:
        for event in running.objects("events"):
            hint = read_event(json.dumps(event).encode())
            service.inbox.receive_webhook(soon(), provider="stripe", **hint)
        settle()

    def by_sweep() -> None:
        service.sweep.run_if_due(soon(), every_s=0.0)
        settle()

    def settle() -> None:
        for _ in range(3):
            service.settle_late()

    return by_webhook if request.param == "webhook" else by_sweep


def pay_twice(service: Service, **changes: Any) -> tuple[Payment, Payment]:
    """(first, second): the second row holds the charge that names the first."""
    asked = charge_request(MERCHANT, **changes)
    first = service.handler.process_payment(asked, soon())[0]
    service.pool.run(_END_UNSENT, {"payment_id": str(first.payment_id)}, soon())
    second = service.handler.process_payment(asked, soon())[0]
    if second.status is Status.UNKNOWN:
        change(service, second, "due_at", "now()")
        for payment in service.leases.lease_look_ups(1, soon()):
            service.reconciler.settle(payment, soon())
    second = service.read(second)
    assert second.payment_id != first.payment_id
    assert second.provider_ref == first.provider_ref
    return service.read(first), second


def change(service: Service, payment: Payment, column: str, value: str) -> None:
    """Change a column behind the service's back; tests alone name both."""
    sql = _CHANGE.format(column=column, value=value)
    service.pool.run(Statement("change", sql), {"payment_id": str(payment.payment_id)}, soon())


def sweep(service: Service) -> list[str]:
    """The reasons of all orphans after one more sweep."""
    service.sweep.run_if_due(soon(), every_s=0.0)
    return orphans(service)


def orphans(service: Service) -> list[str]:
    return [reason for (reason,) in service.pool.run(_ORPHANS, {}, soon())]


def amounts(service: Service, payment: Payment) -> tuple[int, int]:
    return service.pool.run(_AMOUNTS, {"payment_id": str(payment.payment_id)}, soon())[0]


def is_sound(service: Service) -> bool:
    broken = {rule for rule, rows in check_invariants(service.pool, soon()).items() if rows}
    # The first row was ended without its event.
    return broken <= {"payment_has_events"}


def test_charge_held_by_a_retry_is_no_orphan(service, learn, running):
    first, second = pay_twice(service)
    running.change(second.provider_ref, event="payment_intent.succeeded")

    learn()
    learn()

    assert (first.status, second.status) == (Status.NOT_EXECUTED, Status.SUCCEEDED)
    assert (orphans(service), is_sound(service)) == ([], True)


def test_charge_of_a_retry_under_way_is_no_orphan(service):
    _first, second = pay_twice(service)
    service.pool.run(_IN_FLIGHT, {"payment_id": str(second.payment_id)}, soon())

    assert sweep(service) == []
    after = service.read(second)
    assert (after.status, after.provider_ref) == (Status.SUCCEEDED, second.provider_ref)


def test_charge_is_no_orphan_for_any_reference_of_its_first_row(service):
    first, _second = pay_twice(service)
    change(service, first, "provider_ref", "'pi_of_another_try'")

    assert sweep(service) == []


def test_capture_by_hand_moves_the_row_that_holds_the_charge(service, learn, running):
    first, second = pay_twice(service, capture_method="manual")
    running.capture(second.provider_ref, 1000)
    kind = "charge.captured" if second.provider_ref.startswith("ch") else "payment_intent.succeeded"
    running.change(second.provider_ref, event=kind)

    learn()
    learn()

    after = service.read(second)
    assert (after.status, after.amount_captured_minor) == (Status.SUCCEEDED, 1000)
    assert service.read(first).status is Status.NOT_EXECUTED
    assert (orphans(service), is_sound(service)) == ([], True)


def test_refund_by_hand_reaches_the_row_that_holds_the_charge(service, learn, running):
    first, second = pay_twice(service)
    running.refund(second.provider_ref, 600)
    # The event is about the charge, whose metadata names the first row.
    running.change(second.provider_ref, event="charge.refunded")

    learn()
    learn()

    assert (amounts(service, first), amounts(service, second)) == ((0, 0), (2599, 600))
    assert (orphans(service), is_sound(service)) == ([], True)


# --- The reverse: these page --------------------------------------------------------------------


def test_charge_that_no_row_holds_pages(service):
    first, second = pay_twice(service)
    change(service, second, "provider_ref", "'pi_of_another'")

    assert sweep(service) == ["charged, but not_executed here"]
    assert service.read(first).status is Status.NOT_EXECUTED


def test_charge_held_by_a_row_of_another_key_pages(service):
    _first, second = pay_twice(service)
    change(service, second, "key_digest", "'another'")

    assert sweep(service) == ["charged, but not_executed here"]


def test_charge_of_another_amount_than_its_holder_pages(service):
    _first, second = pay_twice(service)
    change(service, second, "amount", "3000")

    assert sweep(service) == ["another amount"]


def test_charge_that_its_holder_does_not_count_pages(service):
    _first, second = pay_twice(service)
    change(service, second, "status", "'not_executed'")

    service.sweep.run_if_due(soon(), every_s=0.0)
    service.settle_late()

    assert orphans(service) == ["charged, but not_executed here"]


def test_charge_beside_a_paid_row_that_it_names_pages(service):
    first, _second = pay_twice(service)
    change(service, first, "provider_ref", "'pi_of_its_own'")
    change(service, first, "amount_captured", "2599")
    change(service, first, "status", "'succeeded'")

    assert sweep(service) == ["a second charge"]


# --- Refunds: which row of ours a refund of the provider's is -----------------------------------

_DIGEST = "ab" * 32


def row(**changes: Any) -> Movement:
    known = Movement(
        merchant_id=MERCHANT,
        movement_id=new_id(),
        payment_id=new_id(),
        kind=Kind.REFUND,
        status=MovementStatus.UNKNOWN,
        amount_minor=700,
        reason=None,
        provider_ref=None,
        key_series=1,
        key_digest=_DIGEST,
        key_spent=False,
        promised=True,
        withdrawn=False,
        decline=None,
        attempts=[],
        fence=1,
        leased=False,
        look_ups=0,
        due_at=None,
        sent_age_s=None,
        doubt_age_s=None,
        created_at=datetime.now(UTC),
        updated_at=datetime.now(UTC),
    )
    return replace(known, **changes)


def found(named: Movement) -> ProviderRefund:
    moment = datetime.now(UTC)
    refund = ProviderRefund("re_1", "pi_1", 700, "usd", OutcomeKind.SUCCEEDED, None, moment)
    return replace(refund, refund_id=named.id, key_digest=_DIGEST)


def test_refund_belongs_to_the_row_that_holds_it():
    withdrawn = row(withdrawn=True, status=MovementStatus.SUCCEEDED, provider_ref="re_1")
    second = row()

    assert row_of(found(second), [second, withdrawn]) is withdrawn


@pytest.mark.parametrize("newest_first", [True, False])
def test_refund_without_a_holder_belongs_to_the_key_that_is_kept(newest_first):
    withdrawn, second = row(withdrawn=True, status=MovementStatus.DECLINED), row()
    rows = [second, withdrawn] if newest_first else [withdrawn, second]

    assert row_of(found(withdrawn), rows) is second
    assert row_of(found(withdrawn), [withdrawn]) is withdrawn


def test_refund_of_another_reference_is_not_the_rows():
    assert row_of(found(row()), [row(provider_ref="re_2")]) is None
