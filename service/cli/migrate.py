"""Migrate the database to this version's schema, and grant the service's role its rights.

Connects as MIGRATE_DATABASE_URL (the owner, not through pgbouncer), else DATABASE_URL. Safe to run
on several machines at once. With HOLDFAST_BOOTSTRAP_API_KEY set it also creates the first API key.

example:
  MIGRATE_DATABASE_URL=postgresql://owner@.. DATABASE_URL=postgresql://app@.. \\
    python -m service migrate
"""

from __future__ import annotations

import argparse

from service.settings import Settings, SettingsError
from service.startup.database import missing, prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pending",
        action="store_true",
        help="only list missing migrations; status 1 if there are any",
    )


def run(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environ()
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set: migrate needs an existing database.")
    if arguments.pending:
        names = missing(settings)
        print("\n".join(names) or "Nothing is missing.")
        return 1 if names else 0
    applied = prepare(settings)
    print("\n".join(f"Applied {name}." for name in applied) or "Nothing was missing.")
    return 0
