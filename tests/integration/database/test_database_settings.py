"""Odd databases and shells: what cannot work is refused in a sentence, the rest does not reach us."""

from __future__ import annotations

import itertools
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from service.app.data_plane import (
    create_app,
)
from service.database.direct import cursor_to
from service.database.migrate.role_settings import RELIED_ON
from service.database.migrate.runner import migrate
from service.database.pool.connection import complete_dsn, open_connection
from service.database.pool.pool import Statement
from service.lab.local.embedded import OWNER, EmbeddedPostgres
from service.payments.audit import AuditLog
from service.payments.merchants import generate_key
from service.resilience.deadline import Deadline
from service.settings import Settings, SettingsError
from service.startup.database import prepare, require_suitable
from service.startup.gunicorn import ROOT
from tests.integration.database.test_pool_pgbouncer import pgbouncer_url as pgbouncer_url
from tests.support.providers.booked_provider import BookedProvider
from tests.support.stack.pools import open_pool_of, pool_of

# Each would break our connections or what statements mean, had libpq its way.
SHELL = {
    "PGHOST": "192.0.2.1",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGDATABASE": "elsewhere",
    "PGUSER": "stranger",
    "PGPASSWORD": "canary",
    "PGPASSFILE": "/nowhere/pgpass",
    "PGSERVICE": "nowhere",
    "PGSERVICEFILE": "/nowhere/service.conf",
    "PGOPTIONS": "-c search_path=nowhere -c default_transaction_read_only=on",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "/nowhere/root.crt",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGTARGETSESSIONATTRS": "standby",
    "PGCLIENTENCODING": "LATIN1",
    "PGDATESTYLE": "German",
    "PGTZ": "Asia/Kathmandu",
    "PGAPPNAME": "psql",
    "PGCONNECT_TIMEOUT": "1",
    "PGDATA": "/nowhere",
}
TEXT = "Zürich, 東京, \N{PILE OF POO}"
_numbers = itertools.count(1)


@pytest.fixture
def make_database(postgres: EmbeddedPostgres) -> Iterator[Any]:
    """Creates an empty database; gives its name."""
    made = []

    def make(options: str = "") -> str:
        name = f"odd_{os.getpid()}_{next(_numbers)}"
        with cursor_to(postgres.url(OWNER, "postgres")) as cursor:
            cursor.execute(f"CREATE DATABASE {name} {options}")
        made.append(name)
        return name

    yield make
    with cursor_to(postgres.url(OWNER, "postgres")) as cursor:
        for name in made:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def relations(url: str) -> set[str]:
    with cursor_to(url) as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        return {name for (name,) in cursor.fetchall()}


# --- What cannot work ------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres: EmbeddedPostgres, make_database: Any, tmp_path: Path, encoding: str
) -> None:
    name = make_database(f"ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    settings = Settings(
        database_url=postgres.url("holdfast", name),
        migrate_database_url=postgres.url(OWNER, name),
        home=tmp_path,
        metrics_dir=tmp_path,
    )

    with pytest.raises(SettingsError, match=f"encoded in {encoding}") as refused:
        prepare(settings)
    with pytest.raises(SettingsError, match=encoding):
        require_suitable(settings)
    ready = create_app(settings, provider=BookedProvider()).test_client().get("/readyz")

    assert str(refused.value).count("\n") == 0
    assert relations(postgres.url(OWNER, name)) == set()
    assert (ready.status_code, ready.json["reason"]) == (503, "database_encoding")


def test_readiness_of_a_database_without_our_tables_is_no_500(
    postgres: EmbeddedPostgres, make_database: Any, tmp_path: Path
) -> None:
    url = postgres.url("holdfast", make_database())
    settings = Settings(database_url=url, home=tmp_path, metrics_dir=tmp_path)

    ready = create_app(settings, provider=BookedProvider()).test_client().get("/readyz")

    assert (ready.status_code, ready.json["reason"]) == (503, "migrations_pending")


@pytest.mark.parametrize(
    "foreign",
    [
        "CREATE TABLE payments (id int)",
        "CREATE VIEW merchants AS SELECT 1",
        "CREATE SEQUENCE api_keys",
        "CREATE TYPE events AS ENUM ('a')",
        "CREATE TABLE schema_migrations (version varchar PRIMARY KEY)",
        "CREATE TABLE schema_migrations (version bigint, dirty boolean)",
        "CREATE TABLE t (id int); CREATE INDEX api_keys_by_merchant ON t (id)",
        "CREATE TABLE audit_log (id int)",
    ],
)
def test_another_programs_table_of_our_name_is_left_alone(
    postgres: EmbeddedPostgres, make_database: Any, foreign: str
) -> None:
    url = postgres.url(OWNER, make_database())
    with cursor_to(url) as cursor:
        cursor.execute(foreign)
    before = relations(url)

    done = subprocess.run(
        [sys.executable, "-m", "service", "migrate"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert "another program" in done.stderr
    assert relations(url) == before


def test_a_right_that_the_owner_lacks_is_said_in_a_sentence(
    postgres: EmbeddedPostgres, make_database: Any
) -> None:
    settings = Settings(database_url=postgres.url("holdfast", make_database()))

    with pytest.raises(SettingsError, match=r"permission denied for schema public") as refused:
        prepare(settings)

    assert str(refused.value).count("\n") == 0


def test_migrations_and_the_first_key_are_in_the_audit_log(
    postgres: EmbeddedPostgres, make_database: Any
) -> None:
    name, api_key = make_database(), generate_key("test")
    settings = Settings(
        database_url=postgres.url("holdfast", name),
        migrate_database_url=postgres.url(OWNER, name),
        bootstrap_api_key=api_key,
    )

    applied = prepare(settings)
    assert prepare(settings) == []

    with open_pool_of(1, postgres.url("holdfast", name)) as pool:
        acts = AuditLog(pool).read(Deadline.after(60))
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {(act.actor_kind, act.actor) for act in acts} == {("cli", user)}
    assert acts[0].target == api_key.split("_")[2]
    # From the migration on that makes the log.
    logged = [act.target for act in reversed(acts[1:])]
    assert logged == applied[applied.index("0011_audit.sql") :]


# --- Odd defaults ----------------------------------------------------------------------------

ODD = {
    "client_encoding": "LATIN1",
    "DateStyle": "German",
    "TimeZone": "Asia/Kathmandu",
    "standard_conforming_strings": "off",
    "IntervalStyle": "iso_8601",
    "bytea_output": "escape",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "synchronous_commit": "off",
    "search_path": "nowhere",
    "array_nulls": "off",
    "extra_float_digits": "-15",
}


MOMENT = Statement(
    "moment", "SELECT extract(epoch FROM timestamptz '2026-12-01 05:00:01.5+00')::float8"
)


@pytest.mark.parametrize("place", ["DATABASE {database}", "ROLE holdfast"])
def test_odd_defaults_do_not_reach_our_sessions(
    postgres: EmbeddedPostgres, make_database: Any, place: str
) -> None:
    name = make_database()
    url, owner_url = postgres.url("holdfast", name), postgres.url(OWNER, name)
    place = place.format(database=name)
    with cursor_to(owner_url) as cursor:
        for setting, value in ODD.items():
            cursor.execute(f"ALTER {place} SET {setting} TO '{value}'")
    try:
        migrate(owner_url, app_dsn=url)
        # A changed search_path of the owner makes no second set of tables.
        assert migrate(owner_url, app_dsn=url) == []
        found = _sessions_settings(complete_dsn(url))
        with open_pool_of(1, url) as pool:
            stored = _store_and_read(pool)
            ((moment_s,),) = pool.run(MOMENT, {}, Deadline.after(60))
    finally:
        with cursor_to(postgres.url(OWNER, "postgres")) as cursor:
            for setting in ODD:
                cursor.execute(f"ALTER {place} RESET {setting}")

    wanted = {**RELIED_ON, "client_encoding": "UTF8", "synchronous_commit": "on"}
    assert found == {**wanted, "search_path": "public"}
    assert (stored, moment_s) == (TEXT, 1_796_101_201.5)


def test_a_stronger_promise_of_the_server_is_kept(
    postgres: EmbeddedPostgres, make_database: Any
) -> None:
    name = make_database()
    with cursor_to(postgres.url(OWNER, name)) as cursor:
        cursor.execute(f"ALTER DATABASE {name} SET synchronous_commit TO remote_apply")
    url = postgres.url("holdfast", name)

    migrate(postgres.url(OWNER, name), app_dsn=url)

    assert _sessions_settings(url)["synchronous_commit"] == "remote_apply"


@pytest.mark.needs("pgbouncer")
def test_odd_defaults_do_not_pass_a_pooler(owner_url: str, pgbouncer_url: str) -> None:
    name = psycopg2.extensions.parse_dsn(owner_url)["dbname"]
    with cursor_to(owner_url) as cursor:
        for setting in ("client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"):
            cursor.execute(f"ALTER DATABASE {name} SET {setting} TO '{ODD[setting]}'")
    asked = Statement(
        "asked",
        "SELECT current_setting('client_encoding'), current_setting('DateStyle'),"
        " current_setting('TimeZone'), current_setting('standard_conforming_strings')",
    )

    with pool_of(6, pgbouncer_url) as pool:
        # Another client of the same pooler has different settings.
        other = psycopg2.connect(pgbouncer_url)
        with other, other.cursor() as cursor:
            cursor.execute("SET timezone TO 'Asia/Kathmandu'")
        seen = {pool.run(asked, {}, Deadline.after(60))[0] for _ in range(20)}
        stored = _store_and_read(pool)
        other.close()

    assert seen == {("UTF8", "ISO, MDY", "UTC", "on")}
    assert stored == TEXT


# --- A developer's shell ---------------------------------------------------------------------


def test_the_shell_does_not_reach_a_complete_address(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)

    with open_pool_of(1, database_url) as pool:
        assert _store_and_read(pool) == TEXT
        row = pool.run(Statement("x", "SELECT now()::text, current_user"), {}, Deadline.after(60))[
            0
        ]

    assert row[0].endswith("+00")
    assert row[1] == "holdfast"


def test_the_shell_does_not_reach_the_embedded_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    # Not below pytest's own directory: that is closed to the user that PostgreSQL runs as.
    home = Path(f"/tmp/holdfast-shell-{os.getpid()}")
    home.mkdir(mode=0o711)
    server = EmbeddedPostgres(home, options=("fsync=off",))
    try:
        server.start()
        migrate(server.owner_url, app_dsn=server.app_url)
        for name, value in SHELL.items():
            monkeypatch.setenv(name, value)
        with open_pool_of(1, server.app_url) as pool:
            assert _store_and_read(pool) == TEXT
            shown = Statement("x", "SELECT current_setting('port'), current_setting('TimeZone')")
            assert pool.run(shown, {}, Deadline.after(60)) == [("5432", "UTC")]
    finally:
        server.stop()
        subprocess.run(["rm", "-rf", home], check=True)


def test_incomplete_address_is_filled_from_the_environment(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = psycopg2.extensions.parse_dsn(database_url)
    monkeypatch.setenv("PGHOST", parts["host"])
    monkeypatch.setenv("PGDATABASE", parts["dbname"])
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGTZ", "Asia/Kathmandu")

    with open_pool_of(1, f"postgresql://{parts['user']}@:{parts['port']}") as pool:
        assert _store_and_read(pool) == TEXT
        zone = pool.run(Statement("zone", "SHOW timezone"), {}, Deadline.after(60))

    assert zone == [("UTC",)]


@pytest.mark.parametrize(
    ("dsn", "kept"),
    [
        ("postgresql://u:p@db/x", set()),
        ("postgresql://u@db/x", {"PGPASSWORD", "PGPASSFILE"}),
        ("postgresql://db/x", {"PGUSER", "PGPASSWORD", "PGPASSFILE"}),
        ("host=/run/pg dbname=x user=u", set()),
        ("service=mine", set(SHELL)),
        ("postgresql://u:p@db", set(SHELL)),
    ],
)
def test_only_what_the_address_leaves_out_comes_from_the_shell(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dsn: str, kept: set[str]
) -> None:
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)

    complete_dsn(dsn)

    assert set(SHELL) & set(os.environ) == kept | {"PGDATA"}
    assert "canary" not in caplog.text
    assert ("database.environment_ignored" in caplog.text) == (kept != set(SHELL))


def _sessions_settings(dsn: str) -> dict[str, str]:
    connection = open_connection(complete_dsn(dsn))
    names = (*RELIED_ON, "client_encoding", "synchronous_commit", "search_path")
    with connection.cursor() as cursor:
        cursor.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
        (row,) = cursor.fetchall()
    connection.close()
    return dict(zip(names, row, strict=True))


def _store_and_read(pool: Any) -> str:
    merchant = str(uuid4())
    add = Statement("add", "INSERT INTO merchants (merchant_id, name) VALUES (%s, %s)")
    read = Statement("read", "SELECT name FROM merchants WHERE merchant_id = %s")
    pool.run(add, (merchant, TEXT), Deadline.after(60))
    return str(pool.run(read, (merchant,), Deadline.after(60))[0][0])
