"""Checks of the database before any process serves from it, and the migration of a local stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from service.database.direct import (
    DatabaseError,
    Unreachable,
    connection_to,
    connections_available,
    has_api_key,
    is_behind_pooler,
    server_encoding,
)
from service.database.migrate.requirements import Unsuitable, require_encoding
from service.database.migrate.runner import MigrationError, migrate, pending
from service.payments import audit
from service.payments.merchants import bootstrap
from service.payments.modes import ModeConflict, claim_mode
from service.settings import Settings, SettingsError

# The pool size of the ops plane and the reconciler; a test compares it with the system map.
OPS_POOL_SIZE = 2
RECONCILER_POOL_SIZE = 4


def require_all(settings: Settings) -> None:
    """Everything that a plane requires of its database before it serves."""
    require_suitable(settings)
    require_headroom(settings)
    require_api_key(settings)
    require_mode(settings)


def prepare(settings: Settings) -> list[str]:
    """Migrate, and create the bootstrap API key when one is configured; returns the applied names."""
    app_dsn = settings.database_url or ""
    owner_dsn = settings.migrate_database_url or app_dsn
    actor = audit.cli_actor()

    def note(cursor: Any, name: str) -> None:
        audit.write_with_cursor(cursor, actor, audit.Entry("schema.migrated", target=name))

    with _reachable():
        try:
            applied = migrate(
                owner_dsn,
                app_dsn=app_dsn,
                app_statement_timeout_ms=settings.db_statement_timeout_ms,
                note=note,
            )
            if settings.bootstrap_api_key is not None:
                _bootstrap(owner_dsn, settings.bootstrap_api_key, actor)
        except MigrationError as error:
            raise SettingsError(f"The database could not be migrated: {error}") from error
        except DatabaseError as error:
            # For example a missing right of the owner: show the server's message without our stack.
            raise SettingsError(f"The database could not be migrated: {_text(error)}.") from error
    return applied


def missing(settings: Settings) -> list[str]:
    """The names of the migrations that the database lacks, read as its owner."""
    with _reachable():
        try:
            return pending(settings.migrate_database_url or settings.database_url or "")
        except MigrationError as error:
            raise SettingsError(str(error)) from error
        except DatabaseError as error:
            raise SettingsError(f"The database cannot be asked: {_text(error)}.") from error


def require_suitable(settings: Settings) -> None:
    """Refuse to serve from a database with an encoding that cannot hold every text."""
    with _reachable():
        try:
            require_encoding(server_encoding(settings.database_url or ""))
        except Unsuitable as error:
            raise SettingsError(str(error)) from error


def require_mode(settings: Settings) -> None:
    """Refuse to send test payments with a live key, and the reverse."""
    if settings.provider_mode is None:
        return
    with _reachable():
        try:
            claim_mode(settings.database_url or "", settings.provider_mode)
        except ModeConflict as error:
            raise SettingsError(str(error)) from error


def _bootstrap(dsn: str, api_key: str, actor: audit.Actor) -> None:
    mode: Literal["test", "live"] = "live" if api_key.startswith("hf_live_") else "test"
    with connection_to(dsn) as connection:
        try:
            bootstrap(connection, api_key, mode, actor)
        except ValueError as error:
            raise SettingsError(f"HOLDFAST_BOOTSTRAP_API_KEY is {error}.") from error


def require_api_key(settings: Settings) -> None:
    """Refuse to bind a non-loopback address before an API key exists."""
    if not settings.is_open_to_others:
        return
    with _reachable():
        has_key = has_api_key(settings.database_url or "")
    if not has_key:
        raise SettingsError(
            f"HOLDFAST_BIND={settings.bind} is open to other machines, but there is no API key yet:"
            " run `python -m service migrate` with HOLDFAST_BOOTSTRAP_API_KEY first."
        )


def require_headroom(settings: Settings) -> None:
    """Refuse to start when the pools of all processes exceed the server's connections."""
    app_dsn = settings.database_url or ""
    if is_behind_pooler(app_dsn, settings.migrate_database_url or app_dsn):
        return
    with _reachable():
        available = connections_available(app_dsn)
    workers, size = settings.web_workers, settings.db_pool_size
    needed = workers * size + OPS_POOL_SIZE + RECONCILER_POOL_SIZE
    if needed > available:
        raise SettingsError(
            f"{workers} workers x {size} connections, {OPS_POOL_SIZE} for the ops plane and"
            f" {RECONCILER_POOL_SIZE} for the reconciler are {needed}, but PostgreSQL gives"
            f" {available}: lower HOLDFAST_DB_POOL_SIZE or HOLDFAST_WEB_WORKERS,"
            " or raise max_connections."
        )


@contextmanager
def _reachable() -> Iterator[None]:
    """Turn a database that cannot be reached into an error of the settings, which name it."""
    try:
        yield
    except Unreachable as error:
        raise SettingsError(f"The database cannot be reached: {error}") from error


def _text(error: DatabaseError) -> str:
    return (error.diag.message_primary or str(error)).strip()
