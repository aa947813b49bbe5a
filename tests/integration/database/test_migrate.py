"""Migrations: once each, whole or not at all, however many start; the rights that they leave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import date
from itertools import chain

import psycopg2
import psycopg2.errors
import pytest

from service.database.direct import cursor_to
from service.database.migrate import runner as subject
from service.database.migrate.partitions import make_partitions
from service.database.migrate.runner import (
    APPLIED_SQL,
    Migration,
    MigrationError,
    applied_version,
    latest_version,
    migrate,
    migrations,
    pending,
)
from service.lab.local.embedded import OWNER, EmbeddedPostgres


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The owner's way to a database without any table."""
    with cursor_to(postgres.url(OWNER, "postgres")) as cursor:
        cursor.execute("CREATE DATABASE empty")
    yield postgres.url(OWNER, "empty")
    with cursor_to(postgres.url(OWNER, "postgres")) as cursor:
        cursor.execute("DROP DATABASE empty WITH (FORCE)")


def test_empty_database_gets_all_migrations_once(empty_url):
    names = [migration.name for migration in migrations()]

    first, second = migrate(empty_url), migrate(empty_url)

    assert (first, second) == (names, [])
    assert pending(empty_url) == []


def test_many_that_start_at_once_apply_each_once(empty_url):
    with ThreadPoolExecutor(6) as executor:
        applied = list(executor.map(migrate, [empty_url] * 6))

    assert sorted(chain(*applied)) == [migration.name for migration in migrations()]


def test_without_the_advisory_lock_the_version_rows_alone_hold(empty_url, monkeypatch):
    # As on engines without working advisory locks.
    monkeypatch.setattr(subject, "one_at_a_time", lambda cursor, give_up_at_s: nullcontext())
    both_begin = threading.Barrier(2)

    def start() -> list[str]:
        both_begin.wait()
        return migrate(empty_url)

    with ThreadPoolExecutor(2) as executor:
        applied = [future.result() for future in [executor.submit(start) for _ in range(2)]]

    assert sorted(chain(*applied)) == [migration.name for migration in migrations()]


def test_a_migration_that_fails_leaves_no_trace(empty_url, monkeypatch):
    broken = Migration(9998, "9998_broken.sql", "CREATE TABLE half (id int); SELECT 1 / 0;")
    _with_migrations(monkeypatch, *migrations(), broken)

    with pytest.raises(psycopg2.errors.DivisionByZero):
        migrate(empty_url)

    with cursor_to(empty_url) as cursor:
        assert _value(cursor, "SELECT to_regclass('half')") is None
    assert pending(empty_url) == ["9998_broken.sql"]


def test_a_changed_file_is_refused(empty_url, monkeypatch):
    migrate(empty_url)
    first, *others = migrations()
    changed = Migration(first.version, first.name, first.text + "-- changed\n")
    _with_migrations(monkeypatch, changed, *others)

    with pytest.raises(MigrationError, match="is not the file that was applied"):
        migrate(empty_url)


def test_one_statement_may_run_outside_a_transaction(empty_url, monkeypatch):
    index = Migration(
        9999,
        "9999_index.sql",
        "-- outside a transaction\n"
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS by_name ON merchants (name)",
    )
    _with_migrations(monkeypatch, *migrations(), index)

    migrate(empty_url)

    with cursor_to(empty_url) as cursor:
        assert _value(cursor, "SELECT to_regclass('by_name') IS NOT NULL")
    assert pending(empty_url) == []


def test_it_waits_for_a_lock_in_small_steps_and_then_goes_on(empty_url, monkeypatch):
    monkeypatch.setattr(subject, "LOCK_TIMEOUT_MS", 50)
    migrate(empty_url)
    _with_migrations(
        monkeypatch,
        *migrations(),
        Migration(9997, "9997_column.sql", "ALTER TABLE merchants ADD COLUMN colour text"),
    )
    reader = psycopg2.connect(empty_url)
    reader.cursor().execute("SELECT count(*) FROM merchants")

    with ThreadPoolExecutor(1) as executor:
        migrating = executor.submit(migrate, empty_url)
        # Its lock timeout passes at least once while the reader's transaction is open.
        with pytest.raises(TimeoutError):
            migrating.result(0.3)
        reader.close()
        applied = migrating.result(60)

    assert applied == ["9997_column.sql"]


def test_readiness_counts_up_to_the_first_gap(monkeypatch):
    _with_migrations(monkeypatch, *(Migration(n, f"{n:04}_x.sql", "") for n in (1, 2, 3)))

    assert applied_version([]) == 0
    assert applied_version([(1,), (3,)]) == 1
    assert applied_version([(3,), (2,), (1,)]) == 3 == latest_version()


def test_the_app_can_ask_what_is_applied(database_url):
    with cursor_to(database_url) as cursor:
        cursor.execute(APPLIED_SQL)
        assert applied_version(cursor.fetchall()) == latest_version()


def test_events_of_this_month_and_the_next_three_have_partitions(empty_url):
    migrate(empty_url)

    with cursor_to(empty_url) as cursor:
        make_partitions(cursor, date(2031, 11, 30))
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relname LIKE 'events\\_203%' AND relkind = 'r'"
            " ORDER BY relname"
        )
        names = [name for (name,) in cursor.fetchall()]

    assert names == ["events_2031_11", "events_2031_12", "events_2032_01", "events_2032_02"]


def test_a_month_that_began_without_its_partition_loses_nothing(empty_url):
    migrate(empty_url)
    with cursor_to(empty_url) as cursor:
        cursor.execute(
            "INSERT INTO events (merchant_id, event_id, type, created_at)"
            " VALUES (gen_random_uuid(), gen_random_uuid(), 'x', '2031-11-05')"
        )

        make_partitions(cursor, date(2031, 11, 30))

        assert _value(cursor, "SELECT count(*) FROM events") == 1
        assert _value(cursor, "SELECT to_regclass('events_2031_12') IS NOT NULL")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET type = 'other'",
        "DELETE FROM events",
        "TRUNCATE events",
        "DELETE FROM payments",
        "DELETE FROM events_other",
        "INSERT INTO schema_migrations VALUES (7, 'x', 'x')",
        "DROP TABLE payments",
        "ALTER TABLE payments DROP CONSTRAINT payments_pkey",
    ],
)
def test_the_app_role_cannot_rewrite_history(database_url, statement):
    with cursor_to(database_url) as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cursor.execute(statement)


def test_the_app_role_has_its_time_limits_from_the_role_itself(database_url):
    with cursor_to(database_url) as cursor:
        limits = [
            _value(cursor, f"SHOW {name}")
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        ]

    assert limits == ["2s", "1s", "5s"]


def test_a_role_that_does_not_exist_is_named(empty_url):
    with pytest.raises(MigrationError, match="role stranger"):
        migrate(empty_url, app_dsn="postgresql://stranger@/x")


def _with_migrations(monkeypatch: pytest.MonkeyPatch, *these: Migration) -> None:
    monkeypatch.setattr(subject, "migrations", lambda: these)


def _value(cursor: psycopg2.extensions.cursor, statement: str) -> object:
    cursor.execute(statement)
    ((value,),) = cursor.fetchall()
    return value
