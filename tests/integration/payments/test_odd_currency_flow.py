"""Currencies that Stripe counts otherwise, through the stores: paid, captured, refunded, swept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.model import Status
from service.payments.movements.model import Kind, MovementStatus
from service.providers.base import Provider
from tests.support.processes.sandbox_process import SandboxProcess
from tests.support.processes.tls_front import tls_front
from tests.support.providers.provider_rigs import Sandbox
from tests.support.stack.moving import Moving
from tests.support.stack.settling import MERCHANT, Service, soon

ODD = [("isk", 2600, 260_000, 1100), ("mga", 260_000, 2600, 10_100), ("kwd", 5120, 5120, 1130)]
_LOSE_THE_OUTCOME = Statement(
    "lose_the_outcome",
    """
    UPDATE payments SET status = 'unknown', amount_captured = 0, unknown_since = now(),
        due_at = now() + interval '1 day'
    WHERE payment_id = %(payment_id)s::uuid RETURNING 1
    """,
)
_ORPHANS = Statement(
    "orphans", "SELECT reason FROM orphan_charges WHERE payment_id = %(payment_id)s::uuid"
)


@pytest.fixture
def provider(sandbox: SandboxProcess) -> Iterator[Provider]:
    with tls_front(sandbox.url, sandbox.ca_file) as front:
        rig = Sandbox(front, sandbox.url)
        rig.sandbox = sandbox
        with rig.provider() as provider:
            yield provider


@pytest.mark.parametrize(("currency", "ours", "stripes", "_part"), ODD)
def test_a_sweep_repairs_in_our_units(
    pool: ConnectionPool, provider, sandbox, currency, ours, stripes, _part
) -> None:
    service = Service(pool, provider)
    payment = service.pay(currency=currency, amount_minor=ours)
    pool.run(_LOSE_THE_OUTCOME, {"payment_id": str(payment.payment_id)}, soon())

    service.sweep.run_if_due(soon())

    repaired = service.read(payment)
    assert (repaired.status, repaired.amount_captured_minor) == (Status.SUCCEEDED, ours)
    assert pool.run(_ORPHANS, {"payment_id": str(payment.payment_id)}, soon()) == []
    moved = sandbox.books(payment_id=payment.id)
    assert [(one["kind"], one["amount"]) for one in moved] == [("charge", stripes)]


@pytest.mark.parametrize(("currency", "ours", "_stripes", "_part"), ODD)
def test_a_webhook_leads_to_our_units(
    pool: ConnectionPool, provider, currency, ours, _stripes, _part
) -> None:
    service = Service(pool, provider)
    payment = service.pay(currency=currency, amount_minor=ours)
    pool.run(_LOSE_THE_OUTCOME, {"payment_id": str(payment.payment_id)}, soon())
    service.inbox.receive_webhook(
        soon(),
        provider="stripe",
        event_id=f"evt_{payment.payment_id.hex}",
        type_="payment_intent.succeeded",
        provider_ref=payment.provider_ref,
        merchant_id=MERCHANT,
        payment_id=payment.payment_id,
    )

    service.inbox.apply_hints(10, soon())
    for due in service.leases.lease_look_ups(10, soon()):
        service.reconciler.settle(due, soon())

    settled = service.read(payment)
    assert (settled.status, settled.amount_captured_minor) == (Status.SUCCEEDED, ours)


@pytest.mark.parametrize(("currency", "ours", "_stripes", "part"), ODD)
def test_parts_are_booked_in_our_units(
    pool: ConnectionPool, provider, currency, ours, _stripes, part
) -> None:
    moving = Moving(pool, provider)
    payment = moving.pay(currency=currency, amount_minor=ours, capture_method="manual")

    captured, _ = moving.move(Kind.CAPTURE, payment, part)
    refunded = moving.refund(moving.read(payment), part)

    assert {captured.status, refunded.status} == {MovementStatus.SUCCEEDED}
    assert moving.amounts(payment)[:2] == (part, part)
    assert moving.broken_promises() == {}
