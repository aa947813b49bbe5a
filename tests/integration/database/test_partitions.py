"""Months of events: made ahead, moved out of the default partition, detached when old."""

from __future__ import annotations

from datetime import date
from uuid import uuid4

import psycopg2
import pytest

from service.database.direct import cursor_to
from service.database.migrate.partitions import STATE_SQL, months_in_default, move_out_of_default
from service.database.migrate.retain import maintain
from service.database.migrate.runner import MigrationError

TODAY = date(2041, 3, 15)


def retain(url: str, *, kept_months: int | None = None, dry_run: bool = False):
    return maintain(
        url,
        today=TODAY,
        kept_months=kept_months,
        dry_run=dry_run,
        note=lambda cursor, act, name: cursor.execute(
            "INSERT INTO audit_log (audit_id, action, actor_kind, actor, target)"
            " VALUES (gen_random_uuid(), %s, 'cli', 'test', %s)",
            (f"partition.{act}", name),
        ),
    )


def add_events(url: str, day: str, count: int = 1) -> None:
    with cursor_to(url) as cursor:
        cursor.execute(
            "INSERT INTO events (merchant_id, event_id, type, created_at)"
            " SELECT %s, gen_random_uuid(), 'x', %s FROM generate_series(1, %s)",
            (str(uuid4()), day, count),
        )


def read(url: str, query: str) -> list[tuple]:
    with cursor_to(url) as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def months_of_2041(url: str) -> list[str]:
    rows = read(
        url,
        "SELECT relname FROM pg_class WHERE relname LIKE 'events\\_204%' AND relispartition"
        " AND relkind = 'r' ORDER BY 1",
    )
    return [name for (name,) in rows]


def test_months_are_made_ahead_and_the_second_run_finds_nothing(owner_url):
    first, second = retain(owner_url), retain(owner_url)

    assert months_of_2041(owner_url) == [f"events_2041_0{month}" for month in (3, 4, 5, 6)]
    assert [act for act, _ in first] == ["made"] * 4
    assert second == []


def test_events_in_the_default_partition_get_months_of_their_own(owner_url):
    add_events(owner_url, "2041-01-31 23:59:59.999+00", 3)
    add_events(owner_url, "2041-03-01 00:00:00+00", 25_000)

    acts = retain(owner_url)

    assert ("moved", "events_2041_03") in acts
    assert read(owner_url, "SELECT count(*) FROM events_other") == [(0,)]
    assert read(owner_url, "SELECT count(*) FROM events") == [(25_003,)]
    assert read(owner_url, "SELECT count(*) FROM events_2041_01") == [(3,)]
    assert "events_2041_06" in months_of_2041(owner_url)


def test_a_copy_that_was_cut_short_is_gone_on_with(owner_url):
    add_events(owner_url, "2041-03-02", 5)
    reader = psycopg2.connect(owner_url)
    reader.cursor().execute("SELECT count(*) FROM events")

    with cursor_to(owner_url) as cursor:
        cursor.execute("SET lock_timeout = 50")
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            move_out_of_default(cursor, months_in_default(cursor)[0])
    reader.close()
    add_events(owner_url, "2041-03-03", 2)
    assert read(owner_url, "SELECT count(*) FROM events") == [(7,)]

    retain(owner_url)

    assert read(owner_url, "SELECT count(*) FROM events") == [(7,)]
    assert read(owner_url, "SELECT count(*) FROM events_other") == [(0,)]


def test_old_months_are_detached_with_an_audit_row_and_kept(owner_url):
    add_events(owner_url, "2040-01-10")
    add_events(owner_url, "2040-02-10")

    acts = retain(owner_url, kept_months=13)

    assert ("detached", "events_2040_01") in acts
    assert ("detached", "events_2040_02") not in acts
    assert read(owner_url, "SELECT count(*) FROM events WHERE created_at < '2040-02-01'") == [(0,)]
    assert read(owner_url, "SELECT count(*) FROM events_2040_01") == [(1,)]
    assert read(
        owner_url,
        "SELECT count(*) FROM audit_log WHERE action = 'partition.detached'"
        " AND target = 'events_2040_01'",
    ) == [(1,)]


def test_a_dry_run_changes_nothing(owner_url):
    add_events(owner_url, "2040-01-10")

    acts = retain(owner_url, kept_months=13, dry_run=True)

    assert ("moved", "events_2040_01") in acts
    assert months_of_2041(owner_url) == []


def test_the_doctor_is_told_of_strays_and_of_missing_months(database_url, owner_url):
    assert read(database_url, STATE_SQL) == [(True, False)]
    add_events(owner_url, "2041-03-02")
    assert read(database_url, STATE_SQL) == [(True, True)]

    retain(owner_url)

    assert read(database_url, STATE_SQL) == [(True, False)]


def test_the_service_role_is_told_to_use_the_owner(database_url, owner_url):
    add_events(owner_url, "2041-03-02")

    with pytest.raises(MigrationError, match="owner"):
        retain(database_url)
