"""Named statements: how one is run and prepared, and how database errors are translated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

import psycopg2
from prometheus_client import Histogram

from service.database.pool.connection import Connection
from service.errors import DatabaseUnavailable
from service.observability.metrics import catalogue as metrics

Params = Sequence[Any] | Mapping[str, Any]
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with psycopg2's placeholders; metrics, logs and PREPARE use the name."""

    name: str
    sql: str


# Deadlocks and serialization failures: the statement had no effect.
SERIALIZATION = frozenset({"40001", "40P01"})
# No retry can write the values of this row: a constraint or a type refuses them, or psycopg2
# cannot encode them (NUL, half a character).
UNWRITABLE = (psycopg2.IntegrityError, psycopg2.DataError, ValueError)
# A prepared statement is missing, or is there already: another session than the one that prepared it.
LOST_STATEMENT = frozenset({"26000", "42P05"})
# The server stops, starts, or became a standby: all other connections are affected too.
FAILOVER = frozenset({"57P01", "57P02", "57P03", "25006"})


def execute(
    connection: Connection, statement: Statement, params: Params, *, prepared: bool
) -> list[Row]:
    """All rows of one statement; without params its SQL is sent unchanged, `%` included."""
    cursor = connection.cursor()
    try:
        sql = _prepared(connection, cursor, statement, params) if prepared else statement.sql
        cursor.execute(sql, params or None)
        return cursor.fetchall() if cursor.description is not None else []
    finally:
        cursor.close()


def _prepared(connection: Connection, cursor: Any, statement: Statement, params: Params) -> str:
    """The EXECUTE of the statement, which the connection prepares at its first use."""
    sql = connection.prepared.get(statement.sql)
    if sql is None:
        sql = statement.sql
        if _PREPARABLE.match(sql):
            prepare, sql = prepared_form(statement, has_params=bool(params))
            cursor.execute(prepare)
        connection.prepared[statement.sql] = sql
    return sql


# PostgreSQL prepares these; a SET, a SHOW or a LOCK has no plan to keep.
_PREPARABLE = re.compile(r"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH|VALUES)\b")


_PLACEHOLDER = re.compile(
    r"%(?:\((?P<name>\w+)\)s|(?P<position>s)|(?P<percent>%))(?P<cast>::\w+(?:\[\])?)?"
)


@lru_cache(maxsize=512)
def prepared_form(statement: Statement, *, has_params: bool) -> tuple[str, str]:
    """The statement as (PREPARE with $1.., EXECUTE with psycopg2's placeholders)."""
    # Two texts under one name are two statements to the server.
    name = f'"{statement.name}_{crc32(statement.sql.encode()):08x}"'
    if not has_params:
        return f"PREPARE {name} AS {statement.sql}", f"EXECUTE {name}"
    names: list[str] = []
    arguments: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        cast = match["cast"] or ""
        if match["percent"]:
            return f"%{cast}"
        # A named parameter that is used twice is sent once.
        if match["position"] or match["name"] not in names:
            names.append(match["name"])
            # With its cast: psycopg2 writes a list as an array of texts.
            arguments.append(match[0])
        number = len(names) if match["position"] else names.index(match["name"]) + 1
        return f"${number}{cast}"

    sql = _PLACEHOLDER.sub(numbered, statement.sql)
    # Values without a placeholder are allowed, as psycopg2 allows them.
    listed = f" ({', '.join(arguments)})" if arguments else ""
    return f"PREPARE {name} AS {sql}", f"EXECUTE {name}{listed}"


# No payment waits for these: a histogram for each would be half of all series.
FAMILIES = frozenset(
    {
        "key",
        "invariant",
        "rehearsal",
        "endpoint",
        "audit",
        "doctor",
        "due",
        "retain",
        "erase",
        "late",
        "list",
    }
)


@lru_cache(maxsize=512)
def statement_duration(name: str) -> Histogram:
    """The duration's histogram with its label bound; some statements share their family's."""
    family = name.partition("_")[0]
    return metrics.db_statement_duration_seconds.labels(family if family in FAMILIES else name)


def is_stale_plan(error: BaseException | None) -> bool:
    """True when the prepared plan is lost or outdated; a new connection cures it."""
    if not isinstance(error, psycopg2.Error):
        return False
    if error.pgcode == "0A000":
        return "cached plan" in str(error)
    return error.pgcode in LOST_STATEMENT


def refused_by(error: Exception) -> str:
    """The constraint that refused a row, else the error class; never the values."""
    diag = error.diag if isinstance(error, psycopg2.Error) else None
    return (diag and (diag.constraint_name or diag.sqlstate)) or type(error).__name__


def is_out_of_step(error: psycopg2.Error) -> bool:
    """True for an error from libpq alone, without a server code: the connection is lost."""
    return type(error) is psycopg2.DatabaseError and error.pgcode is None


def is_sign_of_failover(error: psycopg2.Error, *, is_closed: bool) -> bool:
    """True when the pool's other connections are most likely dead too."""
    code = error.pgcode or ""
    return is_closed or code in FAILOVER or code.startswith("08")


def is_collision(error: BaseException | None) -> bool:
    """True when the statement certainly had no effect, and would most likely succeed now."""
    return isinstance(error, psycopg2.Error) and error.pgcode in SERIALIZATION


def translate_error(
    error: psycopg2.Error, *, is_closed: bool, has_timed_out: bool, is_stale: bool
) -> Exception:
    """DatabaseUnavailable if a retry may succeed; constraint violations and bugs unchanged."""
    if has_timed_out:
        return DatabaseUnavailable("The database did not answer in time.", in_doubt=True)
    if is_closed:
        return DatabaseUnavailable("The connection to the database was lost.", in_doubt=True)
    if is_stale or isinstance(error, psycopg2.OperationalError) or error.pgcode in FAILOVER:
        return DatabaseUnavailable(_reason(error.pgcode or ""))
    return error


def _reason(code: str) -> str:
    if code == "57014":
        return "The database took too long over a statement."
    if code == "25006":
        return "The database is read-only: it is failing over."
    if code in SERIALIZATION or code == "55P03":
        return "The database is too contended for this right now."
    return "The database cannot serve this right now."


_CLASSES = {
    "08": "connection",
    "23": "integrity",
    "40": "serialization",
    "55": "timeout",
}


def count_error(error: psycopg2.Error, *, is_closed: bool, has_timed_out: bool) -> None:
    """Count the error in `db_errors_total` under one word of the closed set."""
    code = error.pgcode or ""
    if has_timed_out or code == "57014":
        word = "timeout"
    elif code.startswith("57P"):
        word = "shutdown"
    elif code == "25006":
        word = "read_only"
    elif is_closed:
        word = "connection"
    else:
        word = _CLASSES.get(code[:2], "other")
    metrics.db_errors_total.labels(word).inc()
