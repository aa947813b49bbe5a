"""Backends die, links stall, the database goes away: no slot is lost and no caller hangs."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from uuid import uuid4

import psycopg2
import psycopg2.errors
import pytest
from psycopg2.extensions import make_dsn

from service.database.pool.connection import IDLE_CHECK_S, SESSION
from service.database.pool.pool import ConnectionPool, Statement
from service.errors import Busy, DatabaseUnavailable
from service.resilience.deadline import Deadline
from tests.support.processes.database_link import DatabaseLink
from tests.support.stack.pools import ONE, SLEEP, backends, eventually, open_pool_of, pool_of

ADD = Statement("add_merchant", "INSERT INTO merchants (merchant_id, name) VALUES (%s, %s)")
DIE = Statement("die", "SELECT pg_terminate_backend(pg_backend_pid())")
PID = Statement("pid", "SELECT pg_backend_pid()")
ROLLBACK = Statement("roll_back", "ROLLBACK")


@pytest.fixture
def link(database_url: str) -> Iterator[DatabaseLink]:
    link = DatabaseLink(database_url)
    yield link
    link.close()


def terminate_all(url: str) -> None:
    """As a failover does: every backend of the database ends with 57P01."""
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    finally:
        connection.close()


def test_no_slot_is_lost_when_backends_die_in_a_transaction(database_url: str) -> None:
    with pool_of(2, database_url) as pool:
        for _ in range(25):
            with (
                pytest.raises(DatabaseUnavailable),
                pool.transaction(Deadline.after(60)) as checkout,
            ):
                checkout.run(DIE)

        assert pool.in_use == 0
        with pool.checkout(Deadline.after(60)) as one, pool.checkout(Deadline.after(60)) as other:
            assert one.run(ONE) == other.run(ONE) == [(1,)]


def test_no_caller_gets_a_terminated_backend(database_url: str, owner_url: str) -> None:
    with pool_of(4, database_url) as pool:
        assert eventually(lambda: len(pool.opened()) == 4)
        terminate_all(owner_url)

        answers = [pool.run(ONE, (), Deadline.after(60)) for _ in range(20)]

        assert answers == [[(1,)]] * 20
        assert pool.statistics().requests_errors == 0


def test_the_first_dead_connection_takes_the_others_with_it(
    database_url: str, owner_url: str
) -> None:
    with pool_of(3, database_url) as pool:
        assert eventually(lambda: len(pool.opened()) == 3)
        before = set(pool.opened())
        terminate_all(owner_url)
        pool.run(ONE, (), Deadline.after(60))

        assert eventually(lambda: len(pool.opened()) == 3)
        assert not before & set(pool.opened())
        assert backends(owner_url) == 3


@contextlib.contextmanager
def server_without_codes(directory: Path) -> Iterator[str]:
    """The DSN of a server that lets anybody in and answers each statement with an error that has
    no SQLSTATE, as libpq's own errors have none."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / ".s.PGSQL.5432"))
    listener.listen()

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!i", len(body) + 4) + body

    ready = message(b"Z", b"I")
    greeting = message(b"R", bytes(4)) + b"".join(
        message(b"S", name + b"\0" + value + b"\0")
        # Such a connection needs no SET: the pool would take an error for an outage.
        for name, value in (
            (b"client_encoding", b"UTF8"),
            *((name.encode(), value.encode()) for name, value in SESSION.items()),
        )
    )

    def serve(peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer:
            peer.recv(4096)
            peer.sendall(greeting + ready)
            while peer.recv(4096):
                peer.sendall(message(b"E", b"SERROR\0Mno result\0\0") + ready)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield f"host={directory} user=nobody dbname=none"
        listener.shutdown(socket.SHUT_RDWR)


def test_error_without_a_code_replaces_the_connection(tmp_path: Path) -> None:
    with server_without_codes(tmp_path) as url, pool_of(1, url) as pool:
        with pool.checkout(Deadline.after(60)) as checkout:
            before = checkout.connection
            with pytest.raises(DatabaseUnavailable) as raised:
                checkout.run(ONE)
        with pool.checkout(Deadline.after(60)) as checkout:
            assert checkout.connection is not before

    assert isinstance(raised.value.__cause__, psycopg2.DatabaseError)


def test_closed_connection_is_not_checked_out(
    database_url: str,
) -> None:
    with open_pool_of(1, database_url) as pool:
        (connection,) = pool.opened()
        assert eventually(lambda: monotonic() > connection.fresh_until_s)
        connection.close()

        assert pool.run(ONE, (), Deadline.after(60)) == [(1,)]


def test_a_statement_on_a_read_only_server_drops_all_connections(database_url: str) -> None:
    with pool_of(2, database_url) as pool:
        assert eventually(lambda: len(pool.opened()) == 2)
        with pool.transaction(Deadline.after(60)) as checkout:
            checkout.run(Statement("read_only", "SET LOCAL transaction_read_only = on"))
            with pytest.raises(DatabaseUnavailable):
                checkout.run(ADD, (str(uuid4()), "x"))
            checkout.run(ROLLBACK)

        assert eventually(lambda: pool.statistics().connections_num >= 4)


def test_stalled_statement_ends_and_its_connection_is_replaced(
    link: DatabaseLink,
) -> None:
    with open_pool_of(1, link.url) as pool:
        deadline = Deadline.after(0.5)
        with pool.checkout(deadline) as checkout:
            link.stall()
            started_s = monotonic()
            with pytest.raises(DatabaseUnavailable):
                checkout.run(ONE)
            took_s = monotonic() - started_s
        link.restore()

        assert deadline.expired
        # No other deadline would end it.
        assert took_s < 30
        assert pool.run(ONE, (), Deadline.after(60)) == [(1,)]


def test_silent_link_is_detected_before_a_statement_is_sent(link: DatabaseLink) -> None:
    with open_pool_of(1, link.url, wait_s=0.3) as pool:
        pool.run(ONE, (), Deadline.after(60))
        (connection,) = pool.opened()
        assert eventually(lambda: monotonic() - connection.idle_since_s > IDLE_CHECK_S)
        link.stall()

        with pytest.raises(DatabaseUnavailable), pool.checkout(Deadline.after(60)):
            pytest.fail("a connection that does not answer was lent")
        link.restore()

        assert eventually(lambda: len(pool.opened()) == 1)
        assert pool.run(ONE, (), Deadline.after(60)) == [(1,)]


def test_a_connect_that_stalls_holds_nobody_past_the_wait(link: DatabaseLink) -> None:
    link.stall()
    with pool_of(1, make_dsn(link.url, connect_timeout=60), wait_s=0.2) as pool:
        started_s = monotonic()
        with pytest.raises(Busy):
            pool.run(ONE, (), Deadline.after(60))
        took_s = monotonic() - started_s
        link.restore()

        assert took_s < 30
        assert eventually(lambda: len(pool.opened()) == 1)


def test_database_outage_is_refused_at_once_and_recovers(
    link: DatabaseLink,
) -> None:
    with pool_of(2, link.url, wait_s=60) as pool:
        pool.run(ONE, (), Deadline.after(60))
        link.cut()
        started_s = monotonic()
        with pytest.raises(DatabaseUnavailable):
            pool.run(ONE, (), Deadline.after(60))
        took_s = monotonic() - started_s
        link.restore()

        assert took_s < 30
        assert eventually(lambda: len(pool.opened()) == 2)
        assert pool.run(ONE, (), Deadline.after(60)) == [(1,)]


def test_those_in_line_are_told_too_when_the_database_goes_away(link: DatabaseLink) -> None:
    with pool_of(1, link.url, wait_s=60) as pool, ThreadPoolExecutor(4) as executor:
        with pool.checkout(Deadline.after(60)) as checkout:
            waiting = [executor.submit(pool.run, ONE, (), Deadline.after(60)) for _ in range(4)]
            assert eventually(lambda: pool.waiting == 4)
            link.cut()
            with pytest.raises(DatabaseUnavailable):
                checkout.run(ONE)

        errors = [done.exception(timeout=60) for done in waiting]

    assert [type(error) for error in errors] == [DatabaseUnavailable] * 4


def test_pool_created_without_a_database_starts_with_it(
    link: DatabaseLink,
) -> None:
    link.cut()
    with pool_of(1, link.url) as pool:
        assert eventually(lambda: pool.statistics().connections_errors > 0)
        link.restore()

        assert eventually(lambda: len(pool.opened()) == 1)


def test_one_thread_alone_tries_to_reconnect(link: DatabaseLink) -> None:
    with pool_of(4, link.url) as pool:
        link.cut()
        with ThreadPoolExecutor(16) as executor:
            for _ in range(100):
                executor.submit(pool.run, ONE, (), Deadline.after(1))
        assert eventually(lambda: pool.statistics().connections_errors > 0)

        # 50, 100, 200, 400 ms apart and so on, not one for each of the hundred.
        assert pool.statistics().connections_errors < 30


def test_server_side_timeout_keeps_the_connection(
    database_url: str,
) -> None:
    with pool_of(1, database_url) as pool:
        first = pool.run(PID, (), Deadline.after(60))
        with pool.transaction(Deadline.after(60)) as checkout:
            checkout.run(Statement("limit", "SET LOCAL statement_timeout = 20"))
            with pytest.raises(DatabaseUnavailable):
                checkout.run(SLEEP, (5,))
            checkout.run(ROLLBACK)

        assert pool.run(PID, (), Deadline.after(60)) == first


def test_kills_under_load_lose_no_slot(database_url: str, owner_url: str) -> None:
    stop = threading.Event()

    def work(pool: ConnectionPool) -> None:
        while not stop.is_set():
            try:
                with pool.transaction(Deadline.after(60)) as checkout:
                    checkout.run(SLEEP, (0.002,))
            except Busy:
                continue

    with pool_of(3, database_url) as pool:
        with ThreadPoolExecutor(12) as executor:
            for _ in range(12):
                executor.submit(work, pool)
            for _ in range(15):
                terminate_all(owner_url)
            stop.set()

        assert eventually(lambda: len(pool.opened()) == 3)
        assert (pool.in_use, pool.waiting) == (0, 0)
        assert backends(owner_url) == 3
