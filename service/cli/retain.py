"""Create the event partitions of coming months, and detach expired ones. For cron.

Connects as MIGRATE_DATABASE_URL (the owner, not through pgbouncer), else DATABASE_URL. Rows in the
default partition move to a partition for their month. Detached months stay as tables: archive
them, then drop them. Months are detached only where HOLDFAST_KEEP_EVENTS_MONTHS is set.

Status 0: all done. 1: a lock or the database prevented the rest; run it again.

example:
  python -m service retain --dry-run
  15 3 * * *  MIGRATE_DATABASE_URL=postgresql://owner@.. python -m service retain
"""

from __future__ import annotations

import argparse

from service.cli import local
from service.database.direct import Unreachable
from service.database.migrate.partitions import today
from service.database.migrate.retain import maintain
from service.database.migrate.runner import MigrationError
from service.payments.audit import Entry, cli_actor, write_with_cursor
from service.settings import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only list the changes")


def run(arguments: argparse.Namespace) -> int:
    settings = local.settings_here()
    owner_dsn = settings.migrate_database_url or settings.database_url
    if owner_dsn is None:
        raise SettingsError("MIGRATE_DATABASE_URL is not set: retain needs the tables' owner.")
    try:
        acts = maintain(
            owner_dsn,
            today=today(),
            kept_months=settings.keep_events_months,
            dry_run=arguments.dry_run,
            note=lambda cursor, act, name: write_with_cursor(
                cursor, cli_actor(), Entry(f"partition.{act}", target=name)
            ),
        )
    except (MigrationError, Unreachable) as error:
        local.fail(str(error))
    print("\n".join(f"{act} {name}" for act, name in acts) or "Nothing was to be done.")
    return 0
