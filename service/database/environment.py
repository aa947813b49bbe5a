"""Removes libpq's environment variables for connections with a complete address.

libpq fills the gaps of a DSN from PGHOST, PGPORT, PGSERVICE and two dozen more: the variables of
a developer's shell could redirect our connections, or change the meaning of a statement.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping

from psycopg2.extensions import parse_dsn

log = logging.getLogger(__name__)

# libpq adds one with nearly each version, so they are recognized by the form of their names.
# PGDATA belongs to the server; PGBOUNCER_.. and similar names belong to other programs.
_OF_LIBPQ = re.compile(r"PG(?!DATA$)[A-Z]+|PGCONNECT_TIMEOUT")
# Without these a connection may be less protected than its owner believes: a warning names them.
_OF_SECURITY = re.compile(r"PG(SSL|REQUIRE|CHANNEL|GSS|KRB)")


def without_libpq(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a PostgreSQL program of ours: nothing that begins with PG."""
    return {name: text for name, text in environ.items() if not name.startswith("PG")}


def leave_environment(dsn: str) -> None:
    """Remove libpq's variables from this process, where `dsn` names host and database itself.

    A missing user or password still comes from the environment. A DSN without host or database is
    meant to be filled, and keeps all variables.
    """
    parts = parse_dsn(dsn)
    host = str(parts.get("hostaddr") or parts.get("host") or "")
    if not host or not parts.get("dbname"):
        return
    kept = set()
    if not parts.get("user"):
        kept.add("PGUSER")
    # On a unix socket the server asks the kernel; a shell's password would be for another server.
    if not parts.get("password") and not host.startswith(("/", "@")):
        kept |= {"PGPASSWORD", "PGPASSFILE"}
    ignored = [name for name in os.environ if _OF_LIBPQ.fullmatch(name) and name not in kept]
    if not ignored:
        return
    for name in ignored:
        os.environ.pop(name, None)
    is_of_security = any(_OF_SECURITY.match(name) for name in ignored)
    # The names only: a value may be a password.
    log.log(
        logging.WARNING if is_of_security else logging.INFO,
        "database.environment_ignored",
        extra={"variables": sorted(ignored), "todo": "Write what is meant into DATABASE_URL."},
    )
