"""A separate connection, outside the pool, for work that is done once at a start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg2
import psycopg2.extensions

from service.database.environment import leave_environment
from service.database.pool.connection import settle

# The name under which starting programs catch the server's errors.
DatabaseError = psycopg2.Error

# No payment waits for it, but a person does.
CONNECT_TIMEOUT_S = 5


class Unreachable(Exception):
    """The database does not answer or refuses us; the message is the server's, safe to show."""


@contextlib.contextmanager
def connection_to(dsn: str) -> Iterator[psycopg2.extensions.connection]:
    """One connection in autocommit, closed at the end; raises Unreachable."""
    leave_environment(dsn)
    try:
        connection = psycopg2.connect(
            dsn,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="holdfast-start",
            client_encoding="UTF8",
        )
    except psycopg2.OperationalError as error:
        raise Unreachable(str(error).strip()) from error
    try:
        connection.autocommit = True
        settle(connection)
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def cursor_to(dsn: str) -> Iterator[psycopg2.extensions.cursor]:
    """A cursor on such a connection."""
    with connection_to(dsn) as connection, connection.cursor() as cursor:
        yield cursor


def connections_available(dsn: str) -> int:
    """How many connections ordinary roles may have on this server, all programs together."""
    with cursor_to(dsn) as cursor:
        cursor.execute(
            "SELECT sum(setting::int * CASE name WHEN 'max_connections' THEN 1 ELSE -1 END)"
            " FROM pg_settings WHERE name IN"
            " ('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
        )
        ((available,),) = cursor.fetchall()
    return int(available)


def server_encoding(dsn: str) -> str:
    """The encoding of the database, as the server reports it on connecting."""
    with connection_to(dsn) as connection:
        return str(connection.get_parameter_status("server_encoding"))


def has_api_key(dsn: str) -> bool:
    """Whether an API key exists that could be accepted; False also before the first migration."""
    with cursor_to(dsn) as cursor:
        cursor.execute("SELECT to_regclass('api_keys') IS NOT NULL")
        ((is_migrated,),) = cursor.fetchall()
        if not is_migrated:
            return False
        cursor.execute("SELECT EXISTS (SELECT 1 FROM api_keys WHERE revoked_at IS NULL)")
        ((has_key,),) = cursor.fetchall()
    return bool(has_key)


def is_behind_pooler(app_dsn: str, owner_dsn: str) -> bool:
    """Whether payments use another address than migrations: then a pgbouncer bounds connections."""
    app, owner = (psycopg2.extensions.parse_dsn(dsn) for dsn in (app_dsn, owner_dsn))
    return any(app.get(part) != owner.get(part) for part in ("host", "port"))
