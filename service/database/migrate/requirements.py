"""The requirements before a migration or a start: the encoding, and no other program's tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import psycopg2.extensions
from psycopg2 import sql

# Callers' names and references are of any language, and a lost letter is a wrong name.
ENCODING = "UTF8"
# One cheap statement for readiness: the encoding, and whether our tables are found by their names.
SUITABLE_SQL = (
    "SELECT current_setting('server_encoding'), to_regclass('schema_migrations') IS NOT NULL"
)

_CREATED = re.compile(
    r"^\s*CREATE (?:UNIQUE )?(?:TABLE|INDEX) (?:IF NOT EXISTS )?(\w+)", re.MULTILINE | re.IGNORECASE
)
_OUR_COLUMNS = {"version", "name", "checksum", "started_at", "applied_at"}


class Unsuitable(Exception):
    """This database cannot hold the schema; the message is one sentence with the reason."""


def names_created(texts: Iterable[str]) -> set[str]:
    """The tables and indexes that SQL files create."""
    return {name.lower() for text in texts for name in _CREATED.findall(text)}


def require_encoding(encoding: str) -> None:
    """Raise Unsuitable for a server encoding that cannot hold every text."""
    if encoding != ENCODING:
        raise Unsuitable(
            f"The database is encoded in {encoding}, which cannot hold every name: create one with"
            f" ENCODING '{ENCODING}' TEMPLATE template0 and use that."
        )


def home_schema(cursor: psycopg2.extensions.cursor) -> str:
    """The schema that has our tables, else the one that would get them."""
    cursor.execute(
        """
        SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relname = 'schema_migrations' AND %(columns)s <@ array(
            SELECT attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)
        -- One that the search_path finds goes first; a changed search_path makes no second schema.
        ORDER BY c.oid <> coalesce(to_regclass('schema_migrations')::oid, 0), n.nspname
        """,
        {"columns": sorted(_OUR_COLUMNS)},
    )
    homes = [str(name) for (name,) in cursor.fetchall()]
    if homes:
        return homes[0]
    cursor.execute("SELECT coalesce(current_schema()::text, 'public')")
    return str(cursor.fetchall()[0][0])


def require_own_tables(
    cursor: psycopg2.extensions.cursor,
    schema: str,
    files: Sequence[tuple[int, str]],
) -> None:
    """Raise Unsuitable when another program's table or view has one of our names.

    `files` are (version, text) of the migrations that run in one transaction each.
    """
    # Names first, then versions: tables that another migrate commits in between count as ours.
    found = _relations(cursor, schema)
    applied = applied_versions(cursor, schema)
    ours = names_created(text for version, text in files if version in applied)
    new = names_created(text for version, text in files if version not in applied)
    foreign = sorted((new - ours) & found)
    if foreign:
        names = ", ".join(f"`{name}`" for name in foreign[:3])
        raise Unsuitable(
            f"The schema {schema} has {names} of another program already, and nothing was changed:"
            " give Holdfast a database of its own."
        )


def _relations(cursor: psycopg2.extensions.cursor, schema: str) -> set[str]:
    # Tables, views, indexes, sequences and composite types share their names; so do other types.
    cursor.execute(
        "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %(schema)s UNION ALL"
        " SELECT typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
        " WHERE n.nspname = %(schema)s",
        {"schema": schema},
    )
    return {name for (name,) in cursor.fetchall()}


def applied_versions(cursor: psycopg2.extensions.cursor, schema: str) -> set[int]:
    """The applied versions in schema_migrations; raises Unsuitable for another program's table."""
    cursor.execute(
        "SELECT attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = 'schema_migrations' AND a.attnum > 0",
        (schema,),
    )
    columns = {name for (name,) in cursor.fetchall()}
    if not columns:
        return set()
    if not columns >= _OUR_COLUMNS:
        raise Unsuitable(
            f"The schema {schema} has a table `schema_migrations` of another program, and nothing"
            " was changed: give Holdfast a database of its own."
        )
    cursor.execute(
        sql.SQL("SELECT version FROM {}.schema_migrations WHERE applied_at IS NOT NULL").format(
            sql.Identifier(schema)
        )
    )
    return {version for (version,) in cursor.fetchall()}
