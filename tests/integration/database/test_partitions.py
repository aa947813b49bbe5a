"""Months of events: made ahead, moved out of the default partition, detached when old."""

from __future__ import annotations

import dataclasses
from datetime import date
from uuid import uuid4

import psycopg2
import pytest

from service.app.background import Background
from service.database.direct import cursor_to
from service.database.migrate.partitions import STATE_SQL, months_in_default, move_out_of_default
from service.database.migrate.retain import maintain
from service.database.migrate.runner import MigrationError
from service.database.pool.pool import Statement
from service.ids import new_id
from service.observability.metrics import catalogue as metrics
from service.payments.events.feed import EventFeed
from service.resilience.deadline import Deadline

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
    assert read(database_url, STATE_SQL) == [(0, False)]
    add_events(owner_url, "2041-03-02")
    assert read(database_url, STATE_SQL) == [(0, True)]

    retain(owner_url)

    assert read(database_url, STATE_SQL) == [(0, False)]


def test_the_service_role_is_told_to_use_the_owner(database_url, owner_url):
    add_events(owner_url, "2041-03-02")

    with pytest.raises(MigrationError, match="owner"):
        retain(database_url)


def drop_months(url: str, how_many: int) -> None:
    """Detach the last months that were made ahead, as if they had never been made; their tables stay."""
    names = [
        name
        for (name,) in read(
            url,
            """
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'events'::regclass AND c.relname <> 'events_other'
        ORDER BY c.relname DESC""",
        )
    ]
    with cursor_to(url) as cursor:
        for name in names[:how_many]:
            cursor.execute(f"ALTER TABLE events DETACH PARTITION {name}")


def test_a_missing_month_counts_a_month_before_its_first_event(database_url, owner_url):
    # `migrate` makes this month and three: one more than is watched.
    for dropped, missing in ((1, 0), (2, 1), (4, 3)):
        drop_months(owner_url, dropped - len(_dropped(owner_url)))

        assert read(database_url, STATE_SQL)[0][0] == missing


def test_the_gauge_counts_the_missing_months(pool, owner_url):
    drop_months(owner_url, 2)
    fields = {field.name: None for field in dataclasses.fields(Background)}
    background = Background(**{**fields, "pool": pool})  # type: ignore[arg-type]

    background._count_event_months(Deadline.after(60))

    assert metrics.event_months_missing._value.get() == 1


def _dropped(url: str) -> list[tuple]:
    return read(
        url,
        "SELECT 1 FROM pg_class WHERE relname ~ '^events_[0-9_]+$' AND relkind = 'r'"
        " AND NOT relispartition",
    )


def test_no_event_is_lost_where_no_month_is_left(pool, database_url, owner_url):
    drop_months(owner_url, 4)
    merchant, event = uuid4(), new_id()
    insert = Statement(
        "audit_test",
        "INSERT INTO events (merchant_id, event_id, type) VALUES (%(m)s, %(e)s, 'x') RETURNING 1",
    )

    pool.run(insert, {"m": str(merchant), "e": str(event)}, Deadline.after(60))

    page = EventFeed(pool).read(merchant, Deadline.after(60), after=None, limit=10)
    assert [found.event_id for found in page.events] == [event]
    assert read(database_url, STATE_SQL) == [(3, True)]
