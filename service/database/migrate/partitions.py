"""The monthly partitions of `events`: created ahead, filled from the default, detached when old.

Only the owner of the tables can do any of it; the service's role owns nothing.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

import psycopg2
import psycopg2.errors
from psycopg2 import sql

log = logging.getLogger(__name__)

MONTHS_AHEAD = 3
# This month and the next two: a missing one is noticed a month before its first event at least.
MONTHS_WATCHED = 3
# Rows that one statement copies out of the default partition, without a lock.
COPIED_AT_ONCE = 10_000
# Rows are copied outside of the lock in this many rounds at most; the rest comes under it.
COPY_ROUNDS = 10_000
# The default partition: events of months without a partition.
DEFAULT = "events_other"
_NAME = re.compile(r"events_(\d{4})_(\d{2})")

Cursor = psycopg2.extensions.cursor


@dataclass(frozen=True, slots=True)
class Month:
    """One month in UTC, and its partition."""

    first: date

    @property
    def next(self) -> Month:
        first = self.first
        return Month(date(first.year + first.month // 12, first.month % 12 + 1, 1))

    @property
    def name(self) -> str:
        return f"events_{self.first:%Y_%m}"

    @property
    def begins(self) -> str:
        return f"{self.first} 00:00:00+00"


def months_from(today: date, count: int) -> Iterator[Month]:
    """The month of `today` and those behind it."""
    month = Month(today.replace(day=1))
    for _ in range(count):
        yield month
        month = month.next


def months_before(today: date, count: int) -> Month:
    """The month that began `count` months before that of `today`."""
    number = today.year * 12 + today.month - 1 - count
    return Month(date(number // 12, number % 12 + 1, 1))


def make_partitions(cursor: Cursor, today: date) -> list[str]:
    """Create the missing partitions for this month and the next MONTHS_AHEAD; their names."""
    made = []
    for month in months_from(today, 1 + MONTHS_AHEAD):
        if _exists(cursor, month.name):
            continue
        try:
            create(
                cursor,
                sql.SQL("CREATE TABLE IF NOT EXISTS {} PARTITION OF events").format(
                    sql.Identifier(month.name)
                )
                + sql.SQL(" FOR VALUES FROM ({}) TO ({})").format(*_bounds(month)),
            )
            made.append(month.name)
        except psycopg2.errors.CheckViolation:
            # The month began before the migration: its events are found in the default
            # partition as well, until `python -m service retain` moves them.
            log.warning("migration.partition_skipped", extra={"partition": month.name})
    return made


def months_in_default(cursor: Cursor) -> list[Month]:
    """The months of the events in the default partition."""
    cursor.execute(
        sql.SQL(
            "SELECT DISTINCT date_trunc('month', created_at AT TIME ZONE 'UTC')::date FROM {}"
            " ORDER BY 1"
        ).format(sql.Identifier(DEFAULT))
    )
    return [Month(first) for (first,) in cursor.fetchall()]


def move_out_of_default(cursor: Cursor, month: Month) -> int:
    """Move a month from the default partition to a new one; the number of events moved.

    Events are never changed, so they are copied first, in batches and without a lock. Under the
    lock only the events that arrived since then are copied, the month leaves the default partition
    and the new table is attached: a reader finds each event once at any time. Repeatable: the next
    call continues an interrupted copy.
    """
    table, default = sql.Identifier(month.name), sql.Identifier(DEFAULT)
    if not _exists(cursor, month.name):
        # The CHECK saves ATTACH the scan of the rows.
        create(
            cursor,
            sql.SQL(
                "CREATE TABLE {} (LIKE events INCLUDING DEFAULTS INCLUDING INDEXES,"
                " CHECK (created_at >= {} AND created_at < {}))"
            ).format(table, *_bounds(month)),
        )
    for _ in range(COPY_ROUNDS):
        if _copy(cursor, month, COPIED_AT_ONCE) == 0:
            break
    cursor.execute("BEGIN")
    try:
        cursor.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        _copy(cursor, month, None)
        cursor.execute(
            sql.SQL("DELETE FROM {} WHERE created_at >= {} AND created_at < {}").format(
                default, *_bounds(month)
            )
        )
        moved = cursor.rowcount
        cursor.execute(
            sql.SQL("ALTER TABLE events ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                table, *_bounds(month)
            )
        )
    except BaseException:
        with contextlib.suppress(psycopg2.Error):
            cursor.execute("ROLLBACK")
        raise
    cursor.execute("COMMIT")
    return moved


def _copy(cursor: Cursor, month: Month, limit: int | None) -> int:
    """Copy the events that the month's table still lacks."""
    cursor.execute(
        sql.SQL(
            "INSERT INTO {table} SELECT o.* FROM {default} o"
            " WHERE o.created_at >= {first} AND o.created_at < {last} AND NOT EXISTS ("
            "  SELECT 1 FROM {table} n WHERE n.merchant_id = o.merchant_id"
            "  AND n.event_id = o.event_id AND n.created_at = o.created_at)"
            " LIMIT {limit} ON CONFLICT DO NOTHING"
        ).format(
            table=sql.Identifier(month.name),
            default=sql.Identifier(DEFAULT),
            first=_bounds(month)[0],
            last=_bounds(month)[1],
            limit=sql.Literal(limit),
        )
    )
    return int(cursor.rowcount)


def attached(cursor: Cursor) -> list[Month]:
    """The months that have a partition, oldest first."""
    cursor.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'events'::regclass ORDER BY c.relname"
    )
    found = (_NAME.fullmatch(name) for (name,) in cursor.fetchall())
    return [Month(date(int(match[1]), int(match[2]), 1)) for match in found if match]


def detach(cursor: Cursor, month: Month) -> None:
    """Detach a month from `events`; its table remains, for its owner to archive and drop.

    Not CONCURRENTLY: PostgreSQL refuses that beside a default partition. The lock is as short as
    the catalogue's change, and waits no longer than the session's lock_timeout.
    """
    cursor.execute(
        sql.SQL("ALTER TABLE events DETACH PARTITION {}").format(sql.Identifier(month.name))
    )


def create(cursor: Cursor, statement: str | sql.Composable) -> None:
    """Run a CREATE .. IF NOT EXISTS; of two at once the slower one may fail, which is harmless.

    Its error depends on the step at which the other one is met: the row type, the table, or an index
    of the catalogue.
    """
    with contextlib.suppress(
        psycopg2.errors.DuplicateObject,
        psycopg2.errors.DuplicateTable,
        psycopg2.errors.UniqueViolation,
    ):
        cursor.execute(statement)


def _bounds(month: Month) -> tuple[sql.Composable, sql.Composable]:
    return sql.Literal(month.begins), sql.Literal(month.next.begins)


def _exists(cursor: Cursor, name: str) -> bool:
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (name,))
    ((exists,),) = cursor.fetchall()
    return bool(exists)


def today() -> date:
    """The day in UTC, as the partitions' borders are."""
    return datetime.now(UTC).date()


# Months without a partition among this one and those behind it, and whether the default partition has
# any page. As the service's role, which may not read a partition by its own name; a table of the right
# name that is not attached to `events` does not count.
STATE_SQL = f"""
    SELECT (SELECT count(*) FROM generate_series(0, {MONTHS_WATCHED} - 1) AS n (n)
            WHERE NOT EXISTS (
                SELECT 1 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = 'events'::regclass
                  AND c.relname = 'events_' || to_char(
                      date_trunc('month', now() AT TIME ZONE 'UTC') + n * interval '1 month',
                      'YYYY_MM'))),
           pg_relation_size('{DEFAULT}') > 0
"""  # noqa: S608 - only our own constants are put in
