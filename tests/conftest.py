"""Fixtures of all tests: a real PostgreSQL, and a fresh migrated database for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
from hypothesis import settings

from service.lab.local.embedded import DATABASE, OWNER, EmbeddedPostgres
from tests.support.processes.sandbox_process import SandboxProcess, running_sandbox
from tests.support.stack import cluster_template

if TYPE_CHECKING:
    from service.database.pool.pool import ConnectionPool

pytest_plugins = ["tests.order_of_work", "tests.needed_programs"]

TEMPLATE = "migrated"

# Hypothesis' limit of 200 ms for an example measures the machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for the whole session, with a migrated template to copy from."""
    # Not below pytest's own directory, which PostgreSQL's user cannot enter.
    home = Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    home.chmod(0o711)
    # Tests kill processes, never the machine, so data in the kernel's cache is safe.
    cluster_template.put_into(home)
    server = EmbeddedPostgres(home, options=("fsync=off", "max_connections=100"))
    try:
        server.start()
        _execute(server, f"CREATE DATABASE {TEMPLATE} TEMPLATE {DATABASE}")
        yield server
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        cluster_template.begin_run()
        config.add_cleanup(cluster_template.end_run)


_numbers = itertools.count(1)


@pytest.fixture
def _database_name(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    # The default strategy writes each page to the log too: twice the processor time.
    _execute(postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
    yield name
    # A test may have left the server stopped or connections open; the next test must not fail by it.
    _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, _database_name: str) -> str:
    """A fresh migrated database, with the service's own role."""
    return postgres.url("holdfast", _database_name)


@pytest.fixture
def owner_url(postgres: EmbeddedPostgres, _database_name: str) -> str:
    """The same database, with the role that owns the schema."""
    return postgres.url(OWNER, _database_name)


@pytest.fixture
def pool(database_url: str) -> Iterator[ConnectionPool]:
    """A pool of 4 open connections on the fresh database: no test waits for the first connection."""
    from tests.support.stack.pools import open_pool_of

    with open_pool_of(4, database_url, max_waiters=16, prepared=None) as pool:
        yield pool


@pytest.fixture(scope="session")
def sandbox_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    """One sandbox provider for the whole session."""
    with running_sandbox(tmp_path_factory.mktemp("sandbox")) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(sandbox_process: SandboxProcess) -> Iterator[SandboxProcess]:
    """The session's sandbox provider without faults; use unique references in its books."""
    sandbox_process.clear()
    yield sandbox_process
    sandbox_process.clear()


def _execute(server: EmbeddedPostgres, statement: str) -> None:
    connection = psycopg2.connect(server.url(OWNER, "postgres"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()
