"""Opens the database of a command: DATABASE_URL, or the local run's on this machine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from uuid import UUID

from service.database.pool.pool import ConnectionPool
from service.errors import HoldfastError, ValidationFailed
from service.payments.merchants import DEFAULT_MERCHANT_ID
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from service.settings import Settings, SettingsError
from service.web.http.bodies import refuse_unfit_text

# The wait of a person at a terminal.
TIMEOUT_S = 10.0


def settings_here() -> Settings:
    """The environment's settings; unset ones default to the local run's."""
    settings = Settings.from_environ()
    run_file = settings.home / "run.json"
    if settings.database_url is not None or not run_file.exists():
        return settings
    try:
        run = json.loads(run_file.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{run_file} cannot be read: {error}") from error
    settings = dataclasses.replace(settings, database_url=run["database_url"])
    if settings.stripe_api_base is None and run["sandbox_url"]:
        settings = dataclasses.replace(
            settings,
            stripe_api_base=run["sandbox_url"],
            stripe_api_key=settings.stripe_api_key or "sk_test_sandbox",
            provider_ca_file=Path(run["sandbox_ca"]),
        )
    return settings


@contextlib.contextmanager
def database(settings: Settings | None = None) -> Iterator[ConnectionPool]:
    """A pool with one connection; an error for callers of the service ends the command with its text."""
    settings = settings or settings_here()
    if settings.database_url is None:
        raise SettingsError(
            "No database: set DATABASE_URL, or start a local run (python -m service);"
            f" {settings.home / 'run.json'} then has its address."
        )
    pool = ConnectionPool(
        settings.database_url, size=1, wait_s=TIMEOUT_S, max_waiters=1, watchdog=Watchdog()
    )
    try:
        yield pool
    except HoldfastError as error:
        fail(error.detail)
    finally:
        pool.close()


def fit_text(text: str, name: str, *, longest: int) -> str:
    """The text, checked as over REST: short, without controls, half characters and card numbers."""
    if len(text) > longest:
        fail(f"The {name} is longer than {longest} characters.")
    try:
        refuse_unfit_text(text, name)
    except ValidationFailed as refused:
        fail(f"The {name} {refused.fields[0]['reason']}.")
    return text


def soon() -> Deadline:
    """The deadline of one step."""
    return Deadline.after(TIMEOUT_S)


def fail(message: str) -> NoReturn:
    """End the command with a message and the status 1."""
    raise SystemExit(message)


def add_merchant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--merchant", type=UUID, metavar="UUID", help="default: the first merchant")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def merchant_of(arguments: argparse.Namespace) -> UUID:
    """The named merchant, or the one that the first start creates."""
    merchant_id: UUID = arguments.merchant or DEFAULT_MERCHANT_ID
    return merchant_id
