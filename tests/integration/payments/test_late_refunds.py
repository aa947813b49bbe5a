"""A refund by hand that the bank has not decided about counts as given back until it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.errors import ValidationFailed
from service.payments.charge.model import Payment, Status
from service.payments.movements.handler import MovementHandler
from service.payments.movements.model import Kind, Movement, MovementStatus
from service.payments.settling.invariants import check_invariants
from service.payments.settling.movement_reconcile import MovementReconciler
from service.web.api.webhooks import read_event
from tests.support.providers.scripted_books import Rule
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.moving import request as movement_request
from tests.support.stack.settling import MERCHANT, Service, soon

_AMOUNTS = Statement(
    "amounts",
    """
    SELECT amount_captured, amount_refunded, amount_refunding FROM payments
    WHERE payment_id = %(payment_id)s::uuid
    """,
)
_ORPHANS = Statement("orphans", "SELECT reason FROM orphan_charges")
_DUE = Statement(
    "due",
    """
    UPDATE movements SET due_at = now(), leased = false, updated_at = now() - interval '1 h'
    WHERE status NOT IN ('succeeded', 'declined') RETURNING 1
    """,
)
# As a bank's "no" that was no end, or a withdrawn call that was executed all the same.
_DECLINE = Statement(
    "decline",
    """
    WITH p AS (UPDATE payments SET amount_refunding = 0 RETURNING 1)
    UPDATE movements SET status = 'declined', due_at = NULL, leased = false RETURNING 1
    """,
)
PENDING, SUCCEEDED, DECLINED = (
    *(MovementStatus.PENDING, MovementStatus.SUCCEEDED, MovementStatus.DECLINED),
)


class Refunding(Service):
    """Pays, learns late facts, refunds and settles refunds."""

    def __init__(self, pool: ConnectionPool, provider, books: ScriptedProvider):
        super().__init__(pool, provider)
        self.books = books
        self.mover = MovementHandler(self.movements, provider, provider_timeout_s=5)
        self.movement_reconciler = MovementReconciler(
            self.movements, self.mover, provider, quiescence_s=0.0
        )

    def refund(self, payment: Payment, amount: int) -> Movement:
        request = movement_request(Kind.REFUND, payment, amount, merchant_id=MERCHANT)
        return self.mover.process(request, soon())[0]

    def settle_movements(self) -> None:
        """One round of the reconciler, with every open refund due."""
        self.pool.run(_DUE, {}, soon())
        for movement, payment in self.movements.lease_due(10, soon()):
            self.movement_reconciler.settle(movement, payment, soon())

    def refunds(self, payment: Payment) -> list[tuple[int, MovementStatus]]:
        found = self.movements.list_refunds(MERCHANT, payment.payment_id, soon())
        return [(refund.amount_minor, refund.status) for refund in found]

    def amounts(self, payment: Payment) -> tuple[int, int, int]:
        """Captured, refunded, held by refunds that are not ended."""
        return self.pool.run(_AMOUNTS, {"payment_id": str(payment.payment_id)}, soon())[0]

    def orphans(self) -> list[str]:
        return [reason for (reason,) in self.pool.run(_ORPHANS, {}, soon())]

    @property
    def is_sound(self) -> bool:
        return set(check_invariants(self.pool, soon()).values()) == {0}


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedProvider]:
    with scripted_provider() as provider:
        yield provider


@pytest.fixture(params=["stripe", "stripe_charges"])
def service(request, pool: ConnectionPool, running: ScriptedProvider) -> Iterator[Refunding]:
    running.clear(books=True)
    with running.adapter(request.param) as provider:
        yield Refunding(pool, provider, running)


@pytest.fixture(params=["webhook", "sweep"])
def learn(request, service: Refunding, running: ScriptedProvider) -> Callable[[], None]:
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


def by_hand(service: Refunding, payment: Payment, amount: int, status: str = "pending") -> str:
    """A refund in the dashboard; its reference."""
    refund = service.books.refund(str(payment.provider_ref), amount)
    service.books.change(refund["id"], event="refund.created", status=status)
    return str(refund["id"])


def test_pending_refund_by_hand_is_counted(service, learn):
    payment = service.pay()
    by_hand(service, payment, 2000)

    learn()
    learn()

    assert service.refunds(payment) == [(2000, PENDING)]
    assert service.amounts(payment) == (2599, 0, 2000)
    with pytest.raises(ValidationFailed):
        service.refund(payment, 600)
    assert service.refund(payment, 599).status is SUCCEEDED
    assert (service.orphans(), service.is_sound) == ([], True)


@pytest.mark.parametrize(
    ("status", "ended", "amounts"),
    [
        ("succeeded", SUCCEEDED, (2599, 2000, 0)),
        ("failed", DECLINED, (2599, 0, 0)),
        ("canceled", DECLINED, (2599, 0, 0)),
    ],
)
def test_pending_refund_by_hand_ends_as_the_bank_says(service, learn, status, ended, amounts):
    payment = service.pay()
    refund = by_hand(service, payment, 2000)
    learn()
    service.books.change(refund, event="refund.updated", status=status)

    learn()
    service.settle_movements()

    assert service.refunds(payment) == [(2000, ended)]
    assert service.amounts(payment) == amounts
    assert (service.orphans(), service.is_sound) == ([], True)


def test_refund_by_hand_is_never_sent_by_us(service, learn):
    payment = service.pay()
    refund = by_hand(service, payment, 2000)
    learn()
    service.books.script(Rule("list_refunds", times=None, body={"data": [], "has_more": False}))

    for _ in range(3):
        service.settle_movements()
    held = service.amounts(payment)
    service.books.clear()
    service.books.change(refund, status="failed")
    service.settle_movements()

    assert [one for one in service.books.requests("refund") if one["method"] == "POST"] == []
    assert (held, service.amounts(payment)) == ((2599, 0, 2000), (2599, 0, 0))
    assert service.is_sound


def test_refund_declined_here_but_pending_there_is_counted(service, learn):
    payment = service.pay()
    service.books.script(Rule("refund", drop=True))
    service.refund(payment, 700)
    [refund] = service.books.objects("refunds")
    service.pool.run(_DECLINE, {}, soon())
    service.books.change(refund["id"], event="refund.updated", status="pending")

    learn()
    pending = (service.refunds(payment), service.amounts(payment))
    service.books.change(refund["id"], event="refund.updated", status="succeeded")
    learn()
    service.settle_movements()

    assert pending == ([(700, PENDING)], (2599, 0, 700))
    assert service.refunds(payment) == [(700, SUCCEEDED)]
    assert service.amounts(payment) == (2599, 700, 0)
    assert service.is_sound


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_pending_refund_after_a_partial_capture_by_hand(service, learn, status):
    payment = service.pay(capture_method="manual")
    captured = service.books.capture(str(payment.provider_ref), 1000)
    is_charge = captured["object"] == "charge"
    kind = "charge.captured" if is_charge else "payment_intent.succeeded"
    service.books.change(captured["id"], event=kind)
    refund = by_hand(service, payment, 900)
    learn()
    learn()
    held = service.amounts(payment)
    with pytest.raises(ValidationFailed):
        service.refund(payment, 101)
    service.books.change(refund, event="refund.updated", status=status)

    learn()
    service.settle_movements()

    given_back = 900 if status == "succeeded" else 0
    assert held == (1000, 0, 900)
    assert service.amounts(payment) == (1000, given_back, 0)
    assert service.read(payment).status is Status.SUCCEEDED
    assert (service.orphans(), service.is_sound) == ([], True)
