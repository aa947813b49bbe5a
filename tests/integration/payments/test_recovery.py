"""After a restore or a failover the queue waits for the first whole sweep."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.model import Payment, Status
from service.payments.settling.forward import Forwarder
from service.payments.settling.recovery import Recovery
from service.payments.settling.sweep_report import SweepReport
from tests.support.charge_requests import charge_request
from tests.support.providers.booked_provider import BookedProvider
from tests.support.stack.pools import open_pool_of
from tests.support.stack.settling import MERCHANT, Service, soon


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


def recovery_of(pool: ConnectionPool, provider: str = "fake") -> Recovery:
    """Without the time that calls of before the loss may take, so that no test waits for it."""
    return Recovery(pool, provider, in_flight_s=0.0)


@pytest.fixture
def recovery(pool: ConnectionPool) -> Recovery:
    recovery = recovery_of(pool)
    recovery.check(soon())
    return recovery


def test_before_the_first_check_nothing_is_sent(pool):
    assert recovery_of(pool).is_recovering()


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
    other = recovery_of(pool)

    other.check(soon())

    assert other.is_recovering()


def test_the_sweep_is_due_at_once(pool, recovery):
    sweep_to(pool, datetime.now(UTC) - timedelta(minutes=1))
    service = Service(pool, BookedProvider())
    fail_over(pool)

    recovery.check(soon())

    assert service.locks.lease_run("sweep fake", every_s=300, lease_s=10, deadline=soon())


def test_nothing_is_sent_from_the_queue_while_recovering(pool, recovery):
    provider = BookedProvider()
    service = Service(pool, provider)
    payment = service.pay(respond_async=True)
    service.forwarder = Forwarder(
        service.store,
        service.leases,
        service.orphan_store,
        service.handler,
        provider,
        service.unread,
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
    """Lost commits were noticed at that moment, by the clock of the process that noticed."""
    run(
        pool,
        "UPDATE background_runs SET detail = detail || %(d)s::jsonb WHERE name = 'recovery fake'",
        d=json.dumps({"since": since.isoformat()}),
    )


def test_each_provider_waits_for_its_own_sweep(pool, recovery):
    other = recovery_of(pool, "other")
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
    recovery = recovery_of(pool)

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
    # A host with a slow clock has ended a pass since then.
    sweep_to(pool, datetime.now(UTC) - timedelta(minutes=1))
    run(pool, "UPDATE background_runs SET last_run_at = now() WHERE name = 'sweep fake'")
    recovery.check(soon())

    Service(pool, BookedProvider()).sweep.run_if_due(soon())
    recovery.check(soon())

    assert not recovery.is_recovering()


# --- What a claim sees, without waiting for a check ------------------------------------------------


def claim_of(pool: ConnectionPool) -> Payment:
    """A new payment's claim by a worker that knows nothing of any check."""
    store = Service(pool, BookedProvider()).store
    payment, _ = store.claim(
        charge_request(MERCHANT), soon(), provider="fake", status=Status.ACCEPTED
    )
    return payment


def on_another_server(pool: ConnectionPool, *, ago_s: float = 0.0) -> None:
    """The database is another one than the last check has seen, as after a failover."""
    run(
        pool,
        "UPDATE background_runs SET server = 'another',"
        " last_run_at = now() - %(ago_s)s * interval '1 second' WHERE name = 'recovery fake'",
        ago_s=ago_s,
    )


def test_a_claim_on_a_checked_server_is_trusted(pool, recovery):
    assert claim_of(pool).loss is None


def test_a_claim_without_any_check_or_past_is_trusted(pool):
    assert claim_of(pool).loss is None


def test_a_claim_on_an_unchecked_server_is_suspected(pool, recovery):
    on_another_server(pool, ago_s=60)

    loss = claim_of(pool).loss

    assert loss is not None
    assert loss.since is not None
    # From the last check on: what was committed before it is here, as that check is.
    assert 50 < (datetime.now(UTC) - loss.since).total_seconds() < 600


def test_a_restart_is_trusted_again_after_one_check(pool, recovery):
    on_another_server(pool)

    recovery.check(soon())

    assert not recovery.is_recovering()
    assert claim_of(pool).loss is None


def test_claims_are_suspected_until_the_sweep_has_ended(pool, recovery):
    fail_over(pool)
    recovery.check(soon())
    during = claim_of(pool).loss
    sweep_to(pool, datetime.now(UTC) + timedelta(seconds=1))
    recovery.check(soon())

    assert during is not None
    assert during.since is not None
    assert claim_of(pool).loss is None


def test_a_sweep_amid_calls_of_before_the_loss_is_no_proof(pool):
    recovery = Recovery(pool, "fake")
    recovery.check(soon())
    fail_over(pool)
    recovery.check(soon())
    sweep_to(pool, datetime.now(UTC) + timedelta(seconds=1))

    recovery.check(soon())

    assert recovery.is_recovering()


def test_a_check_older_than_the_one_before_is_a_restore(pool, recovery):
    # Data alone was put back into the same server: only the running process remembers.
    run(
        pool,
        "UPDATE background_runs SET last_run_at = now() - interval '1 minute'"
        " WHERE name = 'recovery fake'",
    )

    recovery.check(soon())

    assert recovery.is_recovering()


def test_a_check_that_vanished_leaves_the_extent_unknown(pool, recovery, owner_url):
    with open_pool_of(1, owner_url) as owner:
        run(owner, "DELETE FROM background_runs WHERE name = 'recovery fake'")

    recovery.check(soon())
    loss = claim_of(pool).loss

    assert recovery.is_recovering()
    assert loss is not None
    assert loss.since is None


def test_a_table_read_back_from_a_dump_is_a_restore(pool, recovery):
    run(
        pool,
        'UPDATE background_runs SET detail = detail || \'{"table": "1"}\''
        " WHERE name = 'recovery fake'",
    )

    recovery.check(soon())

    assert recovery.is_recovering()


def test_where_the_engine_is_silent_a_fresh_check_is_trusted(pool, recovery):
    run(pool, "UPDATE background_runs SET server = NULL WHERE name = 'recovery fake'")
    fresh = claim_of(pool).loss
    run(pool, "UPDATE background_runs SET last_run_at = now() - interval '1 hour'")

    assert fresh is None
    assert claim_of(pool).loss is not None


def test_a_second_loss_reaches_back_to_the_first(pool, recovery):
    run(pool, "UPDATE background_runs SET last_run_at = now() - interval '2 hours'")
    recovery.check(soon())
    fail_over_again = json.dumps({"database": "1/00000001"})
    run(
        pool,
        "UPDATE background_runs SET detail = detail || %(d)s::jsonb WHERE name = 'recovery fake'",
        d=fail_over_again,
    )
    recovery.check(soon())

    loss = claim_of(pool).loss

    assert loss is not None
    assert loss.since is not None
    assert datetime.now(UTC) - loss.since > timedelta(minutes=110)


def test_people_are_told_since_when_what_waits_for_the_sweep(pool, recovery):
    report = SweepReport(pool, "fake")
    assert report.waiting(soon()) is None

    fail_over(pool)
    recovery.check(soon())
    told = report.waiting(soon())

    assert told is not None
    assert re.fullmatch(
        r"the queue waits since \d{4}-\d\d-\d\d \d\d:\d\d UTC because commits may have been lost;"
        r" (no part of the provider's charges is compared yet"
        r"|the provider's charges are compared up to [-0-9: ]+ UTC); \d+ payments wait",
        told,
    )

    sweep_to(pool, datetime.now(UTC) + timedelta(minutes=1))
    recovery.check(soon())
    assert report.waiting(soon()) is None
