"""After a restore or a failover the queue waits for the first whole sweep."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.model import Status
from service.payments.settling.forward import Forwarder
from service.payments.settling.recovery import Recovery
from tests.support.providers.booked_provider import BookedProvider
from tests.support.stack.settling import Service, soon


def run(pool: ConnectionPool, sql: str, **params: object) -> None:
    pool.run(Statement("as_told", f"{sql} RETURNING 1"), params, soon())


def fail_over(pool: ConnectionPool) -> None:
    """The last check was made in another timeline of the database."""
    detail = json.dumps({"database": "1/00000001", "since": None})
    run(
        pool,
        "UPDATE background_runs SET detail = %(d)s::jsonb WHERE name = 'recovery fake'",
        d=detail,
    )


def sweep_to(pool: ConnectionPool, moment: datetime) -> None:
    run(
        pool,
        "INSERT INTO background_runs (name, last_run_at, detail)"
        " VALUES ('sweep fake', now(), %(d)s::jsonb)"
        " ON CONFLICT (name) DO UPDATE SET detail = excluded.detail",
        d=json.dumps({"swept_to": moment.isoformat()}),
    )


@pytest.fixture
def recovery(pool: ConnectionPool) -> Recovery:
    recovery = Recovery(pool, "fake")
    recovery.check(soon())
    return recovery


def test_before_the_first_check_nothing_is_sent(pool):
    assert Recovery(pool, "fake").is_recovering()


def test_a_new_database_and_a_quiet_one_are_not_recovering(recovery):
    first = recovery.is_recovering()
    recovery.check(soon())

    assert (first, recovery.is_recovering()) == (False, False)


def test_another_timeline_makes_the_queue_wait_for_a_whole_sweep(pool, recovery):
    fail_over(pool)

    recovery.check(soon())
    began = recovery.is_recovering()
    sweep_to(pool, datetime.now(UTC) - timedelta(minutes=1))
    recovery.check(soon())
    still = recovery.is_recovering()
    sweep_to(pool, datetime.now(UTC) + timedelta(seconds=1))
    recovery.check(soon())

    assert (began, still, recovery.is_recovering()) == (True, True, False)


def test_a_database_unchecked_for_long_was_restored(pool, recovery):
    run(
        pool,
        "UPDATE background_runs SET last_run_at = now() - interval '1 hour'"
        " WHERE name = 'recovery fake'",
    )

    recovery.check(soon())

    assert recovery.is_recovering()


def test_every_reconciler_waits_whoever_noticed(pool, recovery):
    fail_over(pool)
    recovery.check(soon())
    other = Recovery(pool, "fake")

    other.check(soon())

    assert other.is_recovering()


def test_the_sweep_is_due_at_once(pool, recovery):
    sweep_to(pool, datetime.now(UTC) - timedelta(minutes=1))
    service = Service(pool, BookedProvider())
    fail_over(pool)

    recovery.check(soon())

    assert service.settling.lease_run("sweep fake", every_s=300, lease_s=10, deadline=soon())


def test_nothing_is_sent_from_the_queue_while_recovering(pool, recovery):
    provider = BookedProvider()
    service = Service(pool, provider)
    payment = service.pay(respond_async=True)
    service.forwarder = Forwarder(
        service.store,
        service.settling,
        service.handler,
        provider,
        send_timeout_s=2,
        batch_max=8,
        is_recovering=recovery.is_recovering,
    )
    fail_over(pool)
    recovery.check(soon())

    waited = service.drain()
    sweep_to(pool, datetime.now(UTC) + timedelta(seconds=1))
    recovery.check(soon())
    service.drain()

    assert waited == 0
    assert service.read(payment).status is Status.SUCCEEDED


def note(pool: ConnectionPool, *, since: datetime) -> None:
    """Lost commits were noticed at that moment, by the clock of whoever noticed."""
    run(
        pool,
        "UPDATE background_runs SET detail = detail || %(d)s::jsonb WHERE name = 'recovery fake'",
        d=json.dumps({"since": since.isoformat()}),
    )


def test_each_provider_waits_for_its_own_sweep(pool, recovery):
    other = Recovery(pool, "other")
    other.check(soon())
    run(pool, "UPDATE background_runs SET last_run_at = now() - interval '1 hour'")
    recovery.check(soon())
    other.check(soon())

    sweep_to(pool, datetime.now(UTC) + timedelta(seconds=1))
    recovery.check(soon())
    other.check(soon())

    assert (recovery.is_recovering(), other.is_recovering()) == (False, True)


def test_rows_of_before_without_a_check_wait_for_a_sweep(pool):
    Service(pool, BookedProvider()).pay()
    run(pool, "UPDATE payments SET created_at = now() - interval '1 day'")
    recovery = Recovery(pool, "fake")

    recovery.check(soon())

    assert recovery.is_recovering()


def test_a_moment_from_the_future_is_not_waited_for(pool, recovery):
    note(pool, since=datetime.now(UTC) + timedelta(days=1))

    recovery.check(soon())
    sweep_to(pool, datetime.now(UTC) + timedelta(seconds=1))
    recovery.check(soon())

    assert not recovery.is_recovering()


def test_a_pass_from_before_the_loss_keeps_no_other_waiting(pool, recovery):
    now = datetime.now(UTC)
    service = Service(pool, BookedProvider())
    old = {"began": now.isoformat(), "position": (now - timedelta(hours=1)).isoformat()}
    sweep_to(pool, now - timedelta(minutes=1))
    run(
        pool,
        "UPDATE background_runs SET detail = detail || %(d)s::jsonb,"
        " leased_until = now() + interval '1 minute' WHERE name = 'sweep fake'",
        d=json.dumps(old),
    )
    fail_over(pool)

    recovery.check(soon())
    service.sweep.run_if_due(soon())
    recovery.check(soon())

    assert not recovery.is_recovering()


def test_a_sweep_dated_in_the_future_is_no_proof(pool, recovery):
    note(pool, since=datetime.now(UTC))
    sweep_to(pool, datetime.now(UTC) + timedelta(days=1))

    recovery.check(soon())

    assert recovery.is_recovering()


def test_a_pass_that_ended_too_early_is_followed_at_once(pool, recovery):
    fail_over(pool)
    recovery.check(soon())
    # A host whose clock is behind has ended a pass meanwhile.
    sweep_to(pool, datetime.now(UTC) - timedelta(minutes=1))
    run(pool, "UPDATE background_runs SET last_run_at = now() WHERE name = 'sweep fake'")
    recovery.check(soon())

    Service(pool, BookedProvider()).sweep.run_if_due(soon())
    recovery.check(soon())

    assert not recovery.is_recovering()
