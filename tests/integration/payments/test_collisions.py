"""The database asks for a transaction again (40001, 40P01): payments and refunds do not notice."""

from __future__ import annotations

import psycopg2
import pytest

from service.payments.charge.model import Status
from service.payments.movements.model import MovementStatus
from tests.support.providers.booked_provider import BookedProvider
from tests.support.stack.moving import Moving
from tests.support.stack.settling import Service

# A sequence is not rolled back, so the second try sees that it is the second.
_FAIL_ONCE = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF nextval('tries') = 1 THEN RAISE EXCEPTION USING ERRCODE = '{code}'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER fail_once BEFORE {when} ON {table}
        FOR EACH ROW EXECUTE FUNCTION fail_once();
"""


def fail_once(owner_url: str, when: str, table: str, code: str = "40001") -> None:
    """The next write of that kind is refused as a collision, the one after it is not."""
    connection = psycopg2.connect(owner_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(_FAIL_ONCE.format(when=when, table=table, code=code))
    connection.close()


@pytest.mark.parametrize("code", ["40001", "40P01"])
@pytest.mark.parametrize(
    ("when", "table"),
    [
        ("INSERT", "payments"),
        ("UPDATE OF provider_ref", "payments"),
        ("INSERT", "idempotency_keys"),
    ],
)
def test_colliding_payment_succeeds_and_is_charged_once(pool, owner_url, when, table, code):
    fail_once(owner_url, when, table, code)
    provider = BookedProvider()

    payment = Service(pool, provider).pay()

    assert payment.status is Status.SUCCEEDED
    assert provider.calls == ["prepare", "confirm"]


@pytest.mark.parametrize(("when", "table"), [("INSERT", "movements"), ("UPDATE", "movements")])
def test_a_refund_that_collides_goes_through_and_is_sent_once(pool, owner_url, when, table):
    moving = Moving(pool, BookedProvider())
    payment = moving.pay()
    fail_once(owner_url, when, table)

    refund = moving.refund(payment, 100)

    assert refund.status is MovementStatus.SUCCEEDED
    assert moving.provider.calls.count("refund") == 1
    assert moving.amounts(payment) == (2599, 100, 0, 0)
