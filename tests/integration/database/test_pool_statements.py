"""Statements and transactions: committed or not, never both, and the first error is the one seen."""

from __future__ import annotations

from uuid import uuid4

import psycopg2
import psycopg2.errors
import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.database.pool.statements import prepared_form
from service.errors import DatabaseUnavailable, DeadlineExceeded
from service.resilience.deadline import Deadline
from tests.support.stack.pools import ONE, pool_of

ADD = Statement("add_merchant", "INSERT INTO merchants (merchant_id, name) VALUES (%s, %s)")
COUNT = Statement("count_merchants", "SELECT count(*) FROM merchants WHERE name = %s")
DIE = Statement("die", "SELECT pg_terminate_backend(pg_backend_pid())")


def count(pool: ConnectionPool, name: str) -> int:
    return int(pool.run(COUNT, (name,), Deadline.after(60))[0][0])


def new_merchant(name: str) -> tuple[str, str]:
    return str(uuid4()), name


def test_a_block_that_ends_well_is_committed(pool: ConnectionPool) -> None:
    with pool.transaction(Deadline.after(60)) as checkout:
        checkout.run(ADD, new_merchant("kept"))
        checkout.run(ADD, new_merchant("kept"))

    assert count(pool, "kept") == 2


def test_a_block_that_raises_is_rolled_back_and_raises_the_same(pool: ConnectionPool) -> None:
    def add_and_fail() -> None:
        with pool.transaction(Deadline.after(60)) as checkout:
            checkout.run(ADD, new_merchant("gone"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_and_fail()

    assert count(pool, "gone") == 0
    assert pool.statistics().returns_bad == 0


def test_lost_connection_does_not_hide_the_blocks_error(pool: ConnectionPool) -> None:
    def die_and_fail() -> None:
        with pool.transaction(Deadline.after(60)) as checkout:
            with pytest.raises(DatabaseUnavailable):
                checkout.run(DIE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        die_and_fail()

    assert pool.run(ONE, (), Deadline.after(60)) == [(1,)]


def test_a_commit_on_a_dead_connection_is_database_unavailable(pool: ConnectionPool) -> None:
    def die_and_commit() -> None:
        with pool.transaction(Deadline.after(60)) as checkout:
            checkout.run(ADD, new_merchant("gone"))
            with pytest.raises(DatabaseUnavailable):
                checkout.run(DIE)

    with pytest.raises(DatabaseUnavailable):
        die_and_commit()

    assert count(pool, "gone") == 0


def test_swallowed_error_makes_commit_fail_loudly(
    pool: ConnectionPool,
) -> None:
    with (
        pytest.raises(psycopg2.errors.InFailedSqlTransaction),
        pool.transaction(Deadline.after(60)) as checkout,
        pytest.raises(psycopg2.errors.DivisionByZero),
    ):
        checkout.run(Statement("zero", "SELECT 1 / 0"))


def test_a_breach_of_a_constraint_passes_as_it_was_raised(pool: ConnectionPool) -> None:
    merchant = new_merchant("twice")
    pool.run(ADD, merchant, Deadline.after(60))

    with pytest.raises(psycopg2.errors.UniqueViolation):
        pool.run(ADD, merchant, Deadline.after(60))

    assert pool.statistics().connections_lost == 0


def test_a_spent_deadline_sends_nothing(pool: ConnectionPool) -> None:
    with pytest.raises(DeadlineExceeded):
        pool.run(ADD, new_merchant("late"), Deadline.after(0))

    assert count(pool, "late") == 0


def test_open_transaction_is_not_passed_to_the_next_caller(
    pool: ConnectionPool,
) -> None:
    with pool.checkout(Deadline.after(60)) as checkout:
        checkout.run(Statement("begin_by_hand", "BEGIN"))
        checkout.run(ADD, new_merchant("gone"))

    assert count(pool, "gone") == 0
    assert pool.statistics().returns_bad == 1


def test_a_checkout_cannot_be_used_after_its_block(pool: ConnectionPool) -> None:
    with pool.checkout(Deadline.after(60)) as checkout:
        pass

    with pytest.raises(AttributeError):
        checkout.run(ONE)


def test_statement_is_retried_after_a_serialization_failure(database_url: str) -> None:
    # A sequence is not rolled back, so the second try sees that it is the second.
    fail_once = Statement(
        "fail_once",
        "DO $$ BEGIN IF nextval('tries') = 1 THEN RAISE serialization_failure; END IF; END $$",
    )
    with pool_of(1, database_url) as pool:
        pool.run(Statement("tries", "CREATE TEMP SEQUENCE tries"), (), Deadline.after(60))
        pool.run(fail_once, (), Deadline.after(60))
        tries = pool.run(Statement("tried", "SELECT last_value FROM tries"), (), Deadline.after(60))

    assert tries == [(2,)]


def test_statement_is_prepared_once_and_gives_the_same_rows(database_url: str) -> None:
    named = Statement("named", "SELECT %(a)s::int + %(b)s::int + %(a)s::int, '100%%'")
    with pool_of(1, database_url, prepared=True) as pool:
        rows = [pool.run(named, {"a": 1, "b": 2}, Deadline.after(60)) for _ in range(3)]
        listed = pool.run(
            Statement(
                "list", "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'named%%'"
            ),
            (),
            Deadline.after(60),
        )

    assert rows == [[(4, "100%")]] * 3
    assert listed == [(1,)]


def test_outdated_prepared_plan_is_prepared_again(database_url: str, owner_url: str) -> None:
    star = Statement("star", "SELECT * FROM merchants WHERE name = %s")
    with pool_of(2, database_url, prepared=True) as pool:
        pool.run(star, ("x",), Deadline.after(60))
        owner = psycopg2.connect(owner_url)
        with owner, owner.cursor() as cursor:
            cursor.execute("ALTER TABLE merchants ADD COLUMN note text")
        owner.close()

        assert pool.run(star, ("x",), Deadline.after(60)) == []


NAMED = Statement("named", "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'named%'")
FORGET = Statement("forget", "DEALLOCATE ALL")


def test_a_direct_connection_prepares_unless_it_is_told(database_url: str) -> None:
    counts = {}
    for prepared in (None, True, False):
        with pool_of(1, database_url, prepared=prepared) as pool:
            counts[prepared] = [pool.run(NAMED, (), Deadline.after(60))[0][0] for _ in range(3)]

    assert counts == {None: [1, 1, 1], True: [1, 1, 1], False: [0, 0, 0]}


def test_a_lost_statement_ends_preparing_and_is_run_again(database_url: str) -> None:
    with pool_of(1, database_url, prepared=None) as pool:
        pool.run(NAMED, (), Deadline.after(60))
        pool.run(FORGET, (), Deadline.after(60))
        rows = [pool.run(NAMED, (), Deadline.after(60))[0][0] for _ in range(2)]

        assert (rows, pool.prepared) == ([0, 0], False)


def test_two_texts_under_one_name_are_two_statements(database_url: str) -> None:
    with pool_of(1, database_url, prepared=True) as pool:
        rows = [
            pool.run(Statement("same", f"SELECT {number}"), (), Deadline.after(60))
            for number in (1, 2, 1)
        ]

    assert rows == [[(1,)], [(2,)], [(1,)]]


def test_values_without_a_place_in_the_text_are_ignored(database_url: str) -> None:
    with pool_of(1, database_url, prepared=True) as pool:
        assert pool.run(Statement("one", "SELECT 1"), {"a": 2}, Deadline.after(60)) == [(1,)]


def test_a_list_of_ids_is_an_array_of_ids_when_prepared(database_url: str) -> None:
    ids = [str(uuid4()), str(uuid4())]
    counted = Statement("ids", "SELECT cardinality(%(ids)s::uuid[]), %(ids)s::uuid[] = %(ids)s")
    with pool_of(1, database_url, prepared=True) as pool:
        rows = [pool.run(counted, {"ids": some}, Deadline.after(60)) for some in (ids, [], ids)]

    assert rows == [[(2, True)], [(0, True)], [(2, True)]]


def test_what_has_no_plan_is_sent_as_it_is(database_url: str) -> None:
    with pool_of(1, database_url, prepared=True) as pool:
        assert pool.run(Statement("zone", "SHOW timezone"), (), Deadline.after(60)) == [("UTC",)]


def test_the_prepared_form_sends_a_repeated_name_once() -> None:
    statement = Statement("s", "SELECT %(a)s, %(b)s, %(a)s, '%%'")

    prepare, execute = prepared_form(statement, has_params=True)

    name = execute.split('"')[1]
    assert prepare == f"PREPARE \"{name}\" AS SELECT $1, $2, $1, '%'"
    assert execute == f'EXECUTE "{name}" (%(a)s, %(b)s)'
