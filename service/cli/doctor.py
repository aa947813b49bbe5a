"""Check settings, database, migrations, provider, pools, clock and backlog, and suggest repairs.

Status 1 when a check fails; warnings alone give status 0. The checks change no data and no money.

example:
  python -m service doctor
  python -m service doctor --json | jq '.[] | select(.state != "pass")'
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from service.cli import doctor_checks, local
from service.cli.table import print_json, print_rows
from service.observability.checks import CheckResult
from service.settings import SettingsError

# A check's name with its result.
Row = tuple[str, CheckResult]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    local.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    rows = [
        {"check": name, "state": result.status, "found": result.output, "todo": result.todo}
        for name, result in _examine()
    ]
    if arguments.json:
        print_json(rows)
    else:
        print_rows(rows, ("check", "state", "found"))
        for row in rows:
            if row["todo"]:
                print(f"\n{row['check']}: {row['todo']}")
    return 1 if any(row["state"] == "fail" for row in rows) else 0


def _examine() -> Iterator[Row]:
    """Run the checks in order; a failed one ends them where the later ones need what it checks."""
    try:
        settings = local.settings_here()
    except SettingsError as error:
        todo = "Correct the setting; .env.example describes each one."
        yield "settings", CheckResult("fail", str(error), todo=todo)
        return
    for check in doctor_checks.of_settings(settings):
        yield check.name, check.probe()
    if settings.database_url is None:
        found = "not configured, and no local run was found"
        todo = "Set DATABASE_URL, or start a local run: python -m service."
        yield "database", CheckResult("fail", found, todo=todo)
        return
    try:
        with local.database(settings) as pool:
            for check in doctor_checks.of_database(pool, settings):
                result = check.probe()
                yield check.name, result
                if check.name == doctor_checks.MIGRATIONS and result.status != "pass":
                    return
    except SystemExit as refused:
        todo = "Is it running, and does DATABASE_URL name it? All other checks need it."
        yield "database", CheckResult("fail", str(refused), todo=todo)
