"""The fault proxy's cost without a fault: one more hop on each of its two links.

Run with `python -m tests.bench.bench_proxy`. Direct and through the proxy in turn, in one run.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import psycopg2

from service.lab.local.embedded import EmbeddedPostgres
from service.providers.http.transport import Transport
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.processes.fault_proxy_process import running_fault_proxy
from tests.support.processes.sandbox_process import API_KEY, running_sandbox

ROUNDS = 5
CALLS = 400
LIMIT_MS = 0.3


def main() -> int:
    """Print both hops; 1 when one costs more than its limit."""
    home = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    home.chmod(0o711)
    postgres = EmbeddedPostgres(home)
    try:
        postgres.start()
        with contextlib.ExitStack() as stack:
            sandbox = stack.enter_context(running_sandbox(home / "sandbox"))
            proxy = stack.enter_context(
                running_fault_proxy(provider_url=sandbox.url, database_url=postgres.app_url)
            )
            hops_ms = {
                "database": _hop_ms(
                    _statement(postgres.app_url, stack), _statement(proxy.database_url, stack)
                ),
                "provider": _hop_ms(
                    _listing(sandbox.url, sandbox.ca_file, None, stack),
                    _listing(sandbox.url, sandbox.ca_file, proxy.proxy_url, stack),
                ),
            }
    finally:
        postgres.stop()
        shutil.rmtree(home, ignore_errors=True)
    for link, (direct_ms, proxied_ms) in hops_ms.items():
        print(
            f"{link}: direct {direct_ms:.3f} ms, through the proxy {proxied_ms:.3f} ms,"
            f" hop {proxied_ms - direct_ms:.3f} ms (limit {LIMIT_MS})"
        )
    return int(any(proxied - direct > LIMIT_MS for direct, proxied in hops_ms.values()))


def _hop_ms(direct: Callable[[], None], proxied: Callable[[], None]) -> tuple[float, float]:
    """The median call of each, from alternating rounds."""
    took: dict[Callable[[], None], list[float]] = {direct: [], proxied: []}
    for _ in range(ROUNDS):
        for call, times in took.items():
            for _ in range(CALLS):
                began_s = perf_counter()
                call()
                times.append((perf_counter() - began_s) * 1000)
    return statistics.median(took[direct]), statistics.median(took[proxied])


def _statement(url: str, stack: contextlib.ExitStack) -> Callable[[], None]:
    connection = psycopg2.connect(url)
    stack.callback(connection.close)
    connection.autocommit = True
    cursor = connection.cursor()
    return lambda: cursor.execute("SELECT 1")


def _listing(
    url: str, ca_file: str, proxy_url: str | None, stack: contextlib.ExitStack
) -> Callable[[], None]:
    transport = Transport(
        base_url=url,
        ca_file=ca_file,
        connect_timeout_s=1.0,
        max_connections=1,
        watchdog=Watchdog(),
        proxy_url=proxy_url,
    )
    stack.callback(transport.close)
    headers = {"Authorization": f"Bearer {API_KEY}"}

    def call() -> None:
        transport.exchange(
            "GET", "/v1/payment_intents?limit=1", headers=headers, deadline=Deadline.after(5)
        )

    return call


if __name__ == "__main__":
    raise SystemExit(main())
