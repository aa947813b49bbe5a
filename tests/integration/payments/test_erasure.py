"""Erasing a person: personal data is removed, amounts and the order of events remain."""

from __future__ import annotations

import json
import subprocess
import sys
from uuid import UUID, uuid4

import pytest

from service.database.direct import cursor_to
from service.payments import erasure
from service.payments.audit import Actor
from service.payments.erasure import Erasure
from tests.support.stack.pools import open_pool_of

MERCHANT = uuid4()
ACTOR = Actor("cli", "tester")


def execute(url: str, statement: str, values: tuple = ()) -> list[tuple]:
    with cursor_to(url) as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def add_payment(
    url: str,
    *,
    merchant: UUID = MERCHANT,
    status: str = "succeeded",
    customer: str = "cus_7",
    reference: str = "order-7",
    refund: str | None = None,
) -> str:
    payment = str(uuid4())
    execute(
        url,
        "INSERT INTO payments (merchant_id, payment_id, status, amount, currency, payment_method,"
        " reference, customer, metadata, capture_method, on_outage, provider, amount_captured,"
        " next_action) VALUES (%s, %s, %s, 100, 'usd', 'pm', %s, %s, '{\"name\": \"Jo\"}',"
        " 'automatic', 'queue', 'fake', 100, '{\"url\": \"https://x\"}')",
        (str(merchant), payment, status, reference, customer),
    )
    execute(
        url,
        "INSERT INTO events (merchant_id, event_id, payment_id, type, detail) VALUES (%s, %s, %s,"
        ' \'payment.succeeded\', \'{"op": "confirm", "ms": 3, "reason": "Jo called us"}\')',
        (str(merchant), str(uuid4()), payment),
    )
    execute(
        url,
        "INSERT INTO webhook_inbox (provider, event_id, type, merchant_id, payment_id)"
        " VALUES ('fake', %s, 't', %s, %s)",
        (payment, str(merchant), payment),
    )
    if refund is not None:
        execute(
            url,
            "INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount,"
            " reason) VALUES (%s, gen_random_uuid(), %s, 'refund', %s, 100, 'Jo called us')",
            (str(merchant), payment, refund),
        )
    return payment


@pytest.fixture
def owner_pool(owner_url):
    with open_pool_of(1, owner_url) as pool:
        yield pool


def personal_data(url: str, payment: str) -> list[tuple]:
    return execute(
        url,
        "SELECT reference, customer, metadata::text, next_action::text FROM payments"
        " WHERE payment_id = %s",
        (payment,),
    )


KEPT = [("order-7", "cus_7", '{"name": "Jo"}', '{"url": "https://x"}')]
ERASED = [(None, None, "{}", None)]


@pytest.mark.parametrize(("by", "value"), [("customer", "cus_7"), ("reference", "order-7")])
def test_a_person_is_erased_and_amounts_stay(owner_pool, owner_url, by, value):
    payment = add_payment(owner_url)
    others = [
        add_payment(owner_url, merchant=uuid4()),
        add_payment(owner_url, customer="cus_8", reference="order-8"),
    ]

    done = Erasure(owner_pool, MERCHANT, by, value).erase(ACTOR)

    assert (done.payments, done.events, done.inbox, done.is_open) == (1, 1, 1, [])
    assert personal_data(owner_url, payment) == ERASED
    assert execute(
        owner_url,
        "SELECT p.amount, e.type, e.detail::text FROM payments p JOIN events e USING (payment_id)"
        " WHERE payment_id = %s",
        (payment,),
    ) == [(100, "payment.succeeded", '{"ms": 3, "op": "confirm"}')]
    assert execute(owner_url, "SELECT count(*) FROM webhook_inbox") == [(2,)]
    assert personal_data(owner_url, others[0]) == KEPT
    assert ERASED not in [personal_data(owner_url, other) for other in others]


def test_reasons_of_ended_refunds_are_erased(owner_pool, owner_url):
    payments = [
        add_payment(owner_url, refund="succeeded"),
        add_payment(owner_url, customer="cus_8", refund="succeeded"),
    ]

    Erasure(owner_pool, MERCHANT, "customer", "cus_7").erase(ACTOR)

    reasons = dict(execute(owner_url, "SELECT payment_id::text, reason FROM movements"))
    assert [reasons[payment] for payment in payments] == [None, "Jo called us"]


def test_it_is_audited_without_the_value(owner_pool, owner_url):
    payment = add_payment(owner_url)

    Erasure(owner_pool, MERCHANT, "customer", "cus_7").erase(ACTOR)

    ((action, actor, merchant, detail),) = execute(
        owner_url, "SELECT action, actor, merchant_id, detail FROM audit_log"
    )
    assert (action, actor, str(merchant)) == ("payment.erased", "tester", str(MERCHANT))
    assert detail["payments"] == [f"pay_{UUID(payment).hex}"]
    assert "cus_7" not in json.dumps(detail)


@pytest.mark.parametrize(
    "state", [{"status": "unknown"}, {"refund": "pending"}, {"status": "requires_capture"}]
)
def test_open_payments_keep_their_data_and_are_named(owner_pool, owner_url, state):
    payment = add_payment(owner_url, **state)

    done = Erasure(owner_pool, MERCHANT, "customer", "cus_7").erase(ACTOR)

    assert (done.payments, done.is_open) == (0, [UUID(payment)])
    assert personal_data(owner_url, payment) == KEPT


def test_erasure_in_batches_is_complete_and_repeatable(owner_pool, owner_url, monkeypatch):
    monkeypatch.setattr(erasure, "AT_ONCE", 2)
    monkeypatch.setattr(erasure, "PAGE", 3)
    for number in range(8):
        add_payment(owner_url, customer="cus_7" if number % 2 else "cus_8")

    subject = Erasure(owner_pool, MERCHANT, "customer", "cus_7")
    found, done, again = subject.look(), subject.erase(ACTOR), subject.erase(ACTOR)

    assert (found.payments, done.payments, again.payments) == (4, 4, 0)


def test_drill_reports_that_hold_the_value_are_emptied(owner_pool, owner_url):
    for reference in ("order-7", "order-77"):
        execute(
            owner_url,
            "INSERT INTO rehearsals (rehearsal_id, kind, name, scope, requested_by, ended_at,"
            " report) VALUES (gen_random_uuid(), 'drill', 'd', 'pair', 'x', now(),"
            " jsonb_build_object('rows', jsonb_build_array(%s)))",
            (reference,),
        )

    done = Erasure(owner_pool, MERCHANT, "reference", "order-7").erase(ACTOR)

    assert done.drills == 1
    left = execute(owner_url, "SELECT report::text FROM rehearsals ORDER BY report::text")
    assert left == [('{"rows": ["order-77"]}',), ("{}",)]


def test_the_command_looks_first_and_erases_when_confirmed(owner_url, database_url, tmp_path):
    payment = add_payment(owner_url)

    def run(*words: str, owner: str | None = owner_url) -> subprocess.CompletedProcess[str]:
        environ = {"DATABASE_URL": database_url, "HOLDFAST_HOME": str(tmp_path)}
        environ |= {"MIGRATE_DATABASE_URL": owner} if owner else {}
        return subprocess.run(
            [sys.executable, "-m", "service", "erase", *words],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    who = ("--merchant", str(MERCHANT), "--customer", "cus_7")
    assert run(*who).returncode == 0
    assert personal_data(owner_url, payment) == KEPT
    assert run(*who, "--confirm", owner=None).returncode == 2
    assert run("--merchant", str(MERCHANT)).returncode == 2
    done = run(*who, "--confirm", "--json")
    assert (done.returncode, json.loads(done.stdout)["payments"]) == (0, 1)
    assert personal_data(owner_url, payment) == ERASED
    add_payment(owner_url, status="unknown")
    assert run(*who, "--confirm").returncode == 1
