"""The private PostgreSQL: who gets in, what survives a kill, and what is said when it cannot start."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import psycopg2
import pytest

from service.database.direct import Unreachable, cursor_to
from service.lab.local import embedded
from service.lab.local.embedded import EmbeddedPostgres, EmbeddedPostgresError

ROOT = Path(__file__).parents[3]


@contextmanager
def _open_home() -> Iterator[Path]:
    """A home that the user PostgreSQL runs as can reach."""
    home = Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    home.chmod(0o711)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty home."""
    with _open_home() as home:
        yield home


@pytest.fixture(scope="module")
def reference() -> Iterator[EmbeddedPostgres]:
    """A server only to look at, with the settings of a local run."""
    with _open_home() as home:
        server = EmbeddedPostgres(home)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def server(home: Path) -> Iterator[EmbeddedPostgres]:
    """A server of this test's own, durable as in a local run."""
    server = EmbeddedPostgres(home)
    server.start()
    yield server
    server.stop()


def test_it_is_durable_private_and_without_tcp(reference):
    with cursor_to(reference.app_url) as cursor:
        settings = {
            name: _value(cursor, f"SHOW {name}")
            for name in ("fsync", "synchronous_commit", "listen_addresses", "max_connections")
        }

    assert settings == {
        "fsync": "on",
        "synchronous_commit": "on",
        "listen_addresses": "",
        "max_connections": "60",
    }


def test_the_socket_is_in_a_directory_of_one_user(reference):
    mode = (reference._home / "postgres" / "socket").stat().st_mode

    assert stat.S_IMODE(mode) == 0o700


def test_the_app_role_may_neither_rule_nor_change_the_schema(reference):
    with cursor_to(reference.app_url) as cursor:
        rights = _row(
            cursor,
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
            " FROM pg_roles WHERE rolname = current_user",
        )
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("CREATE TABLE mine (id int)")

    assert rights == (False,) * 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_local_user_is_refused_at_the_socket(reference):
    # The user that the server runs as can open the socket, so peer authentication must refuse it.
    owner = (reference._home / "postgres" / "data").stat()
    attempt = subprocess.run(
        [server_program(reference, "psql"), reference.app_url, "-c", "SELECT 1"],
        capture_output=True,
        text=True,
        user=owner.st_uid,
        group=owner.st_gid,
        extra_groups=[],
        cwd="/",
        check=False,
    )

    assert attempt.returncode != 0
    assert "Peer authentication failed" in attempt.stderr


def test_an_acknowledged_commit_survives_a_killed_postmaster(server):
    with cursor_to(server.owner_url) as cursor:
        cursor.execute("CREATE TABLE promise (id int)")
        cursor.execute("INSERT INTO promise VALUES (42)")

    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    server.start()

    with cursor_to(server.owner_url) as cursor:
        assert _value(cursor, "SELECT id FROM promise") == 42


def test_killed_starter_leaves_no_process_and_keeps_the_data(home):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from service.database.direct import cursor_to\n"
        "from service.lab.local.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]))\n"
        "server.start()\n"
        "with cursor_to(server.owner_url) as cursor:\n"
        "    cursor.execute('CREATE TABLE promise AS SELECT 42 AS id')\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, home], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with starter:
        assert starter.stdout
        postmaster_pid = int(starter.stdout.readline())
        starter.kill()

    # At once: it waits for the last processes of the first to end.
    server = EmbeddedPostgres(home)
    server.start()
    try:
        with cursor_to(server.owner_url) as cursor:
            assert _value(cursor, "SELECT id FROM promise") == 42
        assert not Path(f"/proc/{postmaster_pid}").exists()
    finally:
        server.stop()


def test_a_killed_keeper_ends_the_server(server):
    pid = server.pid

    os.kill(server.process.manager_pid, signal.SIGKILL)
    server.stop()

    give_up_at_s = monotonic() + 120
    while Path(f"/proc/{pid}").exists():
        assert monotonic() < give_up_at_s
        sleep(0.01)


def test_a_second_one_for_the_same_home_is_refused_in_words(reference, monkeypatch):
    monkeypatch.setattr(embedded, "LOCK_WAIT_S", 0.1)

    with pytest.raises(EmbeddedPostgresError, match="Another Holdfast"):
        EmbeddedPostgres(reference._home).start()


def test_a_first_start_that_was_cut_short_is_begun_again(home):
    half = home / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")

    server = EmbeddedPostgres(home)
    server.start()
    server.stop()

    assert not half.exists()


def test_a_path_with_a_space_and_too_long_for_a_socket_is_fine(home):
    deep = home / "my projects" / ("long" * 30)
    server = EmbeddedPostgres(deep)

    server.start()
    try:
        with cursor_to(server.app_url) as cursor:
            assert _value(cursor, "SELECT current_user") == "holdfast"
    finally:
        server.stop()


def test_data_of_another_version_is_left_alone_and_explained(home):
    data = home / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")

    with pytest.raises(EmbeddedPostgresError, match=r"written by PostgreSQL 9, but only .*18"):
        EmbeddedPostgres(home).start()


def test_without_programs_both_ways_out_are_named(home, monkeypatch):
    monkeypatch.setattr(embedded, "_candidates", lambda base, uid_gid: iter(()))

    with pytest.raises(EmbeddedPostgresError, match=r"holdfast\[embedded\].*DATABASE_URL"):
        EmbeddedPostgres(home).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a home that others cannot reach")
def test_cluster_in_a_private_home_keeps_the_home_private(home):
    closed = home / "root"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "holdfast")

    server.start()
    elsewhere = (closed / "holdfast" / "postgres").resolve()
    try:
        with cursor_to(server.app_url) as cursor:
            assert _value(cursor, "SELECT 1") == 1
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    finally:
        server.stop()
        shutil.rmtree(elsewhere)


def test_nobody_answers_after_stop(server):
    url = server.app_url

    server.stop()

    with pytest.raises(Unreachable), cursor_to(url):
        pass


def server_program(server: EmbeddedPostgres, name: str) -> Path:
    return Path(server.process.command[0]).with_name(name)


def _row(cursor: psycopg2.extensions.cursor, statement: str) -> tuple[object, ...]:
    cursor.execute(statement)
    (row,) = cursor.fetchall()
    return row


def _value(cursor: psycopg2.extensions.cursor, statement: str) -> object:
    (value,) = _row(cursor, statement)
    return value
