"""Facts that contradict a resting payment: each is learnt by webhook, and by the sweep alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.ids import (
    new_id,
)
from service.payments.charge.handler import charge_of
from service.payments.charge.model import (
    Payment,
    Status,
)
from service.payments.movements.model import MovementStatus
from service.payments.settling.invariants import check_invariants
from service.providers.base import Refund
from service.providers.http.transport import Transport
from service.providers.stripe.intents_adapter import StripeProvider
from service.resilience.watchdog import Watchdog
from service.web.api.webhooks import read_event
from tests.support.processes.sandbox_process import API_KEY, SandboxProcess, running_sandbox
from tests.support.stack.settling import MERCHANT, Service, soon

_REGISTER = Statement(
    "register",
    """
    INSERT INTO merchants (merchant_id, name) VALUES (%(merchant_id)s::uuid, 'test')
    ON CONFLICT DO NOTHING RETURNING 1
    """,
)
_AMOUNTS = Statement(
    "amounts",
    """
    SELECT amount_captured, amount_refunded FROM payments WHERE payment_id = %(payment_id)s::uuid
    """,
)
_ORPHANS = Statement("orphans", "SELECT reason FROM orphan_charges")
_CHECKS = Statement("checks", "SELECT count(*) FROM late_checks WHERE due_at IS NOT NULL")

Learn = Callable[[], None]


@pytest.fixture(scope="module")
def module_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with running_sandbox(tmp_path_factory.mktemp("sandbox")) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(module_sandbox: SandboxProcess) -> SandboxProcess:
    """A sandbox with empty books: the sweep sees all charges on an account."""
    module_sandbox.clear()
    module_sandbox.empty_books()
    return module_sandbox


@pytest.fixture
def service(pool: ConnectionPool, sandbox: SandboxProcess) -> Iterator[Service]:
    transport = Transport(
        base_url=sandbox.url,
        ca_file=sandbox.ca_file,
        connect_timeout_s=2.0,
        max_connections=4,
        watchdog=Watchdog(),
    )
    pool.run(_REGISTER, {"merchant_id": str(MERCHANT)}, soon())
    yield Service(pool, StripeProvider(transport, api_key=API_KEY, flow="two_phase"))
    transport.close()


@pytest.fixture(params=["webhook", "sweep"])
def learn(request, service: Service, sandbox: SandboxProcess) -> Learn:
    """Learn what happened at the provider, by one way only, as often as a test asks."""

    def by_webhook() -> None:
        for event in reversed(sandbox.stripe("GET", "/events", limit=100).json()["data"]):
            hint = read_event(json.dumps(event).encode())
            service.inbox.receive_webhook(soon(), provider="stripe", **hint)
        _apply(service)

    def by_sweep() -> None:
        service.sweep.run_if_due(soon(), every_s=0.0)
        _apply(service)

    return by_webhook if request.param == "webhook" else by_sweep


def _apply(service: Service) -> None:
    for _ in range(3):
        service.settle_late()


def timeline(service: Service, payment: Payment) -> list[str]:
    return [e.type for e in service.store.timeline(MERCHANT, payment.payment_id, soon())]


def amounts(service: Service, payment: Payment) -> tuple[int, int]:
    rows = service.pool.run(_AMOUNTS, {"payment_id": str(payment.payment_id)}, soon())
    return rows[0]


def orphans(service: Service) -> list[str]:
    return [reason for (reason,) in service.pool.run(_ORPHANS, {}, soon())]


def is_sound(service: Service) -> bool:
    return set(check_invariants(service.pool, soon()).values()) == {0}


def decline(service: Service) -> Payment:
    payment = service.pay(payment_method="pm_card_chargeDeclined")
    assert payment.status is Status.DECLINED
    return payment


def test_declined_payment_that_is_paid_later_succeeds(service, sandbox, learn):
    payment = decline(service)
    sandbox.dashboard("pay", payment_intent=payment.provider_ref)

    learn()

    after = service.read(payment)
    assert (after.status, after.amount_captured_minor) == (Status.SUCCEEDED, 2599)
    assert after.decline is None
    assert timeline(service, payment)[-2:] == ["payment.declined", "payment.succeeded"]
    assert is_sound(service)


def test_declined_intent_is_cancelled_at_the_provider(service, sandbox):
    payment = decline(service)

    service.settle_late()

    intent = sandbox.stripe("GET", f"/payment_intents/{payment.provider_ref}").json()
    assert intent["status"] == "canceled"
    assert service.pool.run(_CHECKS, {}, soon()) == [(0,)]
    assert service.read(payment).status is Status.DECLINED


def test_failed_cancellation_is_tried_again(service, sandbox):
    payment = decline(service)
    sandbox.control(mix={"error_503": 1.0}, operations=["cancel", "retrieve"], times=2)

    service.settle_late()
    still_due = service.pool.run(_CHECKS, {}, soon())
    sandbox.clear()
    service.pool.run(
        Statement("due", "UPDATE late_checks SET due_at = now() RETURNING 1"), {}, soon()
    )
    service.settle_late()

    intent = sandbox.stripe("GET", f"/payment_intents/{payment.provider_ref}").json()
    assert (still_due, intent["status"]) == ([(1,)], "canceled")


@pytest.mark.parametrize("amount", [2599, 1000])
def test_capture_in_the_dashboard_moves_the_payment(service, sandbox, learn, amount):
    payment = service.pay(capture_method="manual")
    sandbox.dashboard("capture", payment_intent=payment.provider_ref, amount=amount)

    learn()

    after = service.read(payment)
    assert (after.status, after.amount_captured_minor) == (Status.SUCCEEDED, amount)
    assert is_sound(service)


@pytest.mark.parametrize("act", ["cancel", "expire"])
def test_release_elsewhere_cancels_the_payment(service, sandbox, learn, act):
    payment = service.pay(capture_method="manual")
    given = {"older_than_s": -1} if act == "expire" else {}
    sandbox.dashboard(act, payment_intent=payment.provider_ref, **given)

    learn()

    after = service.read(payment)
    assert (after.status, after.amount_captured_minor) == (Status.CANCELED, 0)
    assert timeline(service, payment)[-1] == "payment.canceled"
    assert is_sound(service)


def test_refund_in_the_dashboard_is_written_down_once(service, sandbox, learn):
    payment = service.pay()
    sandbox.dashboard("refund", payment_intent=payment.provider_ref, amount=600)

    learn()
    learn()

    [refund] = service.movements.list_refunds(MERCHANT, payment.payment_id, soon())
    assert (refund.amount_minor, refund.status) == (600, MovementStatus.SUCCEEDED)
    assert amounts(service, payment) == (2599, 600)
    assert timeline(service, payment)[-1] == "refund.succeeded"
    assert is_sound(service)


def test_refund_that_fails_later_gives_the_amount_back(service, sandbox, learn):
    payment = service.pay()
    refund = sandbox.dashboard("refund", payment_intent=payment.provider_ref, amount=600)
    learn()
    sandbox.dashboard("fail_refund", refund=refund["id"])

    learn()

    [after] = service.movements.list_refunds(MERCHANT, payment.payment_id, soon())
    assert (after.status, after.decline["code"]) == (
        MovementStatus.DECLINED,
        "lost_or_stolen_card",
    )
    assert amounts(service, payment) == (2599, 0)
    assert timeline(service, payment)[-1] == "refund.declined"
    assert is_sound(service)


def test_refund_of_ours_whose_row_was_lost_is_adopted(service, sandbox, learn):
    payment = service.pay()
    lost = Refund(
        refund_id=f"ref_{new_id().hex}",
        payment_id=payment.id,
        provider_ref=payment.provider_ref,
        amount_minor=700,
        currency="usd",
        provider_key=str(uuid4()),
        merchant_id=str(MERCHANT),
    )
    service.provider.refund(lost, soon())

    learn()

    [refund] = service.movements.list_refunds(MERCHANT, payment.payment_id, soon())
    assert (refund.id, refund.amount_minor) == (lost.refund_id, 700)
    assert amounts(service, payment) == (2599, 700)
    assert is_sound(service)


@pytest.mark.parametrize(("won", "ended"), [(True, "dispute.won"), (False, "dispute.lost")])
def test_dispute_is_a_fact_of_its_payment(service, sandbox, learn, won, ended):
    payment = service.pay()
    dispute = sandbox.dashboard("dispute", payment_intent=payment.provider_ref)
    learn()
    opened = service.late_store.disputes_of(MERCHANT, [payment.payment_id], soon())
    was_open = service.late_store.open_disputes(soon())
    sandbox.dashboard("close_dispute", dispute=dispute["id"], won=won)

    learn()

    closed = service.late_store.disputes_of(MERCHANT, [payment.payment_id], soon())
    assert [one.status for one in opened[payment.payment_id]] == ["needs_response"]
    assert [one.status for one in closed[payment.payment_id]] == ["won" if won else "lost"]
    assert (was_open, service.late_store.open_disputes(soon())) == (1, 0)
    assert timeline(service, payment)[-2:] == ["payment.disputed", ended]
    assert service.read(payment).status is Status.SUCCEEDED


def test_withdrawn_payment_that_was_charged_is_an_orphan(service, sandbox, learn):
    payment = decline(service)
    withdraw = "UPDATE payments SET status = 'not_executed' RETURNING 1"
    service.pool.run(Statement("withdraw_it", withdraw), {}, soon())
    sandbox.dashboard("pay", payment_intent=payment.provider_ref)

    learn()

    assert service.read(payment).status is Status.NOT_EXECUTED
    assert orphans(service) == ["charged, but not_executed here"]


def test_own_refunds_and_captures_are_no_contradiction(service, sandbox, learn):
    payment = service.pay()
    refund = Refund(
        refund_id=f"ref_{new_id().hex}",
        payment_id=payment.id,
        provider_ref=payment.provider_ref,
        amount_minor=100,
        currency="usd",
        provider_key=str(uuid4()),
        merchant_id=str(MERCHANT),
    )
    service.provider.refund(refund, soon())
    learn()
    told = timeline(service, payment)

    learn()

    assert timeline(service, payment) == told
    assert orphans(service) == []


def test_foreign_refunds_and_disputes_are_left_alone(service, sandbox, learn):
    foreign = sandbox.dashboard("charge", amount=900)
    sandbox.dashboard("refund", payment_intent=foreign["id"], amount=100)
    sandbox.dashboard("dispute", payment_intent=foreign["id"])

    learn()

    assert orphans(service) == []
    assert service.pool.run(_CHECKS, {}, soon()) == [(0,)]


def test_late_look_ups_move_no_money(service, sandbox, learn):
    payment = decline(service)
    learn()
    charge = charge_of(service.read(payment))

    assert sandbox.books(payment_id=charge.payment_id) == []
