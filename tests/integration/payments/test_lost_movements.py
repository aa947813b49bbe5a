"""Refunds, captures and voids after a lost commit: found at the provider, never repeated.

A failover's loss is made with SQL: rows go, and the payment gets its state before them. The
provider is scripted and keeps its own books; it is reached over TLS through the real adapter.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest

from service.errors import KeyReused, WrongState
from service.payments.charge.model import Payment, Status
from service.payments.movements.model import Kind, MovementStatus
from tests.support.providers.scripted_books import Rule
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.moving import Moving, request, soon
from tests.support.stack.settling import Service

LOSE_MOVEMENTS = """
    WITH m AS (
        DELETE FROM movements WHERE payment_id = %(payment_id)s::uuid RETURNING movement_id
    ), k AS (
        DELETE FROM idempotency_keys k USING m WHERE k.movement_id = m.movement_id
    )
    UPDATE payments SET status = %(status)s::text, amount_captured = %(captured)s::bigint,
        amount_refunded = 0, amount_refunding = 0, amount_settling = 0
    WHERE payment_id = %(payment_id)s::uuid
    """


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedProvider]:
    with scripted_provider() as provider:
        yield provider


class Losing(Moving):
    """Loses rows as a failover would; only the owner of the schema can."""

    owner_url: str

    def lose(self, statement: str, **named: object) -> None:
        connection = psycopg2.connect(self.owner_url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, named)
            assert cursor.rowcount == 1
        connection.close()


@pytest.fixture(params=["honours keys", "ignores keys"])
def moving(request, pool, owner_url, scripted) -> Iterator[Losing]:
    scripted.clear(books=True)
    scripted.honour_keys(request.param == "honours keys")
    with scripted.adapter() as provider:
        moving = Losing(pool, provider)
        moving.owner_url = owner_url
        yield moving


@pytest.fixture
def honoured(pool, owner_url, scripted) -> Iterator[Losing]:
    scripted.clear(books=True)
    with scripted.adapter() as provider:
        moving = Losing(pool, provider)
        moving.owner_url = owner_url
        yield moving


def lose(moving: Losing, payment: Payment) -> None:
    """As after a failover to a standby that had the payment and nothing that came after."""
    is_reserved = payment.capture_method == "manual"
    moving.lose(
        LOSE_MOVEMENTS,
        payment_id=str(payment.payment_id),
        status="requires_capture" if is_reserved else "succeeded",
        captured=0 if is_reserved else payment.amount_minor,
    )


def given_back(scripted: ScriptedProvider, payment: Payment) -> list[int]:
    return [one["amount"] for one in scripted.movements(payment.id, "refund")]


def taken(scripted: ScriptedProvider, payment: Payment) -> list[int]:
    return [one["amount"] for one in scripted.movements(payment.id, "capture")]


# --- Refunds ------------------------------------------------------------------------------------


def test_a_lost_refund_is_adopted_by_its_retry(moving, scripted):
    payment = moving.pay()
    first = moving.refund(payment, 700, key="k")
    lose(moving, payment)

    again = moving.refund(payment, 700, key="k")

    assert (again.status, again.provider_ref) == (MovementStatus.SUCCEEDED, first.provider_ref)
    assert given_back(scripted, payment) == [700]
    assert moving.amounts(payment) == (2599, 700, 0, 0)


def test_two_equal_refunds_with_two_keys_are_two(moving, scripted):
    payment = moving.pay()
    moving.refund(payment, 700, key="k1")
    lose(moving, payment)

    refunds = [moving.refund(payment, 700, key=key) for key in ("k2", "k1")]

    assert {refund.status for refund in refunds} == {MovementStatus.SUCCEEDED}
    assert len({refund.provider_ref for refund in refunds}) == 2
    assert given_back(scripted, payment) == [700, 700]


def test_another_amount_under_a_lost_key_is_refused(moving, scripted):
    payment = moving.pay()
    moving.refund(payment, 700, key="k")
    lose(moving, payment)

    with pytest.raises(KeyReused):
        moving.refund(payment, 800, key="k")
    again = moving.refund(payment, 700, key="k")

    assert again.status is MovementStatus.SUCCEEDED
    assert given_back(scripted, payment) == [700]
    assert moving.amounts(payment) == (2599, 700, 0, 0)


def test_books_that_cannot_be_read_forbid_sending(moving, scripted):
    payment = moving.pay()
    moving.refund(payment, 700, key="k")
    lose(moving, payment)
    scripted.script(Rule("list_refunds", status=504, execute="never", body="<html>"))

    queued = moving.refund(payment, 700, key="k")
    (settled,) = moving.settle()

    assert (queued.status, queued.promised) == (MovementStatus.ACCEPTED, True)
    assert settled.status is MovementStatus.SUCCEEDED
    assert given_back(scripted, payment) == [700]


def test_a_refund_set_back_to_accepted_is_looked_for_first(moving, scripted):
    payment = moving.pay()
    refund = moving.refund(payment, 700)
    moving.lose(SET_BACK, movement_id=str(refund.movement_id))

    (settled,) = moving.settle()

    assert settled.status is MovementStatus.SUCCEEDED
    assert given_back(scripted, payment) == [700]


SET_BACK = """
    WITH m AS (
        UPDATE movements SET status = 'accepted', provider_ref = NULL, due_at = now()
        WHERE movement_id = %(movement_id)s::uuid RETURNING *
    )
    UPDATE payments p SET amount_refunded = 0, amount_refunding = m.amount FROM m
    WHERE p.payment_id = m.payment_id
    """


def test_a_row_without_its_key_is_known_by_the_digest(moving, scripted):
    payment = moving.pay()
    first = moving.refund(payment, 700, key="k")
    moving.lose(LOSE_KEY, movement_id=str(first.movement_id))

    again, _, is_new = moving.handler.process(request(Kind.REFUND, payment, 700, key="k"), soon())

    assert (again.movement_id, is_new) == (first.movement_id, False)
    moving.lose(LOSE_KEY, movement_id=str(first.movement_id))
    with pytest.raises(KeyReused):
        moving.refund(payment, 800, key="k")
    assert given_back(scripted, payment) == [700]


LOSE_KEY = "DELETE FROM idempotency_keys WHERE movement_id = %(movement_id)s::uuid"


def test_a_key_without_its_movement_begins_anew(moving, scripted):
    payment = moving.pay()
    first = moving.refund(payment, 700, key="k")
    moving.lose(LOSE_ROW, movement_id=str(first.movement_id))

    again = moving.refund(payment, 700, key="k")

    assert (again.status, again.provider_ref) == (MovementStatus.SUCCEEDED, first.provider_ref)
    assert given_back(scripted, payment) == [700]


LOSE_ROW = """
    WITH m AS (DELETE FROM movements WHERE movement_id = %(movement_id)s::uuid RETURNING *)
    UPDATE payments p SET amount_refunded = 0 FROM m WHERE p.payment_id = m.payment_id
"""


# --- Any 5xx is doubt ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_refund_behind_a_gateway_error_is_given_back_once(moving, scripted, status):
    payment = moving.pay()
    scripted.script(
        Rule("refund", status=status, execute="later", body="<html>"),
        # The books are behind: the refund shows only after one look.
        Rule("list_refunds", times=1),
    )

    doubt = moving.refund(payment, 700)
    scripted.execute_held()
    settled = [moving.settle() for _ in range(3)]

    assert doubt.status is MovementStatus.UNKNOWN
    assert settled[0][0].status is MovementStatus.SUCCEEDED
    assert given_back(scripted, payment) == [700]


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_5xx_is_answered_with_the_same_key_again(honoured, scripted, status):
    payment = honoured.pay()
    # Late: the books lack it at each look, and it is executed when the second call comes.
    scripted.script(Rule("refund", times=2, status=status, execute="never", body="<html>"))

    honoured.refund(payment, 700)
    for _ in range(2):
        honoured.settle()

    assert len({one["key"] for one in scripted.requests("refund")}) == 1
    assert given_back(scripted, payment) == [700]


def test_only_a_replayed_error_begins_the_next_series(honoured, scripted):
    payment = honoured.pay()
    scripted.script(Rule("refund", status=500, execute="never", save=True))

    honoured.refund(payment, 700)
    for _ in range(3):
        honoured.settle()

    keys = [one["key"] for one in scripted.requests("refund")]
    assert [key.rsplit("-", 1)[1] for key in keys] == ["1", "1", "2"]
    assert given_back(scripted, payment) == [700]


def test_a_capture_that_failed_is_sent_again_under_its_key(honoured, scripted):
    payment = honoured.authorise()
    scripted.script(Rule("capture", times=2, status=503, execute="never", body="<html>"))

    honoured.move(Kind.CAPTURE, payment, 1000)
    for _ in range(2):
        honoured.settle()

    assert len({one["key"] for one in scripted.requests("capture")}) == 1
    assert taken(scripted, payment) == [1000]


# --- Captures and voids -------------------------------------------------------------------------


def test_a_lost_capture_is_adopted_by_its_retry(moving, scripted):
    payment = moving.authorise()
    moving.move(Kind.CAPTURE, payment, 1000, key="k")
    lose(moving, payment)

    capture, after = moving.move(Kind.CAPTURE, payment, 1000, key="k")

    assert (capture.status, after.status) == (MovementStatus.SUCCEEDED, Status.SUCCEEDED)
    assert moving.amounts(payment) == (1000, 0, 0, 0)
    assert taken(scripted, payment) == [1000]


def test_other_amount_after_a_lost_capture_shows_the_capture(moving, scripted):
    payment = moving.authorise()
    moving.move(Kind.CAPTURE, payment, 1000, key="k")
    lose(moving, payment)

    capture, after = moving.move(Kind.CAPTURE, payment, 900, key="k")

    assert (capture.status, capture.decline["code"]) == (
        MovementStatus.DECLINED,
        "already_captured",
    )
    assert (after.status, after.amount_captured_minor) == (Status.SUCCEEDED, 1000)
    assert taken(scripted, payment) == [1000]


def test_a_void_after_a_lost_capture_tells_what_was_taken(moving, scripted):
    payment = moving.authorise()
    moving.move(Kind.CAPTURE, payment, 1000)
    lose(moving, payment)

    void, after = moving.move(Kind.VOID, payment)

    assert (void.status, after.status) == (MovementStatus.DECLINED, Status.SUCCEEDED)
    assert moving.amounts(payment) == (1000, 0, 0, 0)
    assert scripted.movements(payment.id, "void") == []


@pytest.mark.parametrize("kind", [Kind.VOID, Kind.CAPTURE])
def test_after_a_lost_void_nothing_is_held(moving, scripted, kind):
    payment = moving.authorise()
    moving.move(Kind.VOID, payment, key="k")
    lose(moving, payment)

    again, after = moving.move(kind, payment, key="k")

    assert again.status is (
        MovementStatus.SUCCEEDED if kind is Kind.VOID else MovementStatus.DECLINED
    )
    assert after.status is Status.CANCELED
    assert taken(scripted, payment) == []


SWEPT = """
    UPDATE payments SET status = %(status)s::text, amount_captured = %(captured)s::bigint
    WHERE payment_id = %(payment_id)s::uuid
"""


@pytest.mark.parametrize("amount", [1000, 900])
def test_a_lost_capture_that_was_swept_is_known_by_its_retry(moving, scripted, amount):
    payment = moving.authorise()
    moving.move(Kind.CAPTURE, payment, 1000, key="k")
    lose(moving, payment)
    named = {"payment_id": str(payment.payment_id), "status": "succeeded", "captured": 1000}
    moving.lose(SWEPT, **named)

    if amount == 1000:
        capture, _ = moving.move(Kind.CAPTURE, payment, amount, key="k")
        assert capture.status is MovementStatus.SUCCEEDED
    else:
        with pytest.raises(WrongState):
            moving.move(Kind.CAPTURE, payment, amount, key="k")
    assert moving.amounts(payment) == (1000, 0, 0, 0)
    assert taken(scripted, payment) == [1000]


def test_a_lost_void_that_was_swept_is_known_by_its_retry(moving, scripted):
    payment = moving.authorise()
    moving.move(Kind.VOID, payment, key="k")
    lose(moving, payment)
    named = {"payment_id": str(payment.payment_id), "status": "canceled", "captured": 0}
    moving.lose(SWEPT, **named)

    void, after = moving.move(Kind.VOID, payment, key="k")

    assert (void.status, after.status) == (MovementStatus.SUCCEEDED, Status.CANCELED)
    assert moving.events(payment).count("payment.canceled") == 1
    assert len(scripted.movements(payment.id, "void")) == 1


# --- Promises -----------------------------------------------------------------------------------


def test_a_withdrawn_claim_gives_its_key_free_for_another_call(honoured, scripted):
    payment = honoured.pay()
    honoured.store.claim(request(Kind.REFUND, payment, 700, key="k"), soon())
    honoured.settle()

    again = honoured.refund(payment, 900, key="k")

    assert again.status is MovementStatus.SUCCEEDED
    assert again.provider_key.endswith("-2")
    assert given_back(scripted, payment) == [900]
    assert honoured.amounts(payment) == (2599, 900, 0, 0)


def test_a_retry_before_the_end_is_promised_and_then_sent(honoured, scripted):
    payment = honoured.pay()
    honoured.store.claim(request(Kind.REFUND, payment, 700, key="k"), soon())
    ((leased, _),) = honoured.lease()

    told, _, is_new = honoured.handler.process(request(Kind.REFUND, payment, 700, key="k"), soon())
    (settled,) = honoured.settle()

    assert (told.movement_id, told.promised, is_new) == (leased.movement_id, True, False)
    assert (settled.movement_id, settled.status) == (told.movement_id, MovementStatus.SUCCEEDED)
    assert given_back(scripted, payment) == [700]


def test_a_late_refund_of_a_withdrawn_claim_is_adopted(moving, scripted):
    payment = moving.pay()
    scripted.script(Rule("refund", execute="later", drop=True))
    claimed, _, _ = moving.store.claim(request(Kind.REFUND, payment, 700, key="k"), soon())
    moving.handler.send(claimed, payment, soon())
    moving.settle()
    scripted.execute_held()

    again = moving.refund(payment, 700, key="k")

    assert again.status is MovementStatus.SUCCEEDED
    assert given_back(scripted, payment) == [700]


def look_late(moving: Losing, payment: Payment) -> None:
    """As the sweep does when the books show what the row does not."""
    service = Service(moving.pool, moving.provider)
    service.late_store.ask(payment, soon())
    for check in service.late_store.lease_checks(10, soon()):
        service.late.settle(check, soon())


def test_a_late_refund_that_was_swept_is_known_by_its_retry(moving, scripted):
    payment = moving.pay()
    scripted.script(Rule("refund", execute="later", drop=True))
    claimed, _, _ = moving.store.claim(request(Kind.REFUND, payment, 700, key="k"), soon())
    moving.handler.send(claimed, payment, soon())
    moving.settle()
    scripted.execute_held()
    look_late(moving, payment)

    again = moving.refund(payment, 700, key="k")

    assert (again.movement_id, again.status) == (claimed.movement_id, MovementStatus.SUCCEEDED)
    assert given_back(scripted, payment) == [700]
    assert moving.amounts(payment) == (2599, 700, 0, 0)


def test_a_lost_refund_that_was_swept_is_known_by_its_retry(moving, scripted):
    payment = moving.pay()
    first = moving.refund(payment, 700, key="k")
    lose(moving, payment)
    look_late(moving, payment)

    again = moving.refund(payment, 700, key="k")

    assert (again.movement_id, again.status) == (first.movement_id, MovementStatus.SUCCEEDED)
    assert given_back(scripted, payment) == [700]
    assert moving.amounts(payment) == (2599, 700, 0, 0)
