"""Late checks end, stay visible, and count no money wrong while our own refunds are under way."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from service.database.pool.pool import Statement
from service.ids import (
    new_id,
)
from service.observability.metrics import catalogue as metrics
from service.payments.movements.model import MovementStatus
from service.payments.settling.invariants import check_invariants
from service.payments.settling.late import CHECK_TRIES, NEVER_ANSWERED, PENDING_AGAIN_S, RARE_TRIES
from service.payments.settling.late_store import LateCheck
from service.providers.base import OutcomeKind
from service.providers.later import ProviderDispute, ProviderRefund
from tests.support.providers.booked_provider import BookedProvider, succeeded, unknown
from tests.support.stack.settling import MERCHANT, Service, soon

_AMOUNTS = Statement(
    "amounts",
    "SELECT amount_captured, amount_refunded, amount_refunding FROM payments",
)
_ORPHANS = Statement("orphans", "SELECT reason FROM orphan_charges")
_CHECKS = Statement(
    "checks", "SELECT extract(epoch FROM due_at - now())::float8 FROM late_checks ORDER BY due_at"
)
_TRIED = Statement("tried", "UPDATE late_checks SET due_at = now(), tries = %(tries)s RETURNING 1")
# A refund of ours that is under way, as `MovementStore` begins one.
_BEGIN_REFUND = Statement(
    "begin_refund",
    """
    WITH p AS (
        UPDATE payments SET amount_refunding = %(amount)s WHERE payment_id = %(payment_id)s::uuid
        RETURNING merchant_id, payment_id
    )
    INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount, reason)
    SELECT merchant_id, %(movement_id)s::uuid, payment_id, 'refund', 'unknown', %(amount)s, 'x'
    FROM p RETURNING 1
    """,
)
_DECLINE_REFUNDS = Statement(
    "decline_refunds",
    """
    WITH p AS (UPDATE payments SET amount_refunding = 0 RETURNING 1)
    UPDATE movements SET status = 'declined' WHERE status = 'unknown' RETURNING 1
    """,
)


class LateProvider(BookedProvider):
    """Shows the refunds and disputes that a test gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.refunds: list[ProviderRefund] = []
        self.disputes: list[ProviderDispute] = []

    def refunds_of(self, charge_ref, deadline):
        return list(self.refunds)

    def disputes_of(self, charge_ref, deadline):
        return list(self.disputes)


@pytest.fixture
def service(pool) -> Service:
    return Service(pool, LateProvider())


def by_hand(amount: int, kind: OutcomeKind = OutcomeKind.SUCCEEDED) -> ProviderRefund:
    return ProviderRefund(f"re_{uuid4().hex}", "pi_1", amount, "usd", kind, None, datetime.now(UTC))


def ask(service: Service, payment, tries: int = 0) -> None:
    service.late_store.ask(payment, soon())
    service.pool.run(_TRIED, {"tries": tries}, soon())
    service.settle_late()


def amounts(service: Service) -> tuple[int, int, int]:
    return service.pool.run(_AMOUNTS, {}, soon())[0]


def orphans(service: Service) -> list[str]:
    return [reason for (reason,) in service.pool.run(_ORPHANS, {}, soon())]


def pauses(service: Service) -> list[float]:
    return [pause_s for (pause_s,) in service.pool.run(_CHECKS, {}, soon())]


def begin_refund(service: Service, payment, amount: int) -> None:
    service.pool.run(
        _BEGIN_REFUND,
        {
            "payment_id": str(payment.payment_id),
            "movement_id": str(new_id()),
            "amount": amount,
        },
        soon(),
    )


def test_refund_by_hand_waits_for_room_that_ours_may_make(service):
    payment = service.pay()
    begin_refund(service, payment, 2000)
    service.provider.refunds = [by_hand(1000)]

    ask(service, payment)
    waiting = (amounts(service), orphans(service), len(pauses(service)))
    service.pool.run(_DECLINE_REFUNDS, {}, soon())
    ask(service, payment)

    assert waiting == ((2599, 0, 2000), [], 1)
    assert amounts(service) == (2599, 1000, 0)
    assert (orphans(service), pauses(service)) == ([], [])
    assert set(check_invariants(service.pool, soon()).values()) == {0}


def test_refund_by_hand_without_room_is_an_orphan(service):
    payment = service.pay()
    service.provider.refunds = [by_hand(2000), by_hand(1000)]

    ask(service, payment)

    assert amounts(service) == (2599, 2000, 0)
    assert orphans(service) == ["a refund of more than was captured"]
    assert pauses(service) == []


def test_refund_that_failed_leaves_the_one_under_way_alone(service):
    payment = service.pay()
    first = by_hand(600)
    service.provider.refunds = [first]
    ask(service, payment)
    begin_refund(service, payment, 1999)
    service.provider.refunds = [replace(first, kind=OutcomeKind.DECLINED)]

    ask(service, payment)
    after = amounts(service)
    service.provider.refunds = [first]
    ask(service, payment)

    assert after == (2599, 0, 1999)
    assert amounts(service) == (2599, 600, 1999)
    refunds = service.movements.list_refunds(MERCHANT, payment.payment_id, soon())
    assert sorted(r.status for r in refunds) == [MovementStatus.SUCCEEDED, MovementStatus.UNKNOWN]


def test_pending_refund_without_room_is_checked_until_it_ends(service):
    payment = service.pay()
    given_back, pending = by_hand(2000), by_hand(700, OutcomeKind.PENDING)
    service.provider.refunds = [given_back, pending]

    ask(service, payment)
    [hourly] = pauses(service)
    ask(service, payment, tries=CHECK_TRIES + 5)
    [daily] = pauses(service)
    service.provider.refunds = [given_back, replace(pending, kind=OutcomeKind.DECLINED)]
    ask(service, payment, tries=CHECK_TRIES + 5)

    assert hourly == pytest.approx(PENDING_AGAIN_S, abs=30)
    assert daily == pytest.approx(86_400, abs=30)
    assert (amounts(service), pauses(service), orphans(service)) == ((2599, 2000, 0), [], [])


def test_check_without_an_answer_pages_daily_then_permanently(service):
    payment = service.pay()
    parked = metrics.rows_parked_total._value.get()
    service.provider._look_ups = [unknown(), unknown()]

    ask(service, payment, tries=CHECK_TRIES)
    [daily] = pauses(service)
    was_told = metrics.rows_parked_total._value.get() - parked
    ask(service, payment, tries=CHECK_TRIES + RARE_TRIES)

    assert (was_told, daily) == (1, pytest.approx(86_400, abs=30))
    assert orphans(service) == [NEVER_ANSWERED]
    assert pauses(service) == []


def test_check_that_fails_by_our_error_is_put_off_and_seen(service):
    payment = service.pay()
    service.late_store.ask(payment, soon())
    [check] = service.late_store.lease_checks(1, soon())
    parked = metrics.rows_parked_total._value.get()

    service.late.put_off(check, ValueError("no column holds it"), soon())

    assert isinstance(check, LateCheck)
    assert metrics.rows_parked_total._value.get() == parked + 1
    assert pauses(service)[0] >= 59


def dispute(status: str) -> ProviderDispute:
    return ProviderDispute("dp_1", 2599, "usd", "fraudulent", status, datetime.now(UTC), "pi_1")


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        (["needs_response", "won", "won"], ["payment.disputed", "dispute.won"]),
        (["won"], ["payment.disputed", "dispute.won"]),
        (
            ["needs_response", "won", "lost"],
            ["payment.disputed", "dispute.won", "dispute.lost"],
        ),
        (["warning_needs_response", "warning_closed"], ["payment.disputed", "dispute.closed"]),
        (
            ["warning_needs_response", "warning_under_review", "needs_response", "lost"],
            ["payment.disputed", "payment.disputed", "dispute.lost"],
        ),
        (["warning_needs_response", "won"], ["payment.disputed"] * 2 + ["dispute.won"]),
    ],
)
def test_each_turn_of_a_dispute_is_told_once(service, statuses, told):
    payment = service.pay()
    for status in statuses:
        service.provider.disputes = [dispute(status)]
        ask(service, payment)

    steps = [e.type for e in service.store.timeline(MERCHANT, payment.payment_id, soon())]
    assert sorted(one for one in steps if "disput" in one) == sorted(told)
    assert (
        service.late_store.disputes_about(service.read(payment), soon())[0].status == (statuses[-1])
    )


def test_amount_captured_elsewhere_is_seen_whatever_rests(service):
    payment = service.pay(capture_method="manual")
    service.provider.captured[payment.id] = 1000

    ask(service, payment)
    first = amounts(service)
    service.provider._look_ups = [succeeded(2599)]
    ask(service, payment)

    assert first == (1000, 0, 0)
    assert orphans(service) == ["captured with another amount"]
