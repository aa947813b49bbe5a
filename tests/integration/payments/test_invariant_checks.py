"""The rules about money stay checked however many payments there are, and say since when not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from service.database.direct import cursor_to
from service.database.pool.pool import ConnectionPool, Statement
from service.ids import (
    new_id,
)
from service.observability.metrics import catalogue as metrics
from service.payments.settling import invariants
from service.payments.settling.invariant_checks import InvariantChecks
from service.payments.settling.invariants import (
    Place,
    check_rule,
    check_slice,
)
from service.payments.settling.run_locks import RunLocks
from service.resilience.deadline import Deadline


@pytest.fixture
def owner(owner_url: str) -> Iterator[Any]:
    """A cursor of the owner of the schema, each statement its own transaction."""
    with cursor_to(owner_url) as cursor:
        yield cursor


MERCHANTS = [str(uuid4()) for _ in range(3)]
MANY = 30_000
# A version 7 UUID of `n` milliseconds ago, the same for the payment and its event.
_ID = """(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - n), 12, '0') || '7'
    || lpad(to_hex(n % 4096), 3, '0') || '8000' || lpad(to_hex(n), 12, '0'))::uuid"""
_FILL = """
    WITH made AS (
        SELECT n, {id} AS id, (ARRAY[{merchants}])[1 + n % {count}]::uuid AS merchant_id
        FROM generate_series(1, {many}) AS n
    ), keys AS (
        INSERT INTO idempotency_keys (merchant_id, idempotency_key, fingerprint, payment_id)
        SELECT merchant_id, id::text, '\\x00', id FROM made
    ), events AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type)
        SELECT merchant_id, id, id, 'payment.succeeded' FROM made
    ), movements AS (
        INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount)
        SELECT merchant_id, id, id, 'capture', 'succeeded', 100 FROM made
    )
    INSERT INTO payments (merchant_id, payment_id, status, amount, currency, payment_method,
                          capture_method, on_outage, amount_captured, provider, provider_ref)
    SELECT merchant_id, id, 'succeeded', 100, 'usd', 'pm', 'automatic', 'queue', 100, 'fake',
           'pi_' || n
    FROM made
"""


def soon(seconds: float = 60) -> Deadline:
    return Deadline.after(seconds)


def fill(owner, many: int = MANY, merchants: int = 1) -> None:
    """So many paid payments, one a millisecond, with events and keys."""
    owner.execute(
        "INSERT INTO merchants (merchant_id, name) SELECT unnest(%s::uuid[]), 'test'",
        (MERCHANTS[:merchants],),
    )
    names = ", ".join(f"'{merchant}'" for merchant in MERCHANTS[:merchants])
    owner.execute(_FILL.format(id=_ID, merchants=names, count=merchants, many=many))
    owner.execute("ANALYZE")


def checks(pool: ConnectionPool, turn_s: float = 5.0) -> InvariantChecks:
    return InvariantChecks(pool, RunLocks(pool), turn_s=turn_s)


def run(pool: ConnectionPool, turn_s: float = 5.0) -> None:
    """One turn of every rule, now."""
    pool.run(
        Statement("again", "UPDATE background_runs SET last_run_at = NULL RETURNING 1"), {}, soon()
    )
    checks(pool, turn_s).run(soon())


@pytest.mark.parametrize("merchants", [1, 3])
def test_slices_read_every_row_once(pool, owner, merchants):
    fill(owner, 1000, merchants)
    since = datetime.now(UTC) - timedelta(hours=6)
    for rule in ("payment_has_events", "one_payment_a_key"):
        place, slices = Place(), 0
        while place is not None:
            found, place = check_slice(pool, rule, place, soon(), since=since, rows=64)
            slices += 1
            assert found == 0
        assert slices == 1000 // 64 + 1


def test_each_broken_row_is_found_whatever_slice_it_is_in(pool, owner):
    fill(owner, 1000, 3)
    owner.execute(
        "UPDATE payments SET amount_refunded = 1 WHERE provider_ref IN ('pi_7', 'pi_900')"
    )
    owner.execute(
        "DELETE FROM events e USING payments p WHERE p.payment_id = e.payment_id"
        " AND p.provider_ref IN ('pi_1', 'pi_500', 'pi_1000')"
    )
    owner.execute(
        "INSERT INTO idempotency_keys SELECT merchant_id, 'second', '\\x00', payment_id, now()"
        " FROM payments WHERE provider_ref = 'pi_3'"
    )

    assert check_rule(pool, "payment_has_events", soon()) == 3
    assert check_rule(pool, "one_payment_a_key", soon()) == 1
    assert check_rule(pool, "captured_within_authorised", soon()) == 0


def change(owner, ref: str, sql: str) -> None:
    """Change a payment and write the event that each change writes, now."""
    owner.execute(
        f"WITH p AS (UPDATE payments SET {sql} WHERE provider_ref = %s RETURNING *)"  # noqa: S608
        " INSERT INTO events (merchant_id, event_id, payment_id, type)"
        " SELECT merchant_id, %s, payment_id, 'payment.succeeded' FROM p",
        (ref, str(new_id())),
    )


def second_key(owner, ref: str) -> None:
    owner.execute(
        "INSERT INTO idempotency_keys SELECT merchant_id, 'second', '\\x00', payment_id, now()"
        " FROM payments WHERE provider_ref = %s",
        (ref,),
    )


def quick(pool: ConnectionPool, rule: str, *, rows: int = 64) -> int:
    """Violations among the changes of the last minute, in many slices."""
    place, total = Place(), 0
    since = datetime.now(UTC) - timedelta(minutes=1)
    while place is not None:
        found, place = check_slice(
            pool, rule, place, soon(), since=since, rows=rows, of_changes=True
        )
        total += found
    return total


def make_older(owner) -> None:
    """All payments and events as of eight hours ago: outside of the window of a whole pass."""
    for table, key in (("payments", "payment_id"), ("events", "event_id")):
        owner.execute(
            f"UPDATE {table} SET {key} = (lpad(to_hex((('x' || left(replace({key}::text, '-', ''),"  # noqa: S608
            f" 12))::bit(48)::bigint - 28800000)), 12, '0')"
            f" || substr(replace({key}::text, '-', ''), 13))::uuid"
        )
    for table in ("events", "movements", "idempotency_keys"):
        owner.execute(
            f"UPDATE {table} SET payment_id = (lpad(to_hex((('x'"  # noqa: S608
            f" || left(replace(payment_id::text, '-', ''), 12))::bit(48)::bigint - 28800000)), 12,"
            f" '0') || substr(replace(payment_id::text, '-', ''), 13))::uuid"
        )


def test_one_charge_of_two_merchants_is_found_far_apart(pool, owner):
    fill(owner, 1000, 3)
    owner.execute(
        "UPDATE payments SET provider_ref = 'pi_2' WHERE provider_ref = 'pi_999'"
        " AND merchant_id <> (SELECT merchant_id FROM payments WHERE provider_ref = 'pi_2')"
    )
    since, place, found = datetime.now(UTC) - timedelta(hours=6), Place(), 0

    while place is not None:
        more, place = check_slice(
            pool, "one_payment_a_reference", place, soon(), since=since, rows=50
        )
        found += more

    # Both payments break the rule.
    assert found == 2


@pytest.mark.parametrize("rule", ["one_payment_a_reference", "one_payment_a_key"])
def test_an_old_row_that_breaks_now_is_in_the_quick_pass(pool, owner, rule):
    fill(owner, 300, 3)
    make_older(owner)
    second_key(owner, "pi_7")
    change(owner, "pi_7", "provider_ref = 'pi_8'")

    assert check_rule(pool, rule, soon()) == 0, "The whole pass sees it: no proof."
    assert quick(pool, rule) == 1


def test_the_walk_finds_what_changed_long_ago_without_event(pool, owner):
    fill(owner, 300, 3)
    make_older(owner)
    second_key(owner, "pi_9")
    assert check_rule(pool, "one_payment_a_key", soon()) == 0, "The whole pass sees it: no proof."

    run(pool)

    states = checks(pool).states(soon())
    assert states["one_payment_a_key"].violations == 1
    assert states["captured_within_authorised"].violations == 0


def test_the_walk_goes_on_slice_by_slice_to_the_end(pool, owner, monkeypatch):
    fill(owner, 300, 3)
    make_older(owner)
    second_key(owner, "pi_1")
    monkeypatch.setattr("service.payments.settling.invariant_checks.SLICE_ROWS", 100)

    for _ in range(4):
        run(pool)

    assert checks(pool).states(soon())["one_payment_a_key"].violations == 1
    owner.execute("DELETE FROM idempotency_keys WHERE idempotency_key = 'second'")
    for _ in range(8):
        run(pool)
    assert checks(pool).states(soon())["one_payment_a_key"].violations == 0


@pytest.mark.parametrize(
    ("key", "found"),
    [("k-1", 0), ("another", 1)],
)
def test_a_key_that_is_not_the_payments_own_is_found(pool, owner, key, found):
    fill(owner, 3)
    owner.execute(
        "UPDATE payments SET key_digest = encode(sha256(convert_to(concat_ws(chr(10), 'payment',"
        " replace(merchant_id::text, '-', ''), 'k-1'), 'UTF8')), 'hex')"
    )
    owner.execute("DELETE FROM idempotency_keys")
    owner.execute(
        "INSERT INTO idempotency_keys SELECT merchant_id, %s, '\\x00', payment_id, now()"
        " FROM payments WHERE provider_ref = 'pi_2'",
        (key,),
    )

    assert check_rule(pool, "one_payment_a_key", soon()) == found


def test_a_rule_that_fails_keeps_no_other_unchecked(pool, owner):
    fill(owner, 100)
    owner.execute("BEGIN; LOCK TABLE movements IN ACCESS EXCLUSIVE MODE")

    run(pool)

    states = checks(pool).states(soon())
    owner.execute("ROLLBACK")

    unchecked = {rule for rule, state in states.items() if state.checked_at is None}
    assert unchecked == {"refunds_add_up", "captured_once"}


def test_age_grows_where_a_rule_is_not_checked(pool, owner):
    run(pool)
    old = datetime.now(UTC) - timedelta(minutes=30)
    owner.execute(
        "UPDATE background_runs SET detail = jsonb_set(detail, '{checked_at}', to_jsonb(%s::text))"
        " WHERE name = 'invariant terminal_stays'",
        (old.isoformat(),),
    )

    checks(pool).show(soon())

    assert metrics.invariant_age_seconds._value.get() > 1700


def test_violation_shows_before_a_long_pass_has_ended(pool, owner):
    fill(owner, 20_000)
    owner.execute(
        "DELETE FROM events WHERE payment_id = (SELECT payment_id FROM payments WHERE provider_ref = 'pi_20000')"
    )

    run(pool, turn_s=0.05)

    assert checks(pool).states(soon())["payment_has_events"].violations == 1


def test_a_pass_that_is_cut_short_goes_on_where_it_was(pool, owner):
    fill(owner, 20_000)
    turns = 0
    while checks(pool).states(soon())["payment_has_events"].checked_at is None:
        run(pool, turn_s=0.02)
        turns += 1
        assert turns < 50

    assert turns > 1


def test_30_000_payments_are_checked_by_index_in_time(pool, owner):
    fill(owner)
    began = time.monotonic()

    found = invariants.check_invariants(pool, soon())

    took_s = time.monotonic() - began
    assert set(found.values()) == {0}
    assert took_s < 30, took_s


def test_an_old_payment_that_breaks_today_is_found_by_its_event(pool, owner):
    fill(owner, 100)
    old = "00000000-0000-7000-8000-00000000000a"
    owner.execute("UPDATE payments SET payment_id = %s WHERE provider_ref = 'pi_9'", (old,))
    owner.execute(
        "UPDATE payments SET amount_refunded = 1 WHERE payment_id = %s RETURNING merchant_id",
        (old,),
    )
    owner.execute(
        "INSERT INTO events (merchant_id, event_id, payment_id, type)"
        " VALUES (%s, %s, %s, 'refund.succeeded')",
        (MERCHANTS[0], str(new_id()), old),
    )
    owner.execute(
        "INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount)"
        " VALUES (%s, %s, %s, 'refund', 'succeeded', 3)",
        (MERCHANTS[0], old, old),
    )

    run(pool, turn_s=5.0)

    states = checks(pool).states(soon())
    assert check_rule(pool, "refunds_add_up", soon()) == 0, "The whole pass sees it: no proof."
    assert states["refunds_add_up"].violations == 1
    assert states["captured_once"].violations == 0


def test_no_rule_reads_a_table_whole(owner):
    fill(owner, 20_000, 3)
    since_ms = int((time.time() - 3600) * 1000)
    parameters = {
        "since_id": f"{since_ms:012x}" + "7" + "0" * 19,
        "rows": 500,
        **Place().parameters(),
    }
    # The months ahead are empty, and read whole because of that.
    full = ("payments", "movements", "idempotency_keys", f"events_{datetime.now(UTC):%Y_%m}")
    read_whole = {}
    for statement in (*invariants._STATEMENTS.values(), *invariants._OF_CHANGES.values()):
        owner.execute(f"EXPLAIN (COSTS OFF) {statement.sql}", parameters)
        plan = "\n".join(row[0] for row in owner.fetchall())
        found = [table for table in full if f"Seq Scan on {table} " in plan]
        if found:
            read_whole[statement.name] = found

    assert read_whole == {}
