"""Lending: first come, first served, up to a maximum, with an end to every wait."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep

import psycopg2
import psycopg2.pool
import pytest
from prometheus_client import REGISTRY

from service.database.pool.pool import ConnectionPool, Statement
from service.errors import DatabaseUnavailable, DeadlineExceeded, PoolRefused, PoolTimeout
from service.resilience.deadline import Deadline
from tests.support.stack.pools import ONE, SLEEP, backends, eventually, open_pool_of, pool_of


def test_a_statement_gives_its_rows(pool: ConnectionPool) -> None:
    rows = pool.run(
        Statement("sum", "SELECT %(a)s::int + %(b)s::int"), {"a": 1, "b": 2}, Deadline.after(60)
    )

    assert rows == [(3,)]


def test_psycopg2s_own_names_lend_and_take_back(pool: ConnectionPool) -> None:
    connection = pool.getconn()
    lent = pool.in_use
    pool.putconn(connection)

    assert isinstance(pool, psycopg2.pool.ThreadedConnectionPool)
    assert (lent, pool.in_use) == (1, 0)


def test_waiters_are_served_in_the_order_in_which_they_came(database_url: str) -> None:
    served: list[int] = []

    def wait_in_line(number: int) -> None:
        with pool.checkout(Deadline.after(60)):
            served.append(number)

    with pool_of(1, database_url) as pool, ThreadPoolExecutor(20) as executor:
        connection = pool.getconn()
        for number in range(20):
            executor.submit(wait_in_line, number)
            assert eventually(lambda n=number: pool.waiting == n + 1)  # type: ignore[misc]
        pool.putconn(connection)
        assert eventually(lambda: len(served) == 20)

    assert served == list(range(20))


def test_64_threads_get_similar_shares(database_url: str) -> None:
    served = [0] * 64
    stop = threading.Event()
    all_are_here = threading.Barrier(64)

    def work(number: int) -> None:
        all_are_here.wait()
        while not stop.is_set():
            with pool.checkout(Deadline.after(60)):
                sleep(0.0005)
            served[number] += 1

    with pool_of(8, database_url) as pool:
        with ThreadPoolExecutor(64) as executor:
            for number in range(64):
                executor.submit(work, number)
            assert eventually(lambda: sum(served) > 64 * 30, within_s=20)
            stop.set()

        # The bare pools that do not keep a line serve some threads never, others hundreds of times.
        assert min(served) >= 0.5 * max(served)


def test_there_are_never_more_connections_than_the_maximum(database_url: str) -> None:
    most = 0
    with pool_of(3, database_url, wait_s=20) as pool, ThreadPoolExecutor(24) as executor:
        work = [executor.submit(pool.run, SLEEP, (0.01,), Deadline.after(20)) for _ in range(60)]
        while not all(done.done() for done in work):
            most = max(most, backends(database_url))

        assert [done.result() for done in work] == [[("",)]] * 60
        assert 1 <= most <= 3


def test_the_wait_ends_in_the_incidents_words(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        open_pool_of(1, database_url, wait_s=0.05) as pool,
        pool.checkout(Deadline.after(60)),
        pytest.raises(PoolTimeout) as caught,
        pool.checkout(Deadline.after(60)),
    ):
        pass

    assert str(caught.value) == "Database query failed: connection pool exhausted"
    # No error of psycopg2's own pool was raised: its words are a field of the log.
    assert caught.value.__cause__ is None
    (event,) = [record for record in caplog.records if record.message == "db.pool_exhausted"]
    assert event.__dict__["error"] == "Database query failed: connection pool exhausted"
    assert event.__dict__["error_chain"] == ["psycopg2.pool.PoolError: connection pool exhausted"]
    assert event.levelno == logging.ERROR


def test_wait_ends_at_the_callers_earlier_deadline(database_url: str) -> None:
    with pool_of(1, database_url, wait_s=60) as pool, pool.checkout(Deadline.after(60)):
        started_s = monotonic()
        with pytest.raises(PoolTimeout), pool.checkout(Deadline.after(0.1)):
            pass

    assert 0.1 <= monotonic() - started_s < 30


def test_a_line_that_is_full_refuses_at_once(database_url: str) -> None:
    with (
        pool_of(1, database_url, wait_s=60, max_waiters=0) as pool,
        pool.checkout(Deadline.after(60)),
    ):
        started_s = monotonic()
        with pytest.raises(PoolRefused), pool.checkout(Deadline.after(60)):
            pass

    assert monotonic() - started_s < 30


def test_a_spent_deadline_is_refused_without_a_place_in_line(database_url: str) -> None:
    with pool_of(1, database_url) as pool, pool.checkout(Deadline.after(60)):
        with pytest.raises(DeadlineExceeded), pool.checkout(Deadline.after(0)):
            pass
        assert pool.waiting == 0


def test_a_wait_for_nothing_is_counted_among_the_waits(database_url: str) -> None:
    def waited_longer() -> float:
        name = "holdfast_db_pool_wait_seconds_bucket"
        up_to_it = REGISTRY.get_sample_value(name, {"le": "0.05"}) or 0
        return (REGISTRY.get_sample_value(name, {"le": "+Inf"}) or 0) - up_to_it

    before = waited_longer()

    with (
        open_pool_of(1, database_url, wait_s=0.06) as pool,
        pool.checkout(Deadline.after(60)),
        pytest.raises(PoolTimeout),
        pool.checkout(Deadline.after(60)),
    ):
        pass

    assert waited_longer() - before == 1


def test_whoever_gives_up_leaves_no_gap_in_the_line(database_url: str) -> None:
    with open_pool_of(1, database_url, wait_s=0.05) as pool:
        connection = pool.getconn()
        with pytest.raises(PoolTimeout), pool.checkout(Deadline.after(60)):
            pass
        pool.putconn(connection)

        assert pool.run(ONE, (), Deadline.after(60)) == [(1,)]
        assert (pool.in_use, pool.waiting) == (0, 0)


def test_waiters_turned_away_by_a_race_lose_no_connection(database_url: str) -> None:
    """Waits end at the very moments at which connections come back."""

    def work() -> None:
        for _ in range(60):
            try:
                with pool.checkout(Deadline.after(0.004)):
                    sleep(0.001)
            except (PoolTimeout, DeadlineExceeded):
                continue

    with pool_of(2, database_url) as pool:
        with ThreadPoolExecutor(16) as executor:
            for done in [executor.submit(work) for _ in range(16)]:
                done.result()

        assert (pool.in_use, pool.waiting) == (0, 0)
        with pool.checkout(Deadline.after(60)), pool.checkout(Deadline.after(60)):
            assert pool.in_use == 2


def test_closed_pool_refuses_callers_and_closes_at_release(database_url: str) -> None:
    with pool_of(2, database_url) as pool:
        assert eventually(lambda: len(pool.opened()) == 2)
        with pool.checkout(Deadline.after(60)) as checkout:
            connection = checkout.connection
            pool.close()
            with pytest.raises(DatabaseUnavailable), pool.checkout(Deadline.after(60)):
                pass

        assert connection.closed
        assert eventually(lambda: backends(database_url) == 0)


def test_connections_are_replaced_at_the_end_of_their_lifetime(database_url: str) -> None:
    with pool_of(2, database_url, lifetime_s=0.3) as pool:
        assert eventually(lambda: pool.statistics().connections_num >= 6)
        assert pool.run(ONE, (), Deadline.after(60)) == [(1,)]
        assert pool.statistics().connections_lost == 0


def test_leaked_connection_is_logged_with_its_checkout(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def leaks() -> list[str]:
        wanted = [r for r in caplog.records if r.message == "db.connection_leaked"]
        return [record.__dict__["taken_at"] for record in wanted]

    with pool_of(1, database_url, leak_after_s=0.01) as pool, pool.checkout(Deadline.after(30)):
        assert eventually(lambda: bool(leaks()))

    (where,) = leaks()
    assert "test_pool.py" in where
    assert where.endswith("in test_leaked_connection_is_logged_with_its_checkout")


def test_the_statistics_add_up(database_url: str) -> None:
    with open_pool_of(1, database_url, wait_s=1.0) as pool:
        with ThreadPoolExecutor(2) as executor:
            for _ in range(2):
                executor.submit(pool.run, SLEEP, (0.05,), Deadline.after(60))
        with pool.checkout(Deadline.after(60)):
            with pytest.raises(PoolTimeout), pool.checkout(Deadline.after(60)):
                pass
            lent = pool.statistics()
        idle = pool.statistics()

    assert (lent.active, lent.available, lent.pool_size) == (1, 0, 1)
    assert (idle.active, idle.available, idle.requests_num) == (0, 1, 3)
    assert idle.requests_queued >= 1
    assert idle.requests_wait_ms >= 40
    assert idle.requests_timeouts == 1
    assert idle.usage_ms >= 100
    assert (idle.connections_num, idle.connections_errors, idle.connections_lost) == (1, 0, 0)


def test_every_checkout_is_in_the_histograms_once(database_url: str) -> None:
    names = ("holdfast_db_pool_wait_seconds_count", "holdfast_db_pool_hold_seconds_count")
    before = [REGISTRY.get_sample_value(name) or 0 for name in names]

    with pool_of(2, database_url) as pool, ThreadPoolExecutor(4) as executor:
        for done in [executor.submit(pool.run, ONE, (), Deadline.after(60)) for _ in range(50)]:
            done.result()

    after = [REGISTRY.get_sample_value(name) or 0 for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [50, 50]
