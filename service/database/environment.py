"""Keeps libpq's own environment variables away from connections whose address is complete.

libpq fills what a DSN leaves out from PGHOST, PGPORT, PGSERVICE and two dozen more: those of a
developer's shell would lead our connections elsewhere, or change what a statement means.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping

from psycopg2.extensions import parse_dsn

log = logging.getLogger(__name__)

# libpq adds one with nearly each version, so the shape of their names is what is known of them.
# PGDATA is a server's; PGBOUNCER_.. and the like are other programs'.
_OF_LIBPQ = re.compile(r"PG(?!DATA$)[A-Z]+|PGCONNECT_TIMEOUT")
# Without these a connection may be less protected than its owner believes: they are told aloud.
_OF_SECURITY = re.compile(r"PG(SSL|REQUIRE|CHANNEL|GSS|KRB)")


def without_libpq(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a PostgreSQL program of ours: nothing that begins with PG."""
    return {name: text for name, text in environ.items() if not name.startswith("PG")}


def leave_environment(dsn: str) -> None:
    """Remove libpq's variables from this process, where `dsn` names host and database itself.

    What the DSN leaves out of the identity (user, password) still comes from there. A DSN without
    host or database means to be filled, and gets all of them.
    """
    parts = parse_dsn(dsn)
    host = str(parts.get("hostaddr") or parts.get("host") or "")
    if not host or not parts.get("dbname"):
        return
    kept = set()
    if not parts.get("user"):
        kept.add("PGUSER")
    # On a unix socket the server asks the kernel; a password of the shell would be another's.
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
