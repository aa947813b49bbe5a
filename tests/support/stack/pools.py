"""Helpers for tests of the connection pool: pools on real servers, and the count of backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import psycopg2

from service.database.pool.pool import ConnectionPool, Statement
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog

SLEEP = Statement("sleep", "SELECT pg_sleep(%s)")
ONE = Statement("one", "SELECT 1")


@contextmanager
def pool_of(size: int, url: str, **options: Any) -> Iterator[ConnectionPool]:
    options = {"wait_s": 60.0, "max_waiters": 64, "watchdog": Watchdog(), **options}
    pool = ConnectionPool(url, size=size, **options)
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def open_pool_of(size: int, url: str, **options: Any) -> Iterator[ConnectionPool]:
    """Like `pool_of`, with every connection open: for waits that are shorter than a connect."""
    with pool_of(size, url, **options) as pool:
        assert eventually(lambda: len(pool.opened()) == size)
        yield pool


def eventually(claim: Callable[[], bool], within_s: float = 90.0) -> bool:
    deadline = Deadline.after(within_s)
    while not claim():
        if deadline.expired:
            return False
        sleep(0.005)
    return True


def backends(url: str) -> int:
    """The server's count of connections, without the one of this query."""
    connection = psycopg2.connect(url, application_name="observer")
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name <> 'observer'"
            )
            row = cursor.fetchone()
            assert row is not None
            return int(row[0])
    finally:
        connection.close()
