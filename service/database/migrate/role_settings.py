"""Settings that our statements rely on, on the service's role in its database, safe from poolers.

A setting of the role in one database outranks those of the role, of the database and of the server:
odd defaults there have no effect. A pooler in transaction mode cannot keep a session's settings.
"""

from __future__ import annotations

import logging

import psycopg2.errors
import psycopg2.extensions
from psycopg2 import sql

log = logging.getLogger(__name__)

RELIED_ON = {
    # Claims are compare-and-set statements that read a row again if it changed while they waited.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    # When off, a backslash in a caller's text is syntax.
    "standard_conforming_strings": "on",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # Ages and times as float8 keep all their digits: a check of recovery compares them.
    "extra_float_digits": "1",
}
# A commit that is acknowledged must be on disk, and on the synchronous standby where there is one.
DURABLE = ("on", "remote_apply")


def set_on_role(cursor: psycopg2.extensions.cursor, role: str, schema: str) -> None:
    """Write missing settings; warn and continue if the owner may not: `doctor` checks too."""
    wanted = {**RELIED_ON, "search_path": schema}
    if _effective(cursor, role, "synchronous_commit") not in DURABLE:
        wanted["synchronous_commit"] = "on"
    cursor.execute("SELECT current_database()")
    ((database,),) = cursor.fetchall()
    found = _set_already(cursor, role)
    for name, value in wanted.items():
        # PostgreSQL stores the identifiers of a search_path quoted where necessary.
        if found.get(name.lower()) in (value, f'"{value}"'):
            continue
        try:
            cursor.execute(
                sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}").format(
                    sql.Identifier(role),
                    sql.Identifier(database),
                    sql.Identifier(name),
                    sql.Literal(value),
                )
            )
        except psycopg2.errors.InsufficientPrivilege:
            # Managed databases reserve this for their administrator.
            log.warning("migration.settings_not_set", extra={"role": role, "setting": name})
            return


def _set_already(cursor: psycopg2.extensions.cursor, role: str) -> dict[str, str]:
    cursor.execute(
        "SELECT unnest(setconfig) FROM pg_db_role_setting"
        " WHERE setrole = (SELECT oid FROM pg_roles WHERE rolname = %s)"
        " AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())",
        (role,),
    )
    entries = (str(entry).partition("=") for (entry,) in cursor.fetchall())
    return {name.lower(): value for name, _, value in entries}


def _effective(cursor: psycopg2.extensions.cursor, role: str, name: str) -> str:
    """The initial settings of the role's sessions, as far as another role can see them."""
    cursor.execute(
        """
        SELECT split_part(entry, '=', 2) FROM pg_db_role_setting s, unnest(s.setconfig) AS entry
        WHERE split_part(entry, '=', 1) = %(name)s
          AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = %(role)s))
          AND s.setdatabase IN
              (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        ORDER BY s.setrole <> 0 AND s.setdatabase <> 0 DESC, s.setrole <> 0 DESC LIMIT 1
        """,
        {"name": name, "role": role},
    )
    rows = cursor.fetchall()
    if not rows:
        cursor.execute("SELECT current_setting(%s)", (name,))
        rows = cursor.fetchall()
    return str(rows[0][0])
