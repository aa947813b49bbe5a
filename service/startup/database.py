"""Checks of the database before any process serves from it, and the migration of a local stack."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

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
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from service.payments.audit import Actor

# The pool size of the ops plane and the reconciler; a test compares it with the system map.
OPS_POOL_SIZE = 2
RECONCILER_POOL_SIZE = 4


def prepare(settings: Settings) -> list[str]:
    """Migrate, and create the bootstrap API key when one is configured; returns the applied names."""
    app_dsn = settings.database_url or ""
    owner_dsn = settings.migrate_database_url or app_dsn
    # This process serves no metrics, so it must leave no metric files beside the served ones.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    from service.payments import audit

    actor = audit.cli_actor()

    def note(cursor: Any, name: str) -> None:
        audit.write_with_cursor(cursor, actor, audit.Entry("schema.migrated", target=name))

    try:
        applied = migrate(
            owner_dsn,
            app_dsn=app_dsn,
            app_statement_timeout_ms=settings.db_statement_timeout_ms,
            note=note,
        )
        if settings.bootstrap_api_key is not None:
            _bootstrap(owner_dsn, settings.bootstrap_api_key, actor)
    except Unreachable as error:
        raise SettingsError(f"The database cannot be reached: {error}") from error
    except MigrationError as error:
        raise SettingsError(f"The database could not be migrated: {error}") from error
    except DatabaseError as error:
        # For example a missing right of the owner: show the server's message without our stack.
        said = (error.diag.message_primary or str(error)).strip()
        raise SettingsError(f"The database could not be migrated: {said}.") from error
    return applied


def missing(settings: Settings) -> list[str]:
    """The names of the migrations that the database lacks, read as its owner."""
    try:
        return pending(settings.migrate_database_url or settings.database_url or "")
    except Unreachable as error:
        raise SettingsError(f"The database cannot be reached: {error}") from error
    except MigrationError as error:
        raise SettingsError(str(error)) from error
    except DatabaseError as error:
        said = (error.diag.message_primary or str(error)).strip()
        raise SettingsError(f"The database cannot be asked: {said}.") from error


def require_suitable(settings: Settings) -> None:
    """Refuse to serve from a database with an encoding that cannot hold every text."""
    try:
        require_encoding(server_encoding(settings.database_url or ""))
    except Unreachable as error:
        raise SettingsError(f"The database cannot be reached: {error}") from error
    except Unsuitable as error:
        raise SettingsError(str(error)) from error


def require_mode(settings: Settings) -> None:
    """Refuse to send test payments with a live key, and the reverse."""
    # This process serves no metrics yet, so it must leave no metric files beside the served ones.
    kept = os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    from service.payments.modes import ModeConflict, claim_mode

    if kept is not None:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = kept
    if settings.provider_mode is None:
        return
    try:
        claim_mode(settings.database_url or "", settings.provider_mode)
    except Unreachable as error:
        raise SettingsError(f"The database cannot be reached: {error}") from error
    except ModeConflict as error:
        raise SettingsError(str(error)) from error


def _bootstrap(dsn: str, api_key: str, actor: Actor) -> None:
    from service.payments.merchants import bootstrap

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
    try:
        has_key = has_api_key(settings.database_url or "")
    except Unreachable as error:
        raise SettingsError(f"The database cannot be reached: {error}") from error
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
    try:
        available = connections_available(app_dsn)
    except Unreachable as error:
        raise SettingsError(f"The database cannot be reached: {error}") from error
    workers, size = settings.web_workers, settings.db_pool_size
    needed = workers * size + OPS_POOL_SIZE + RECONCILER_POOL_SIZE
    if needed > available:
        raise SettingsError(
            f"{workers} workers x {size} connections, {OPS_POOL_SIZE} for the ops plane and"
            f" {RECONCILER_POOL_SIZE} for the reconciler are {needed}, but PostgreSQL gives"
            f" {available}: lower HOLDFAST_DB_POOL_SIZE or HOLDFAST_WEB_WORKERS,"
            " or raise max_connections."
        )
