"""The cost of one plain payment, in process and by part; paired with another revision on request.

    make bench ARGS=payment
    BENCH_AGAINST=REVISION make bench ARGS=payment
    python tests/bench/bench_payment.py [--against REVISION] [--rounds 3] [--payments 300]

One thread calls the data plane's WSGI application, which pays through a scripted provider over TLS
and a PostgreSQL of its own. Calls, statements, WAL bytes and index entries do not depend on other load
of the machine; CPU time does, so it is compared in pairs. With --against, a worktree of that revision
is measured by this same program in turn with this tree.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[2]
FLOWS = ("one_shot", "two_phase")
WARM_UP, PROFILED = 60, 40
TABLES = ("payments", "events", "idempotency_keys")
# The parts of the service by place in the tree; the standard library counts for its caller.
PARTS = (
    ("transport", ("service/providers", "/requests/", "/urllib3/", "/certifi/")),
    ("web framework", ("/flask/", "/werkzeug/", "/jinja2/")),
    ("request and answer", ("service/web", "service/app", "/pydantic", "/webargs/")),
    ("payments", ("service/payments", "service/ids")),
    ("statements and pool", ("service/database", "/psycopg2/")),
    ("metrics, logs, tracing", ("service/observability", "/prometheus_client/", "/pythonjsonlog")),
    ("guards and deadlines", ("service/resilience", "/backoff/", "/circuitbreaker")),
)
OTHER = "other"
NUMBERS = (
    "statements",
    "wal_bytes",
    "index_entries",
    "calls",
    "calls_with_c",
    "app_cpu_ms",
    "postgres_cpu_ms",
)


class CallCounter:
    """Counts the Python calls of this thread, by part."""

    def __init__(self) -> None:
        self.by_part: Counter[str] = Counter()
        self.of_c = 0
        self._parts: dict[CodeType, str | None] = {}

    def __enter__(self) -> CallCounter:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "c_call":
            self.of_c += 1
        if event == "call":
            caller: FrameType | None = frame
            while caller is not None:
                part = self._part(caller.f_code)
                if part is not None:
                    break
                caller = caller.f_back
            self.by_part[part or OTHER if caller is not None else OTHER] += 1

    def _part(self, code: CodeType) -> str | None:
        if code not in self._parts:
            where = code.co_filename.replace(os.sep, "/")
            found = (name for name, places in PARTS if any(place in where for place in places))
            self._parts[code] = next(found, None)
        return self._parts[code]


class Bench:
    """One application with its own database and provider, and the database's view of its cost."""

    def __init__(self, app: Any, owner: Any, api_key: str) -> None:
        self._app = app
        self.owner = owner
        self._headers = {"HTTP_AUTHORIZATION": f"Bearer {api_key}"}

    def pay(self) -> None:
        """One payment; raises AssertionError unless it succeeds at once."""
        body = json.dumps(
            {"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa"}
        ).encode()
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/v1/payments",
            "SCRIPT_NAME": "",
            "QUERY_STRING": "",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_HOST": "127.0.0.1:8080",
            "HTTP_IDEMPOTENCY_KEY": uuid4().hex,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            **self._headers,
        }
        statuses: list[str] = []
        answer = self._app(environ, lambda status, headers, error=None: statuses.append(status))
        text = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        assert statuses[0].startswith("201"), (statuses, text)

    def ask(self, sql: str, params: tuple[Any, ...] = ()) -> Any:
        self.owner.execute(sql, params or None)
        return self.owner.fetchone()[0]

    def index_entries(self) -> float:
        """All entries of the indexes of TABLES, as a VACUUM counts them."""
        for table in TABLES:
            self.owner.execute(f"VACUUM (INDEX_CLEANUP ON) {table}")
        return float(
            self.ask(
                """
                SELECT sum(greatest(i.reltuples, 0)) FROM pg_index x
                JOIN pg_class i ON i.oid = x.indexrelid AND i.relkind = 'i'
                LEFT JOIN pg_inherits p ON p.inhrelid = x.indrelid
                WHERE coalesce(p.inhparent, x.indrelid)::regclass::text = ANY(%s)
                """,
                (list(TABLES),),
            )
        )

    def leave_dead_rows(self) -> None:
        """A VACUUM reads whole indexes only if it finds a dead row."""
        for table, changed in {
            "payments": {"payment_id": str(uuid4()), "provider_ref": None},
            "events": {"event_id": str(uuid4())},
            "idempotency_keys": {"idempotency_key": uuid4().hex},
        }.items():
            self.owner.execute("BEGIN")
            self.owner.execute(
                f"INSERT INTO {table} SELECT (jsonb_populate_record(row, %s)).*"  # noqa: S608
                f" FROM {table} AS row LIMIT 1",
                (json.dumps(changed),),
            )
            self.owner.execute("ROLLBACK")

    def postgres_cpu_ms(self) -> float:
        self.owner.execute("SELECT pid FROM pg_stat_activity WHERE usename = 'holdfast'")
        ticks = 0
        for (pid,) in self.owner.fetchall():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def measure(flow: str, payments: int) -> dict[str, Any]:
    """The cost of one payment in this flow, by the tree that Python imports."""
    with _bench(flow) as bench:
        for _ in range(WARM_UP):
            bench.pay()
        with CallCounter() as counter:
            for _ in range(PROFILED):
                bench.pay()
        statements_before = _statements()
        wal_before = bench.ask("SELECT pg_current_wal_insert_lsn()")
        postgres_before_ms = bench.postgres_cpu_ms()
        gc.collect()
        cpu_before_s = time.thread_time()
        for _ in range(payments):
            bench.pay()
        cpu_s = time.thread_time() - cpu_before_s
        postgres_ms = bench.postgres_cpu_ms() - postgres_before_ms
        wal = bench.ask(f"SELECT pg_current_wal_insert_lsn() - '{wal_before}'::pg_lsn")
        statements = _statements() - statements_before
        return {
            "calls": sum(counter.by_part.values()) / PROFILED,
            "calls_with_c": (sum(counter.by_part.values()) + counter.of_c) / PROFILED,
            "parts": {name: count / PROFILED for name, count in counter.by_part.items()},
            "statements": statements / payments,
            "wal_bytes": float(wal) / payments,
            "app_cpu_ms": cpu_s * 1000 / payments,
            "postgres_cpu_ms": postgres_ms / payments,
            "index_entries": _index_entries(bench, payments=50),
        }


def _index_entries(bench: Bench, *, payments: int) -> float:
    bench.leave_dead_rows()
    before = bench.index_entries()
    bench.leave_dead_rows()
    # Rows that this snapshot may see keep all their versions, and each version its entries.
    with _snapshot(bench):
        for _ in range(payments):
            bench.pay()
        after = bench.index_entries()
    return (after - before) / payments


@contextlib.contextmanager
def _snapshot(bench: Bench) -> Iterator[None]:
    import psycopg2

    holder = psycopg2.connect(bench.owner.connection.dsn)
    try:
        with holder.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM payments")
            yield
    finally:
        holder.close()


def _statements() -> float:
    from service.observability.metrics import catalogue as metrics

    return sum(
        sample.value
        for family in metrics.db_statement_duration_seconds.collect()
        for sample in family.samples
        if sample.name.endswith("_count")
    )


@contextlib.contextmanager
def _bench(flow: str) -> Iterator[Bench]:
    # Imported here: with --against, this process measures nothing, and needs no tree.
    from service.app.data_plane import create_app
    from service.database.direct import cursor_to
    from service.database.migrate.runner import migrate
    from service.lab.local.embedded import OWNER, EmbeddedPostgres
    from service.payments.merchants import SCOPES, generate_key, hash_key, parse_key
    from service.settings import Settings
    from tests.support.providers.scripted_provider import scripted_provider

    home = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    home.chmod(0o711)
    # Nothing of the server's own work is counted: no checkpoint's whole pages, no vacuum.
    quiet = ("fsync=off", "full_page_writes=off", "autovacuum=off", "checkpoint_timeout=1h")
    server = EmbeddedPostgres(home, options=quiet)
    api_key, merchant = generate_key("test"), str(uuid4())
    parsed = parse_key(api_key)
    assert parsed is not None
    try:
        server.start()
        with cursor_to(server.url(OWNER, "postgres")) as cursor:
            cursor.execute("CREATE DATABASE payment")
        migrate(server.url(OWNER, "payment"), app_dsn=server.url("holdfast", "payment"))
        with (
            scripted_provider() as provider,
            provider.adapter("stripe", flow=flow) as adapter,  # type: ignore[arg-type]
            cursor_to(server.url(OWNER, "payment")) as owner,
        ):
            owner.execute(
                "INSERT INTO merchants (merchant_id, name) VALUES (%s, 'bench')", (merchant,)
            )
            owner.execute(
                "INSERT INTO api_keys (key_id, merchant_id, secret_sha256, mode, scopes, platform)"
                " VALUES (%s, %s, %s, 'test', %s, false)",
                (parsed[1], merchant, hash_key(api_key), [s for s in SCOPES if s != "platform"]),
            )
            settings = Settings(
                database_url=server.url("holdfast", "payment"),
                home=home,
                metrics_dir=home,
                rate_limit_per_s=100_000,
                rate_limit_burst=100_000,
            )
            yield Bench(create_app(settings, provider=adapter), owner, api_key)  # type: ignore[arg-type]
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def _measured(tree: Path, flow: str, payments: int) -> dict[str, Any]:
    """The same in a process of its own, which imports that tree."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", flow, "--payments", str(payments)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextlib.contextmanager
def _worktree(revision: str) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="holdfast-bench-")) / "tree"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "-q", "--detach", str(place), revision], check=True)
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=False)
        shutil.rmtree(place.parent, ignore_errors=True)


def _print(flow: str, here: list[dict[str, Any]], there: list[dict[str, Any]]) -> None:
    print(f"\n{flow}, for each payment")
    rows: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        (name, lambda one, name=name: one[name])
        for name in NUMBERS  # type: ignore[misc]
    ]
    rows += [
        (f"  calls: {name}", lambda one, name=name: one["parts"].get(name, 0.0))  # type: ignore[misc]
        for name in (*(name for name, _ in PARTS), OTHER)
    ]
    for name, value_of in rows:
        now = statistics.median(value_of(one) for one in here)
        line = f"{name:34}{now:10.2f}"
        if there:
            ratios = [
                value_of(one) / value_of(other)
                for one, other in zip(here, there, strict=True)
                if value_of(other)
            ]
            before = statistics.median(value_of(one) for one in there)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else ""
            ratio = f"{statistics.median(ratios):6.2f} x" if ratios else ""
            line += f"   before {before:10.2f} {ratio}   ({spread})"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--against",
        metavar="REVISION",
        default=os.environ.get("BENCH_AGAINST"),
        help="measure this revision in turn (BENCH_AGAINST)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--payments", type=int, default=300)
    parser.add_argument("--measure", choices=FLOWS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.payments)))
        return
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(_worktree(given.against)) if given.against else None
        for flow in FLOWS:
            here, there = [], []
            for number in range(given.rounds):
                # Each round begins with the other tree.
                trees = [ROOT, other] if number % 2 else [other, ROOT]
                for tree in filter(None, trees):
                    found = _measured(tree, flow, given.payments)
                    (here if tree is ROOT else there).append(found)
            _print(flow, here, there)


if __name__ == "__main__":
    main()
