"""Rows past their retention are removed, in batches; rows that are still needed remain."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from service.database.direct import cursor_to
from service.payments import retention
from service.payments.charge.model import TERMINAL
from service.payments.retention import Kept, Retention
from service.payments.settling.run_locks import RunLocks
from service.settings import Settings, SettingsError
from tests.support.stack.settling import soon

KEPT = Kept(inbox_days=30, outbox_days=30, drills_days=365, keys_days=90)


def run(pool, url: str, kept: Kept = KEPT) -> None:
    """One run, whatever the clock says."""
    execute(url, "UPDATE background_runs SET last_run_at = NULL WHERE name = 'retention'")
    Retention(pool, RunLocks(pool), kept).run_if_due(soon())


def execute(url: str, statement: str, values: tuple = ()) -> list[tuple]:
    with cursor_to(url) as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def add_inbox(url: str, days: int, *, handled: bool, count: int = 1) -> None:
    execute(
        url,
        "INSERT INTO webhook_inbox (provider, event_id, type, received_at, due_at)"
        " SELECT 'fake', gen_random_uuid()::text, 't', now() - %s * interval '1 day',"
        " CASE WHEN %s THEN NULL ELSE now() END FROM generate_series(1, %s)",
        (days, handled, count),
    )


def test_handled_webhooks_leave_in_batches(pool, owner_url, monkeypatch):
    monkeypatch.setattr(retention, "AT_ONCE", 10)
    add_inbox(owner_url, 31, handled=True, count=115)
    add_inbox(owner_url, 29, handled=True)
    add_inbox(owner_url, 400, handled=False)

    run(pool, owner_url)
    assert execute(owner_url, "SELECT count(*) FROM webhook_inbox") == [(17,)]

    run(pool, owner_url)
    assert execute(owner_url, "SELECT count(*) FROM webhook_inbox") == [(2,)]


def test_given_up_deliveries_and_old_drills_leave(pool, owner_url):
    for days in (29, 31):
        execute(
            owner_url,
            "INSERT INTO webhook_outbox (merchant_id, endpoint_id, event_id, type, event_at, due_at)"
            " VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 't',"
            " now() - %s * interval '1 day', NULL)",
            (days,),
        )
    for days, ended in ((364, True), (366, True), (366, False)):
        execute(
            owner_url,
            "INSERT INTO rehearsals (rehearsal_id, kind, name, scope, requested_by, started_at,"
            " ended_at) VALUES (gen_random_uuid(), 'drill', 'd', 'pair', 'x',"
            " now() - %s * interval '1 day', CASE WHEN %s THEN now() END)",
            (days, ended),
        )

    run(pool, owner_url)

    assert execute(owner_url, "SELECT count(*) FROM webhook_outbox") == [(1,)]
    assert execute(owner_url, "SELECT count(*) FROM rehearsals") == [(2,)]


def add_key(url: str, days: int, status: str, *, refund: str | None = None) -> str:
    merchant, payment, key = str(uuid4()), str(uuid4()), str(uuid4())
    execute(
        url,
        "INSERT INTO payments (merchant_id, payment_id, status, amount, currency, payment_method,"
        " capture_method, on_outage, provider, amount_captured, updated_at) VALUES"
        " (%s, %s, %s, 100, 'usd', 'pm', 'automatic', 'queue', 'fake', 100,"
        " now() - %s * interval '1 day')",
        (merchant, payment, status, days),
    )
    execute(
        url,
        "INSERT INTO idempotency_keys (merchant_id, idempotency_key, fingerprint, payment_id,"
        " created_at) VALUES (%s, %s, 'x', %s, now() - %s * interval '1 day')",
        (merchant, key, payment, days),
    )
    if refund is not None:
        execute(
            url,
            "INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount)"
            " VALUES (%s, gen_random_uuid(), %s, 'refund', %s, 100)",
            (merchant, payment, refund),
        )
    return key


def test_only_old_keys_of_ended_payments_leave(pool, owner_url, monkeypatch):
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    gone = [add_key(owner_url, 91, "succeeded"), add_key(owner_url, 91, "declined")]
    kept = {
        add_key(owner_url, 89, "succeeded"),
        add_key(owner_url, 400, "unknown"),
        add_key(owner_url, 400, "succeeded", refund="pending"),
    }

    run(pool, owner_url)

    left = {key for (key,) in execute(owner_url, "SELECT idempotency_key FROM idempotency_keys")}
    assert left == kept
    assert not left & set(gone)


def test_keys_stay_as_long_as_the_payment_by_default(pool, owner_url):
    key = add_key(owner_url, 4000, "succeeded")
    settings = Settings()

    run(
        pool,
        owner_url,
        Kept(
            inbox_days=settings.keep_inbox_days,
            outbox_days=settings.keep_outbox_days,
            drills_days=settings.keep_drills_days,
            keys_days=settings.keep_keys_days,
        ),
    )

    assert execute(owner_url, "SELECT idempotency_key FROM idempotency_keys") == [(key,)]


def test_a_run_goes_on_behind_the_last_key_it_read(pool, owner_url, monkeypatch):
    monkeypatch.setattr(retention, "AT_ONCE", 1)
    monkeypatch.setattr(retention, "BATCHES", 2)
    for _ in range(3):
        add_key(owner_url, 91, "succeeded")

    run(pool, owner_url)
    assert execute(owner_url, "SELECT count(*) FROM idempotency_keys") == [(1,)]
    run(pool, owner_url)
    assert execute(owner_url, "SELECT count(*) FROM idempotency_keys") == [(0,)]


def test_one_process_a_minute_removes_rows(pool, owner_url):
    run(pool, owner_url)
    add_inbox(owner_url, 31, handled=True)

    Retention(pool, RunLocks(pool), KEPT).run_if_due(soon())

    assert execute(owner_url, "SELECT count(*) FROM webhook_inbox") == [(1,)]


def test_the_ended_statuses_are_the_terminal_ones():
    assert set(retention.ENDED) == {status.value for status in TERMINAL}


def test_service_cannot_remove_payments_or_the_audit_log(database_url):
    with cursor_to(database_url) as cursor:
        cursor.execute(
            "SELECT t, has_table_privilege(t, 'DELETE') FROM unnest(ARRAY['payments', 'movements',"
            " 'orphan_charges', 'events', 'audit_log', 'webhook_inbox', 'rehearsals']) AS t"
        )
        rights = dict(cursor.fetchall())

    assert json.dumps(rights, sort_keys=True) == json.dumps(
        {
            **dict.fromkeys(["payments", "movements", "orphan_charges", "events"], False),
            "audit_log": False,
            "webhook_inbox": True,
            "rehearsals": True,
        },
        sort_keys=True,
    )


@pytest.mark.parametrize(
    ("name", "days"),
    [
        ("HOLDFAST_KEEP_INBOX_DAYS", "6"),
        ("HOLDFAST_KEEP_OUTBOX_DAYS", "1"),
        ("HOLDFAST_KEEP_KEYS_DAYS", "89"),
        ("HOLDFAST_KEEP_EVENTS_MONTHS", "12"),
        ("HOLDFAST_KEEP_DRILLS_DAYS", "0"),
    ],
)
def test_what_is_still_needed_cannot_be_set_to_leave(name, days):
    with pytest.raises(SettingsError, match=name):
        Settings.from_environ({name: days})
