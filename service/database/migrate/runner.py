"""Bring a database to this version's schema: plain SQL files, each applied once, in order.

Run it with the owner's connection, straight to PostgreSQL, never through pgbouncer. Several may
start at once: each version's row is inserted before its statements run, so the second waits for
the first and then finds the work done. It also makes the coming months' partitions of `events`
and gives the service's role exactly the rights it needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from time import monotonic, sleep
from typing import Any, TypeVar

import psycopg2
import psycopg2.errors
import psycopg2.extensions
from psycopg2 import sql

from service.database.direct import cursor_to
from service.database.migrate.partitions import create, make_partitions, today
from service.database.migrate.requirements import (
    Unsuitable,
    applied_versions,
    home_schema,
    require_encoding,
    require_own_tables,
)
from service.database.migrate.role_settings import set_on_role

log = logging.getLogger(__name__)
T = TypeVar("T")

# While we wait for a lock, all later readers wait behind us: give up soon, try again later.
LOCK_TIMEOUT_MS = 2000
# Long enough for a colleague's migration, short enough that a deploy's own patience outlasts it.
PATIENCE_S = 60.0
# After this time the next migrate restarts a build outside a transaction whose process died.
LEASE_S = 30.0
# A file that begins with this holds repeatable statements, such as CREATE INDEX CONCURRENTLY behind
# its DROP INDEX; each runs by itself and ends with a semicolon at the end of its line.
OUTSIDE_TRANSACTION = "-- outside a transaction"

# The rights of the service's role. History is never changed, so events and the audit log have
# neither UPDATE nor DELETE.
DEFAULT_RIGHTS = "SELECT, INSERT, UPDATE"
RIGHTS = {
    "events": "SELECT, INSERT",
    "audit_log": "SELECT, INSERT",
    "idempotency_keys": "SELECT, INSERT, UPDATE, DELETE",
    "late_checks": "SELECT, INSERT, UPDATE, DELETE",
    "unread_objects": "SELECT, INSERT, UPDATE, DELETE",
    "webhook_endpoints": "SELECT, INSERT, UPDATE, DELETE",
    "webhook_outbox": "SELECT, INSERT, UPDATE, DELETE",
    # A background job deletes rows that are past their retention.
    "webhook_inbox": "SELECT, INSERT, UPDATE, DELETE",
    "rehearsals": "SELECT, INSERT, UPDATE, DELETE",
    "rehearsal_audit": "SELECT, INSERT",
    "schema_migrations": "SELECT",
}
# A transaction takes milliseconds: an idle one belongs to a stalled process that locks rows.
IDLE_IN_TRANSACTION_TIMEOUT_MS = 5000
# Below the statement timeout, so that the error names the lock.
APP_LOCK_TIMEOUT_MS = 1000

# For readiness: one cheap statement through the pool, given to `applied_version`.
APPLIED_SQL = "SELECT version FROM schema_migrations WHERE applied_at IS NOT NULL"


_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)


class MigrationError(Exception):
    """The schema could not be updated; the message gives the reason and the remedy."""


class _BuiltElsewhere(Exception):
    """Another migrate holds this version's lease, on an engine without working advisory locks."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `0001_payments.sql` is version 1."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def in_transaction(self) -> bool:
        return not self.text.startswith(OUTSIDE_TRANSACTION)

    @property
    def statements(self) -> list[str]:
        """The texts to send: the whole file, or each statement outside of a transaction."""
        if self.in_transaction:
            return [self.text]
        parts = re.split(r";[ \t]*(?:\n|$)", self.text)
        return [part for part in parts if _COMMENT.sub("", part).strip()]


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations of this version of the service, in order."""
    folder = files("service.database").joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple(
        Migration(int(name.split("_")[0]), name, folder.joinpath(name).read_text(encoding="utf-8"))
        for name in names
    )


def latest_version() -> int:
    """The version that this code needs."""
    return migrations()[-1].version


def applied_version(rows: Sequence[tuple[int]]) -> int:
    """The last version without a gap before it, from the rows of APPLIED_SQL."""
    applied = {version for (version,) in rows}
    done = 0
    for migration in migrations():
        if migration.version not in applied:
            break
        done = migration.version
    return done


def pending(dsn: str) -> list[str]:
    """Names of the migrations that the database still lacks; raises MigrationError."""
    with owner_session(dsn) as cursor:
        try:
            applied = applied_versions(cursor, home_schema(cursor))
        except Unsuitable as error:
            raise MigrationError(str(error)) from error
    return [migration.name for migration in migrations() if migration.version not in applied]


# Records an applied migration, in its transaction: called with the cursor and the file's name.
Note = Callable[[Any, str], None]


def migrate(
    owner_dsn: str,
    *,
    app_dsn: str | None = None,
    app_statement_timeout_ms: int = 2000,
    note: Note | None = None,
) -> list[str]:
    """Apply what is missing, in order; the names of what this call applied.

    `note` is called for each one in its transaction, once there is an audit log. The role of
    `app_dsn`, when it is not the owner, receives its rights and its time limits.
    Raises MigrationError, or Unreachable when the database does not answer.
    """
    give_up_at_s = monotonic() + PATIENCE_S
    applied = []
    with owner_session(owner_dsn) as cursor, one_at_a_time(cursor, give_up_at_s):
        schema = _require_suitable(cursor)
        again_after_lock_timeout(give_up_at_s, lambda: create(cursor, _TABLE))
        for migration in migrations():
            if again_after_lock_timeout(give_up_at_s, partial(_apply, cursor, migration, note)):
                log.info("migration.applied", extra={"migration": migration.name})
                applied.append(migration.name)
        again_after_lock_timeout(give_up_at_s, lambda: make_partitions(cursor, today()))
        role = psycopg2.extensions.parse_dsn(app_dsn).get("user") if app_dsn else None
        if role:
            again_after_lock_timeout(give_up_at_s, lambda: _grant(cursor, role, schema))
            _limit(cursor, role, app_statement_timeout_ms)
            set_on_role(cursor, role, schema)
    return applied


def _require_suitable(cursor: psycopg2.extensions.cursor) -> str:
    """The schema that our tables are in or will be; raises MigrationError, with nothing changed."""
    files = [(one.version, one.text) for one in migrations() if one.in_transaction]
    try:
        require_encoding(str(cursor.connection.get_parameter_status("server_encoding")))
        schema = home_schema(cursor)
        require_own_tables(cursor, schema, files)
    except Unsuitable as error:
        raise MigrationError(str(error)) from error
    return schema


_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version    integer PRIMARY KEY,
        name       text NOT NULL,
        checksum   text NOT NULL,
        started_at timestamptz NOT NULL DEFAULT now(),
        applied_at timestamptz
    )
"""


def _apply(
    cursor: psycopg2.extensions.cursor, migration: Migration, note: Note | None = None
) -> bool:
    """Apply one migration unless it is applied; whether it was."""
    if not migration.in_transaction:
        return _apply_outside_transaction(cursor, migration, note)
    with transaction(cursor):
        _claim(cursor, migration)
        if _is_applied(cursor, migration):
            return False
        cursor.execute(migration.text)
        _note_applied(cursor, migration, note)
        return True


def _apply_outside_transaction(
    cursor: psycopg2.extensions.cursor, migration: Migration, note: Note | None
) -> bool:
    """The same without a lasting row lock: the row's time is the lease of the building process."""
    # An earlier attempt may have been interrupted: the statements are repeatable.
    cursor.execute(
        "INSERT INTO schema_migrations AS m (version, name, checksum) VALUES (%s, %s, %s)"
        " ON CONFLICT (version) DO UPDATE SET started_at = now()"
        " WHERE m.applied_at IS NULL AND m.started_at < now() - %s * interval '1 second'",
        (migration.version, migration.name, migration.checksum, LEASE_S),
    )
    is_ours = cursor.rowcount == 1
    if _is_applied(cursor, migration):
        return False
    if not is_ours:
        raise _BuiltElsewhere(f"{migration.name} is being applied by another migrate")
    try:
        for statement in migration.statements:
            cursor.execute(statement)
    except BaseException:
        with contextlib.suppress(psycopg2.Error):
            cursor.execute(
                "UPDATE schema_migrations SET started_at = '-infinity' WHERE version = %s",
                (migration.version,),
            )
        raise
    with transaction(cursor):
        _note_applied(cursor, migration, note)
    return True


def _note_applied(
    cursor: psycopg2.extensions.cursor, migration: Migration, note: Note | None
) -> None:
    cursor.execute(
        "UPDATE schema_migrations SET applied_at = now() WHERE version = %s", (migration.version,)
    )
    if note is not None:
        cursor.execute("SELECT to_regclass('audit_log') IS NOT NULL")
        if _value(cursor):
            note(cursor, migration.name)


def _claim(cursor: psycopg2.extensions.cursor, migration: Migration) -> None:
    """Insert the version's row, which is the fence: a second process waits here for the first."""
    cursor.execute(
        "INSERT INTO schema_migrations (version, name, checksum) VALUES (%s, %s, %s)"
        " ON CONFLICT (version) DO NOTHING",
        (migration.version, migration.name, migration.checksum),
    )


def _is_applied(cursor: psycopg2.extensions.cursor, migration: Migration) -> bool:
    cursor.execute(
        "SELECT checksum, applied_at IS NOT NULL FROM schema_migrations WHERE version = %s",
        (migration.version,),
    )
    ((checksum, is_applied),) = cursor.fetchall()
    if checksum != migration.checksum:
        raise MigrationError(
            f"{migration.name} is not the file that was applied: restore it, "
            "and put the change into a new migration."
        )
    return bool(is_applied)


def _grant(cursor: psycopg2.extensions.cursor, role: str, schema: str) -> None:
    """Give the service's role its rights on each table, and take all others away."""
    cursor.execute("SELECT current_user = %s", (role,))
    if _value(cursor):
        return
    cursor.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        # The service reaches partitions through their parent, with its rights.
        " WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        " ORDER BY c.relname",
        (schema,),
    )
    tables = [name for (name,) in cursor.fetchall()]
    role_name = sql.Identifier(role)
    with transaction(cursor):
        try:
            cursor.execute(
                sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), role_name)
            )
        except psycopg2.errors.UndefinedObject as error:
            raise MigrationError(
                f"The role {role} of DATABASE_URL does not exist: create it first, "
                "LOGIN and nothing else."
            ) from error
        for table in tables:
            name = sql.Identifier(table)
            rights = sql.SQL(RIGHTS.get(table, DEFAULT_RIGHTS))
            cursor.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(name, role_name))
            cursor.execute(sql.SQL("GRANT {} ON {} TO {}").format(rights, name, role_name))


def _limit(cursor: psycopg2.extensions.cursor, role: str, statement_timeout_ms: int) -> None:
    """Set the role's time limits on the role itself, so that pgbouncer cannot lose them."""
    limits = {
        "statement_timeout": f"{statement_timeout_ms}ms",
        "lock_timeout": f"{min(APP_LOCK_TIMEOUT_MS, statement_timeout_ms)}ms",
        "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_MS}ms",
    }
    cursor.execute("SELECT coalesce(rolconfig, '{}') FROM pg_roles WHERE rolname = %s", (role,))
    found = set(_value(cursor))
    for name, value in limits.items():
        if f"{name}={value}" in found:
            continue
        try:
            cursor.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(
                    sql.Identifier(role), sql.Identifier(name), sql.Literal(value)
                )
            )
        except psycopg2.errors.InsufficientPrivilege:
            # Managed databases reserve this for their administrator; deadlines work without it.
            log.warning("migration.limits_not_set", extra={"role": role, "setting": name})
            return


@contextlib.contextmanager
def owner_session(dsn: str) -> Iterator[psycopg2.extensions.cursor]:
    """A separate connection, in autocommit, with a migration's time limits."""
    with cursor_to(dsn) as cursor:
        cursor.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
        # The role's own limit is for payments; an index may take an hour.
        cursor.execute("SET statement_timeout = 0")
        cursor.execute("SET timezone = 'UTC'")
        cursor.execute("SET default_transaction_read_only = off")
        cursor.execute("SET default_transaction_isolation = 'read committed'")
        # All files and statements name their tables without a schema.
        schema = sql.Identifier(home_schema(cursor))
        cursor.execute(sql.SQL("SET search_path = {}").format(schema))
        yield cursor


@contextlib.contextmanager
def transaction(cursor: psycopg2.extensions.cursor) -> Iterator[None]:
    cursor.execute("BEGIN")
    try:
        yield
    except BaseException:
        # A lost connection has rolled back already, and the first error is the one to show.
        with contextlib.suppress(psycopg2.Error):
            cursor.execute("ROLLBACK")
        raise
    cursor.execute("COMMIT")


@contextlib.contextmanager
def one_at_a_time(cursor: psycopg2.extensions.cursor, give_up_at_s: float) -> Iterator[None]:
    """Allow one migrate at a time; on an engine without such locks the version rows guard."""
    # Polled: a session that blocks in pg_advisory_lock has a snapshot that CREATE INDEX
    # CONCURRENTLY waits for, and the two would wait for each other.
    while True:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (_ADVISORY_LOCK,))
        if _value(cursor):
            break
        if monotonic() > give_up_at_s:
            raise MigrationError(f"Another migration has been running for {PATIENCE_S:.0f} s.")
        sleep(0.05)
    try:
        yield
    finally:
        with contextlib.suppress(psycopg2.Error):
            cursor.execute("SELECT pg_advisory_unlock(%s)", (_ADVISORY_LOCK,))


# Any number that nothing else in the database uses: the letters "holdfast".
_ADVISORY_LOCK = int.from_bytes(b"holdfast", "big")


def again_after_lock_timeout(give_up_at_s: float, step: Callable[[], T]) -> T:
    while True:
        try:
            return step()
        except (psycopg2.errors.LockNotAvailable, _BuiltElsewhere) as error:
            if monotonic() > give_up_at_s:
                raise MigrationError(
                    f"A table stayed locked for {PATIENCE_S:.0f} s: {str(error).strip()}."
                ) from error
            # Give the readers that queued behind us time to finish.
            sleep(0.5)


def _value(cursor: psycopg2.extensions.cursor) -> Any:
    ((value,),) = cursor.fetchall()
    return value
