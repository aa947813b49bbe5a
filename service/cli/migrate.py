"""Bring the database to this version's schema, and give the service's role its rights.

Connects as MIGRATE_DATABASE_URL (the owner, not through pgbouncer), else DATABASE_URL. Safe to run
from several places at once. With HOLDFAST_BOOTSTRAP_API_KEY set it also makes the first API key.

example:
  MIGRATE_DATABASE_URL=postgresql://owner@.. DATABASE_URL=postgresql://app@.. \\
    python -m service migrate
"""

from __future__ import annotations

import argparse

from service.settings import Settings, SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pending", action="store_true", help="only tell what is missing; status 1 if anything is"
    )


def run(arguments: argparse.Namespace) -> int:
    from service.supervisor.schema import missing, prepare

    settings = Settings.from_environ()
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set: migrate needs a database of yours.")
    if arguments.pending:
        names = missing(settings)
        print("\n".join(names) or "Nothing is missing.")
        return 1 if names else 0
    applied = prepare(settings)
    print("\n".join(f"Applied {name}." for name in applied) or "Nothing was missing.")
    return 0
