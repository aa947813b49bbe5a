"""The pool through pgbouncer in transaction mode: no statement relies on what a session keeps."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from service.database.pool.pool import Statement
from service.resilience.deadline import Deadline
from tests.needed_programs import path_of
from tests.support.processes.database_link import DatabaseLink
from tests.support.stack.pools import SLEEP, eventually, pool_of

pytestmark = pytest.mark.needs("pgbouncer")

ADD = Statement("add_merchant", "INSERT INTO merchants (merchant_id, name) VALUES (%s, %s)")
COUNT = Statement("count_merchants", "SELECT count(*) FROM merchants WHERE name = %s")
PID = Statement("pid", "SELECT pg_backend_pid()")
TIMEOUT = Statement("timeout", "SELECT current_setting('statement_timeout')")


def _answers(url: str) -> bool:
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


@pytest.fixture
def pgbouncer_url(database_url: str) -> Iterator[str]:
    """The same database through a pgbouncer with two server connections."""
    program = path_of("pgbouncer")
    assert program is not None
    # PostgreSQL accepts only this user, and pgbouncer refuses to run as root: the link between
    # them runs as this user for PostgreSQL, and accepts any user for pgbouncer.
    link = DatabaseLink(database_url)
    link.open_to_all_users()
    target = parse_dsn(link.url)
    home = Path(tempfile.mkdtemp(prefix="bouncer-"))
    settings = home / "pgbouncer.ini"
    settings.write_text(
        f"""[databases]
{target["dbname"]} = host={target["host"]} user={target["user"]}
[pgbouncer]
pool_mode = transaction
default_pool_size = 2
auth_type = any
unix_socket_dir = {home}
listen_port = 6432
"""
    )
    if os.geteuid() == 0:
        shutil.chown(home, "nobody", "nogroup")
    process = subprocess.Popen(
        [program, "-q", str(settings)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user="nobody" if os.geteuid() == 0 else None,
        extra_groups=[] if os.geteuid() == 0 else None,
    )
    url = make_dsn(database_url, host=str(home), port=6432)
    try:
        assert eventually(lambda: _answers(url))
        yield url
    finally:
        process.terminate()
        process.wait()
        link.close()
        shutil.rmtree(home)


def test_many_connections_share_two_of_the_servers(pgbouncer_url: str) -> None:
    with pool_of(6, pgbouncer_url) as pool, ThreadPoolExecutor(12) as executor:
        work = [executor.submit(pool.run, SLEEP, (0.01,), Deadline.after(60)) for _ in range(60)]
        rows = [done.result() for done in work]
        pids = {pool.run(PID, (), Deadline.after(60))[0][0] for _ in range(20)}

    assert rows == [[("",)]] * 60
    assert len(pids) <= 2


def test_a_transaction_is_whole_and_its_settings_end_with_it(pgbouncer_url: str) -> None:
    def work(number: int) -> tuple[str, str]:
        with pool.transaction(Deadline.after(60)) as checkout:
            checkout.run(Statement("limit", f"SET LOCAL statement_timeout = {number}"))
            checkout.run(ADD, (str(uuid4()), "bounced"))
            within = str(checkout.run(TIMEOUT)[0][0])
        return within, str(pool.run(TIMEOUT, (), Deadline.after(60))[0][0])

    with pool_of(4, pgbouncer_url) as pool, ThreadPoolExecutor(8) as executor:
        seen = list(executor.map(work, range(1001, 1021)))
        added = pool.run(COUNT, ("bounced",), Deadline.after(60))

    assert seen == [(f"{number}ms", "2s") for number in range(1001, 1021)]
    assert added == [(20,)]


def test_no_statement_is_prepared_behind_a_pooler(pgbouncer_url: str) -> None:
    with pool_of(6, pgbouncer_url, prepared=None) as pool, ThreadPoolExecutor(12) as executor:
        work = [executor.submit(pool.run, COUNT, ("x",), Deadline.after(60)) for _ in range(60)]
        rows = [done.result() for done in work]

        assert not any(connection.may_prepare for connection in pool.opened())
    assert rows == [[(0,)]] * 60
