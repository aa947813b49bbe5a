"""What must be true of the database before anything serves from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import psycopg2
import psycopg2.extensions

from service.settings import Settings, SettingsError

# What the ops plane and the reconciler open; a test compares them with the map of the system.
OPS_POOL_SIZE = 2
RECONCILER_POOL_SIZE = 4


def prepare(settings: Settings) -> list[str]:
    """Migrate, and make the first API key when one is given; the names of what was applied."""
    from service.database.migrate import MigrationError, migrate

    app_dsn = settings.database_url or ""
    owner_dsn = settings.migrate_database_url or app_dsn
    try:
        applied = migrate(
            owner_dsn,
            app_dsn=app_dsn,
            app_statement_timeout_ms=settings.db_statement_timeout_ms,
        )
    except (MigrationError, psycopg2.OperationalError) as error:
        raise SettingsError(f"The database could not be migrated: {str(error).strip()}") from error
    if settings.bootstrap_api_key is not None:
        _bootstrap(owner_dsn, settings.bootstrap_api_key)
    return applied


def _bootstrap(dsn: str, api_key: str) -> None:
    # This process serves no metrics: it must not leave files among those that are served.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    from service.payments.merchants import bootstrap

    mode: Literal["test", "live"] = "live" if api_key.startswith("hf_live_") else "test"
    with _connection(dsn) as connection:
        try:
            bootstrap(connection, api_key, mode)
        except ValueError as error:
            raise SettingsError(f"HOLDFAST_BOOTSTRAP_API_KEY is {error}.") from error


def require_headroom(settings: Settings) -> None:
    """Refuse to start when all pools together would not fit the server's connections."""
    if settings.migrate_database_url and _is_pooler(settings):
        return
    with _connection(settings.database_url or "") as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(setting::int * CASE name WHEN 'max_connections' THEN 1 ELSE -1 END)"
            " FROM pg_settings WHERE name IN"
            " ('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
        )
        ((available,),) = cursor.fetchall()
    workers, size = settings.web_workers, settings.db_pool_size
    needed = workers * size + OPS_POOL_SIZE + RECONCILER_POOL_SIZE
    if needed > available:
        raise SettingsError(
            f"{workers} workers x {size} connections, {OPS_POOL_SIZE} for the ops plane and"
            f" {RECONCILER_POOL_SIZE} for the reconciler are {needed}, but PostgreSQL gives"
            f" {available}: lower HOLDFAST_DB_POOL_SIZE or HOLDFAST_WEB_WORKERS,"
            " or raise max_connections."
        )


def _is_pooler(settings: Settings) -> bool:
    """Whether payments go another way than migrations: then pgbouncer bounds the connections."""
    app, owner = (
        psycopg2.extensions.parse_dsn(dsn or "")
        for dsn in (settings.database_url, settings.migrate_database_url)
    )
    return any(app.get(part) != owner.get(part) for part in ("host", "port"))


@contextlib.contextmanager
def _connection(dsn: str) -> Iterator[psycopg2.extensions.connection]:
    try:
        connection = psycopg2.connect(dsn, connect_timeout=5)
    except psycopg2.OperationalError as error:
        raise SettingsError(f"The database cannot be reached: {str(error).strip()}") from error
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()
