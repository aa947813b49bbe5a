"""The errors that callers get when they cannot have a connection."""

from __future__ import annotations

import logging

import psycopg2

from service.errors import DatabaseUnavailable, PoolTimeout

log = logging.getLogger(__name__)

# psycopg2's own message, so that a search of the logs finds it.
EXHAUSTED = "Database query failed: connection pool exhausted"


def exhausted(
    kind: type[PoolTimeout], reason: str, *, size: int, in_use: int, waiting: int
) -> PoolTimeout:
    """PoolTimeout or PoolRefused, logged in the words of the incident and of psycopg2's own pool."""
    log.error(
        "db.pool_exhausted",
        extra={
            "error": EXHAUSTED,
            "error_chain": ["psycopg2.pool.PoolError: connection pool exhausted"],
            "reason": reason,
            "pool_size": size,
            "pool_in_use": in_use,
            "pool_waiting": waiting,
        },
    )
    return kind(EXHAUSTED)


def stopping() -> DatabaseUnavailable:
    """The pool is closed."""
    return DatabaseUnavailable("The service is stopping.")


def unreachable(error: psycopg2.Error | None) -> DatabaseUnavailable:
    """The connect error for callers: addresses and names remain in the cause."""
    unavailable = DatabaseUnavailable("The database cannot be reached.")
    unavailable.__cause__ = error
    return unavailable
