"""Facts that come late, with the Charges adapter: a charge has no second try and no cancel."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.handler import charge_of
from service.payments.charge.model import Payment, Status
from service.payments.settling.invariants import check_invariants
from service.web.api.webhooks import read_event
from tests.support.providers.scripted_books import Rule
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.settling import MERCHANT, Service, soon

_AMOUNTS = Statement(
    "amounts",
    """
    SELECT amount_captured, amount_refunded FROM payments WHERE payment_id = %(payment_id)s::uuid
    """,
)
_ORPHANS = Statement("orphans", "SELECT reason FROM orphan_charges")
_CHECKS = Statement("checks", "SELECT count(*) FROM late_checks")


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedProvider]:
    with scripted_provider() as provider:
        yield provider


@pytest.fixture
def books(running: ScriptedProvider) -> ScriptedProvider:
    running.clear(books=True)
    return running


@pytest.fixture
def service(pool: ConnectionPool, books: ScriptedProvider) -> Iterator[Service]:
    with books.adapter("stripe_charges") as provider:
        yield Service(pool, provider)


@pytest.fixture(params=["webhook", "sweep"])
def learn(request, service: Service, books: ScriptedProvider):
    def by_webhook() -> None:
        for event in books.objects("events"):
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


def tell(books: ScriptedProvider, kind: str, about: dict[str, Any], **changes: Any) -> None:
    """An object changes at the provider, and an event says so."""
    books.change(about["id"], event=kind, **changes)


def amounts(service: Service, payment: Payment) -> tuple[int, int]:
    return service.pool.run(_AMOUNTS, {"payment_id": str(payment.payment_id)}, soon())[0]


def orphans(service: Service) -> list[str]:
    return [reason for (reason,) in service.pool.run(_ORPHANS, {}, soon())]


def is_sound(service: Service) -> bool:
    return set(check_invariants(service.pool, soon()).values()) == {0}


@pytest.mark.parametrize("amount", [2599, 1000])
def test_capture_elsewhere_moves_the_payment(service, books, learn, amount):
    payment = service.pay(capture_method="manual")
    assert payment.status is Status.REQUIRES_CAPTURE
    tell(books, "charge.captured", books.capture(payment.provider_ref, amount))

    learn()
    learn()

    after = service.read(payment)
    assert (after.status, after.amount_captured_minor) == (Status.SUCCEEDED, amount)
    assert (orphans(service), is_sound(service)) == ([], True)


def test_release_elsewhere_cancels_the_payment(service, books, learn):
    payment = service.pay(capture_method="manual")
    books.refund(payment.provider_ref, 2599)
    tell(books, "charge.refunded", {"id": payment.provider_ref})

    learn()

    after = service.read(payment)
    assert (after.status, after.amount_captured_minor) == (Status.CANCELED, 0)
    assert (amounts(service, payment), orphans(service)) == ((0, 0), [])


def test_release_of_the_rest_is_no_refund(service, books, learn):
    payment = service.pay(capture_method="manual")
    charge = books.capture(payment.provider_ref, 1000)
    # As Stripe shows it: the rest is a refund, and counts in amount_refunded.
    books.put(
        "refunds",
        id="re_rest",
        amount=1599,
        currency="usd",
        status="succeeded",
        charge=payment.provider_ref,
        payment_intent=None,
    )
    tell(books, "charge.captured", charge, amount_refunded=1599)

    learn()
    learn()

    assert amounts(service, payment) == (1000, 0)
    assert (orphans(service), is_sound(service)) == ([], True)


def test_refund_by_hand_is_written_once_and_may_fail(service, books, learn):
    payment = service.pay()
    refund = books.refund(payment.provider_ref, 600)
    tell(books, "refund.created", refund)
    learn()
    learn()
    given = amounts(service, payment)
    tell(books, "refund.failed", refund, status="failed", failure_reason="lost_or_stolen_card")

    learn()

    assert (given, amounts(service, payment)) == ((2599, 600), (2599, 0))
    assert is_sound(service)


def test_dispute_is_a_fact_of_its_payment(service, books, learn):
    payment = service.pay()
    dispute = books.put(
        "disputes",
        id="dp_1",
        object="dispute",
        amount=2599,
        currency="usd",
        reason="fraudulent",
        status="needs_response",
        charge=payment.provider_ref,
        payment_intent=None,
    )
    tell(books, "charge.dispute.created", dispute)
    learn()
    tell(books, "charge.dispute.closed", dispute, status="lost")

    learn()

    steps = [e.type for e in service.store.timeline(MERCHANT, payment.payment_id, soon())]
    assert steps[-2:] == ["payment.disputed", "dispute.lost"]


def test_declined_charge_needs_no_cancel(service, books):
    card_error = {"error": {"type": "card_error", "code": "card_declined", "charge": "ch_gone"}}
    books.script(Rule("create_confirmed", execute="never", status=402, body=card_error))
    payment = service.pay()
    assert payment.status is Status.DECLINED

    for _ in range(3):
        service.settle_late()

    assert [r for r in books.requests() if r["operation"] in ("cancel", "refund")] == []
    assert service.read(payment).status is Status.DECLINED


def test_charge_executed_after_it_was_given_up_is_an_orphan(service, books):
    books.script(Rule("create_confirmed", execute="later", drop=True))
    payment = service.pay()
    withdraw = (
        "UPDATE payments SET status = 'not_executed', due_at = NULL, leased = false RETURNING 1"
    )
    service.pool.run(Statement("withdraw_it", withdraw), {}, soon())
    books.execute_held()

    service.sweep.run_if_due(soon(), every_s=0.0)

    assert service.read(payment).status is Status.NOT_EXECUTED
    assert orphans(service) == ["charged, but not_executed here"]


def test_charges_of_intents_and_other_programs_are_left_alone(service, books, learn):
    now = int(time.time())
    shown = {"object": "charge", "status": "succeeded", "paid": True, "captured": True}
    for number in range(250):
        books.put(
            "charges",
            id=f"ch_foreign{number}",
            amount=500,
            amount_captured=500,
            currency="usd",
            payment_intent=f"pi_{number}" if number % 2 else None,
            created=now,
            **shown,
        )
    payment = service.pay()

    learn()

    assert orphans(service) == []
    assert service.pool.run(_CHECKS, {}, soon()) == [(0,)]
    assert service.provider.look_up(charge_of(payment), soon()).amount_received == 2599
