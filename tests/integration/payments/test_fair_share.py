"""A long queue of one merchant: neither look-ups nor other merchants wait for it."""

from __future__ import annotations

import json
from collections import Counter
from uuid import UUID, uuid4

import pytest

from service.database.direct import cursor_to
from service.payments.charge import statements as payment_statements
from service.payments.charge.model import Status
from service.payments.charge.statements import LIST_BY_STATUS
from service.payments.charge.store import PaymentStore
from service.payments.events import deliveries
from service.payments.events.deliveries import Deliverer, Delivery
from service.payments.leases.fair_share import NUDGED_AT_ONCE, WINDOW
from service.payments.movements import statements as movement_statements
from service.payments.movements.store import MovementStore
from service.payments.settling import late_statements
from service.payments.settling.late_store import LateStore
from service.payments.settling.lease_statements import (
    LOOK_UP_IS,
    OLDEST_EXPIRED,
    QUEUED_IS,
    lease_statements,
)
from service.payments.settling.lease_store import LeaseStore
from service.providers.http.webhook_sender import WebhookSender
from service.resilience.watchdog import Watchdog
from tests.support.stack.settling import soon

# Enough to reveal a scan of the queue; tests/bench measures 100,000.
LONG = 20_000
PLACES = 8
# A statement's limit for any length of the queue: a few pages for each row that it reads.
PAGES_MAX = 120


def queue(url: str, *queues: tuple[UUID, int, int], status: str = "accepted") -> None:
    """Queues of (merchant, rows, age in s), each due since then."""
    with cursor_to(url) as cursor:
        for merchant, rows, age_s in queues:
            cursor.execute(
                "INSERT INTO merchants (merchant_id, name) VALUES (%s, 'm') ON CONFLICT DO NOTHING",
                (str(merchant),),
            )
            cursor.execute(
                """
                INSERT INTO payments (merchant_id, payment_id, status, amount, currency,
                    payment_method, capture_method, on_outage, provider, due_at, created_at,
                    expires_at)
                SELECT %s, gen_random_uuid(), %s, 100, 'usd', 'pm', 'automatic', 'queue', 'fake',
                    now() - %s * interval '1 s' + n * interval '1 ms',
                    now() - %s * interval '1 s' + n * interval '1 ms', now() + interval '1 day'
                FROM generate_series(1, %s) AS n
                """,
                (str(merchant), status, age_s, age_s, rows),
            )
        cursor.execute("ANALYZE payments")


_VOIDS = """
    INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount, due_at)
    SELECT merchant_id, gen_random_uuid(), payment_id, 'void', 'sending', 100, due_at FROM payments
"""


@pytest.fixture
def leases(pool) -> LeaseStore:
    return LeaseStore(pool, lease_s=60, provider="fake")


def shares(rows) -> dict[UUID, int]:
    return dict(Counter(row.merchant_id for row in rows))


def test_a_long_queue_leaves_places_to_younger_merchants(leases, owner_url):
    big, small = uuid4(), uuid4()
    queue(owner_url, (big, LONG, 3600), (small, 3, 1))

    first = leases.lease_queued(PLACES, soon())

    assert shares(first) == {big: 5, small: 3}


def test_more_long_queues_than_places_starve_nobody(leases, owner_url):
    merchants = [uuid4() for _ in range(PLACES * 2)]
    small = uuid4()
    queue(owner_url, *((merchant, 200, 3600) for merchant in merchants), (small, 1, 1))

    rounds = [leases.lease_queued(PLACES, soon()) for _ in range(3)]

    served = shares([payment for payments in rounds for payment in payments])
    assert served[small] == 1
    assert set(merchants) <= served.keys()
    assert max(served.values()) <= 2


def test_two_long_queues_share_all_places_equally(leases, owner_url):
    one, other = uuid4(), uuid4()
    queue(owner_url, (one, 500, 3600), (other, 500, 60))

    assert shares(leases.lease_queued(PLACES, soon())) == {one: 4, other: 4}


def test_look_ups_are_shared_by_merchants_as_the_queue_is(leases, owner_url):
    big, small = uuid4(), uuid4()
    queue(owner_url, (big, 1000, 3600), (small, 2, 1), status="unknown")

    assert shares(leases.lease_look_ups(PLACES, soon())) == {big: 6, small: 2}


def test_each_merchant_is_served_oldest_first(leases, owner_url):
    merchant = uuid4()
    queue(owner_url, (merchant, WINDOW * 3, 3600))

    taken = [p.created_at for _ in range(3) for p in leases.lease_queued(PLACES, soon())]

    assert taken == sorted(taken)


def test_expired_payments_leave_half_of_the_places(leases, owner_url):
    late, small = uuid4(), uuid4()
    queue(owner_url, (late, 1000, 3600))
    with cursor_to(owner_url) as cursor:
        cursor.execute("UPDATE payments SET expires_at = now()")
    queue(owner_url, (small, PLACES, 1))

    taken = leases.lease_queued(PLACES, soon())

    assert sum(payment.is_expired for payment in taken) <= PLACES - 2
    assert shares(taken)[small] >= 2


@pytest.mark.parametrize("kind_is", [QUEUED_IS, LOOK_UP_IS])
def test_no_lease_reads_more_pages_for_a_longer_queue(owner_url, kind_is):
    big = uuid4()
    queue(owner_url, (big, LONG, 3600), (uuid4(), 3, 1))
    queue(owner_url, (big, LONG, 3600), (uuid4(), 3, 1), status="unknown")
    statements = lease_statements("any", kind_is, has_provider=True)
    values = {
        "provider": "fake",
        "after": str(UUID(int=0)),
        "places": PLACES,
        "limit": WINDOW,
    }
    taken = {"merchant_ids": [str(big)], "payment_ids": [str(uuid4())], "lease_s": 60}

    with cursor_to(owner_url) as cursor:
        for statement in (statements.oldest, statements.of_merchants, OLDEST_EXPIRED):
            assert pages_of(cursor, statement.sql, values) < PAGES_MAX
        assert pages_of(cursor, statements.take.sql, taken) < PAGES_MAX


def test_no_share_of_movements_or_deliveries_reads_a_long_queue(owner_url, outbox):
    queue(owner_url, (uuid4(), LONG, 3600), (uuid4(), 3, 1), status="requires_capture")
    outbox(LONG)
    outbox(2)
    nobody = str(UUID(int=0))
    values = {"provider": "fake", "after": nobody, "places": PLACES, "limit": WINDOW}
    values |= {"after_merchant": nobody, "after_endpoint": nobody, "failing": False}

    with cursor_to(owner_url) as cursor:
        cursor.execute(_VOIDS)
        cursor.execute("ANALYZE movements")
        for statement in (
            movement_statements.DUE,
            movement_statements.DUE_OF_MERCHANTS,
            deliveries._DUE,
            deliveries._DUE_OF_ENDPOINTS,
        ):
            assert pages_of(cursor, statement.sql, values) < 3 * PAGES_MAX, statement.name


def test_a_nudge_does_not_read_the_look_ups_of_others(owner_url):
    merchant = uuid4()
    queue(owner_url, (uuid4(), LONG, 3600), (merchant, 3, -60), status="unknown")
    with cursor_to(owner_url) as cursor:
        cursor.execute(_VOIDS)
        cursor.execute(
            "UPDATE payments SET updated_at = now() - interval '1 h' WHERE due_at > now()"
        )
        cursor.execute(
            "UPDATE movements SET updated_at = now() - interval '1 h' WHERE due_at > now()"
            " RETURNING payment_id, movement_id"
        )
        payment_id, movement_id = cursor.fetchall()[0]
        cursor.execute("ANALYZE payments")
        cursor.execute("ANALYZE movements")
        values = {"merchant_id": str(merchant), "most": 16, "at_most_every_s": 2}
        values |= {"payment_id": payment_id, "movement_id": movement_id}
        for statement in (payment_statements.NUDGE, movement_statements.NUDGE):
            assert pages_of(cursor, statement.sql, values) < PAGES_MAX, statement.name


def doubt(url: str, *doubts: tuple[UUID, int, int]) -> None:
    """Late checks of (merchant, rows, age in s), each due since then."""
    with cursor_to(url) as cursor:
        for merchant, rows, age_s in doubts:
            cursor.execute(
                "INSERT INTO merchants (merchant_id, name) VALUES (%s, 'm') ON CONFLICT DO NOTHING",
                (str(merchant),),
            )
            cursor.execute(
                "INSERT INTO late_checks (merchant_id, payment_id, provider, due_at)"
                " SELECT %s, gen_random_uuid(), 'fake',"
                " now() - %s * interval '1 s' + n * interval '1 ms'"
                " FROM generate_series(1, %s) AS n",
                (str(merchant), age_s, rows),
            )
        cursor.execute("ANALYZE late_checks")


_HINTS = """
    INSERT INTO webhook_inbox
        (provider, event_id, type, provider_ref, merchant_id, payment_id, tries, due_at)
    SELECT 'stripe', gen_random_uuid()::text, 'refund.created', 'pi_' || n, %s, %s, %s,
        now() - interval '1 h' + n * interval '1 ms'
    FROM generate_series(1, %s) AS n
"""


@pytest.mark.parametrize("provider", ["fake", None])
def test_late_checks_are_shared_by_merchants(pool, owner_url, provider):
    big, small = uuid4(), uuid4()
    doubt(owner_url, (big, 1000, 3600), (small, 2, 1))
    store = LateStore(pool, lease_s=60, provider=provider)

    first = store.lease_checks(PLACES, soon())
    second = store.lease_checks(PLACES, soon())

    assert shares(first) == {big: 6, small: 2}
    assert shares(second) == {big: PLACES}
    assert not {check.payment_id for check in first} & {check.payment_id for check in second}


def test_more_merchants_in_doubt_than_places_starve_none(pool, owner_url):
    merchants = [uuid4() for _ in range(PLACES * 2)]
    small = uuid4()
    doubt(owner_url, *((merchant, 200, 3600) for merchant in merchants), (small, 1, 1))
    store = LateStore(pool, lease_s=60, provider="fake")

    rounds = [store.lease_checks(PLACES, soon()) for _ in range(3)]

    served = shares([check for checks in rounds for check in checks])
    assert served[small] == 1
    assert max(served.values()) <= 2


def test_no_late_read_is_longer_for_a_flood(owner_url):
    big = uuid4()
    doubt(owner_url, (big, LONG, 3600), (uuid4(), 3, 1))
    values = {"provider": "fake", "after": str(UUID(int=0)), "places": PLACES, "limit": WINDOW}
    values |= {"merchant_ids": [str(big)], "payment_ids": [str(uuid4())], "lease_s": 60}
    values |= {"max_tries": 24, "provider_ref": "pi_1", "merchant_id": None, "payment_id": None}

    with cursor_to(owner_url) as cursor:
        # Foreign events before and after they were compared with our references, and named ones.
        for tries, payment_id, rows in ((0, None, LONG), (1, None, LONG), (0, str(big), 5)):
            cursor.execute(_HINTS, (payment_id, payment_id, tries, rows))
        cursor.execute("ANALYZE webhook_inbox")
        for statement in (
            late_statements.DUE_CHECKS,
            late_statements.due_checks_of_merchants(has_provider=True),
            late_statements.LEASE_CHECKS,
        ):
            assert pages_of(cursor, statement.sql, values) < PAGES_MAX, statement.name
        for statement in (
            late_statements.APPLY_HINTS,
            late_statements.NAME_OWN_HINTS,
            late_statements.UNNAMED_HINTS,
            late_statements.NAME_HINTS,
        ):
            # An update writes its rows and their index entries: some pages for each hint.
            pages = pages_of(cursor, statement.sql, values | {"limit": 10})
            assert pages < 3 * PAGES_MAX, statement.name


def test_polling_a_settled_payment_asks_for_no_late_check(pool, owner_url):
    merchant = uuid4()
    queue(owner_url, (merchant, 1, 60), status="requires_capture")
    with cursor_to(owner_url) as cursor:
        cursor.execute(
            "UPDATE payments SET due_at = NULL, updated_at = now() - interval '1 h'"
            " RETURNING payment_id"
        )
        ((payment_id,),) = cursor.fetchall()
        # A check that is planned for later is not brought forward either.
        cursor.execute(
            "INSERT INTO late_checks (merchant_id, payment_id, provider, due_at)"
            " VALUES (%s, %s, 'fake', now() + interval '1 h')",
            (str(merchant), payment_id),
        )
    store = PaymentStore(pool, lease_s=60, queue_expires_s=60)

    assert not store.nudge(merchant, UUID(str(payment_id)), soon())
    assert LateStore(pool, lease_s=60, provider="fake").lease_checks(PLACES, soon()) == []


def pages_of(cursor, sql: str, values: dict[str, object]) -> int:
    """Pages that the statement touched, found in memory or not."""
    cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", values)
    ((plan,),) = cursor.fetchall()
    document = json.loads(plan) if isinstance(plan, str) else plan
    top = document[0]["Plan"]
    return int(top["Shared Hit Blocks"]) + int(top["Shared Read Blocks"])


def test_a_long_queue_does_not_hold_up_one_hasten(leases, pool, owner_url):
    merchant = uuid4()
    queue(owner_url, (merchant, 2500, -3600), status="unknown")

    assert leases.reschedule_now(soon()) == 2500

    with cursor_to(owner_url) as cursor:
        cursor.execute(
            "SELECT count(*), count(DISTINCT due_at) > 2000 FROM payments"
            " WHERE due_at < now() + interval '2 s'"
        )
        assert cursor.fetchall() == [(2500, True)]


def test_movements_are_shared_by_merchants_as_payments_are(pool, owner_url):
    big, small = uuid4(), uuid4()
    queue(owner_url, (big, 300, 3600), (small, 2, 1), status="requires_capture")
    with cursor_to(owner_url) as cursor:
        cursor.execute(_VOIDS)
    store = MovementStore(pool, lease_s=60, provider="fake")

    taken = store.lease_due(PLACES, soon())

    assert Counter(movement.merchant_id for movement, _ in taken) == {big: 6, small: 2}


@pytest.fixture
def outbox(owner_url):
    """Makes an endpoint of a new merchant with so many events that are due."""

    def make(rows: int, *, failures: int = 0) -> str:
        merchant, endpoint = str(uuid4()), str(uuid4())
        with cursor_to(owner_url) as cursor:
            cursor.execute(
                "INSERT INTO webhook_endpoints (merchant_id, endpoint_id, url, event_types,"
                " secret, failures) VALUES (%s, %s, 'https://x.example', '{*}', 'k', %s)",
                (merchant, endpoint, failures),
            )
            cursor.execute(
                "INSERT INTO webhook_outbox (merchant_id, endpoint_id, event_id, type, event_at,"
                " due_at) SELECT %s, %s, gen_random_uuid(), 't', now(),"
                " now() - interval '1 h' + n * interval '1 ms' FROM generate_series(1, %s) AS n",
                (merchant, endpoint, rows),
            )
            cursor.execute("ANALYZE webhook_outbox")
        return endpoint

    return make


@pytest.mark.parametrize(
    ("failing", "expected"), [(False, {"long": 6, "short": 2}), (True, {"failing": 1})]
)
def test_deliveries_are_shared_by_endpoints(pool, outbox, failing, expected):
    endpoints = {
        outbox(300, failures=3): "failing",
        outbox(300): "long",
        outbox(2): "short",
    }
    deliverer = Deliverer(
        pool, WebhookSender(watchdog=Watchdog(), allow_private=False), timeout_s=1.0
    )
    told: list[Delivery] = []

    def note(call, deliveries):
        told.extend(deliveries)
        return []

    deliverer.deliver(PLACES, note, soon(), failing=failing)

    assert Counter(endpoints[str(one.endpoint_id)] for one in told) == expected


def test_polling_thousands_of_ids_brings_few_look_ups_forward(pool, owner_url):
    merchant = uuid4()
    queue(owner_url, (merchant, 200, -3600), status="unknown")
    store = PaymentStore(pool, lease_s=60, queue_expires_s=60)
    payments = store.list(merchant, soon(), limit=200)
    with cursor_to(owner_url) as cursor:
        cursor.execute("UPDATE payments SET updated_at = now() - interval '1 h'")

    nudged = [store.nudge(merchant, payment.payment_id, soon()) for payment in payments]

    assert sum(nudged) == NUDGED_AT_ONCE


@pytest.mark.parametrize("statuses", [["declined"], ["declined", "expired", "unknown"]])
def test_a_list_by_status_without_hits_reads_few_pages(owner_url, statuses):
    merchant = uuid4()
    queue(owner_url, (merchant, LONG, 3600), status="requires_capture")
    values = {
        "merchant_id": str(merchant),
        "statuses": statuses,
        "created_gte": None,
        "before_at": None,
        "before_id": None,
        "limit": 21,
    }

    with cursor_to(owner_url) as cursor:
        assert pages_of(cursor, LIST_BY_STATUS.sql, values) < 50
        values |= {"before_at": "2100-01-01", "before_id": str(merchant)}
        assert pages_of(cursor, LIST_BY_STATUS.sql, values) < 50


def test_a_list_of_several_statuses_is_newest_first_across_pages(pool, owner_url):
    merchant = uuid4()
    queue(owner_url, (merchant, 30, 3600), status="unknown")
    queue(owner_url, (merchant, 30, 3600), status="declined")
    store = PaymentStore(pool, lease_s=60, queue_expires_s=60)
    wanted = [Status.UNKNOWN, Status.DECLINED]

    listed = store.list(merchant, soon(), statuses=wanted, limit=25)
    while page := store.list(
        merchant,
        soon(),
        statuses=wanted,
        before=(listed[-1].created_at, listed[-1].payment_id),
        limit=25,
    ):
        listed += page

    assert len({payment.payment_id for payment in listed}) == len(listed) == 60
    keys = [(payment.created_at, payment.payment_id) for payment in listed]
    assert keys == sorted(keys, reverse=True)
