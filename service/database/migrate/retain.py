"""`python -m service retain`: maintains the months of `events`, with the owner's rights."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial
from time import monotonic

import psycopg2.errors

from service.database.migrate.partitions import (
    MONTHS_AHEAD,
    Cursor,
    Month,
    attached,
    detach,
    make_partitions,
    months_before,
    months_from,
    months_in_default,
    move_out_of_default,
)
from service.database.migrate.runner import (
    PATIENCE_S,
    MigrationError,
    again_after_lock_timeout,
    one_at_a_time,
    owner_session,
    transaction,
)

# Called with the act's own cursor, the act, and the partition's name.
Note = Callable[[Cursor, str, str], None]


def maintain(
    owner_dsn: str, *, today: date, kept_months: int | None, dry_run: bool, note: Note
) -> list[tuple[str, str]]:
    """Fill, create and detach months; each act as (act, name). Repeatable after any interruption.

    Raises MigrationError without a lock or without the owner's rights, Unreachable
    without a database.
    """
    give_up_at_s = monotonic() + PATIENCE_S
    acts: list[tuple[str, str]] = []

    def act(what: str, name: str, step: Callable[[], object]) -> None:
        acts.append((what, name))
        if not dry_run:
            again_after_lock_timeout(give_up_at_s, step)

    try:
        with owner_session(owner_dsn) as cursor, one_at_a_time(cursor, give_up_at_s):
            for month in months_in_default(cursor):
                act("moved", month.name, partial(_move, cursor, month, note))
            present = {month.name for month in attached(cursor)}
            for month in months_from(today, 1 + MONTHS_AHEAD):
                if month.name not in present and ("moved", month.name) not in acts:
                    act("made", month.name, partial(make_partitions, cursor, today))
            for month in attached(cursor) if kept_months is not None else ():
                if month.first < months_before(today, kept_months or 0).first:
                    act("detached", month.name, partial(_detach, cursor, month, note))
    except psycopg2.errors.InsufficientPrivilege as error:
        raise MigrationError(
            "MIGRATE_DATABASE_URL must name the owner of the tables: "
            f"{str(error).strip().splitlines()[0]}."
        ) from error
    return acts


def _move(cursor: Cursor, month: Month, note: Note) -> None:
    move_out_of_default(cursor, month)
    # VACUUM returns the empty pages, so that the next check sees an empty default partition at once.
    cursor.execute("VACUUM events_other")
    note(cursor, "moved", month.name)


def _detach(cursor: Cursor, month: Month, note: Note) -> None:
    with transaction(cursor):
        detach(cursor, month)
        note(cursor, "detached", month.name)
