"""The cost of observability: series and scrape time after many restarts, and CPU for each payment.

    python -m tests.bench metrics
    python -m tests.bench.bench_metrics [--restarts 200] [--payments 800] [--rounds 5]

The scrape: a real local stack with 4 workers, killed repeatedly with SIGKILL under traffic, then a
request for /metrics at its ops plane. The cost: parallel local stacks that differ in one point, driven
in turn within each round, so that other load of the machine meets all of them; CPU is the kernel's
count for the data plane's workers. Off means that inc, observe and set of prometheus_client do nothing
in the workers of that local stack, and that logging is disabled in them: both by this program, in
processes that it starts; the service has no switch for it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import requests

from service.lab.observe.traffic import Traffic
from tests.support.processes.process_family import family, parent, read
from tests.support.stack.running_stack import RunningStack, running_stack, wait_for

WORKERS = 4
CALLERS = 8
SCRAPES = 40
SCRAPE_MS_MAX, SERIES_MAX = 50.0, 2000
# Python imports it at the start of every process with it on its path: here, the data plane's.
QUIET = """
import os, sys
if any(word.endswith("gunicorn.conf.py") for word in sys.orig_argv):
    if "metrics" in os.environ["BENCH_OFF"]:
        from prometheus_client import Counter, Gauge, Histogram
        for kind in (Counter, Gauge, Histogram):
            for name in ("inc", "dec", "set", "observe"):
                if hasattr(kind, name):
                    setattr(kind, name, lambda self, *args, **kwargs: None)
    if "logs" in os.environ["BENCH_OFF"]:
        import logging
        logging.disable(logging.CRITICAL)
"""
# Both on, twice: the difference between these two is the error of the measurement.
KINDS = {
    "both on": "",
    "metrics off": "metrics",
    "logs off": "logs",
    "both off": "metrics logs",
    "both on again": "",
}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def bench_scrape(restarts: int) -> bool:
    """Kill workers under traffic, then measure the size and the duration of a scrape."""
    with (
        _directory() as directory,
        running_stack(directory / "local_stack", HOLDFAST_WEB_WORKERS=str(WORKERS)) as local_stack,
    ):
        master = local_stack.pids["data_plane"]
        killed: set[int] = set()
        with Traffic(local_stack.url, local_stack.api_key, per_s=8):
            while len(killed) < restarts:
                workers = wait_for(lambda: _new_workers(master, killed), timeout_s=60)
                for pid in workers[: restarts - len(killed)]:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            wait_for(lambda: _new_workers(master, killed), timeout_s=60)
            wait_for(lambda: local_stack.pay().status_code < 300, timeout_s=30)
        times_ms, series = _scrape(local_stack)
        files = len(list((directory / "local_stack" / "metrics").glob("*.db")))
        cpu_ms = _scrape_cpu_ms(local_stack)
    best, middle, slowest = min(times_ms), statistics.median(times_ms), max(times_ms)
    print(f"workers x kills                 {WORKERS} x {len(killed) // WORKERS}")
    print(f"series, files of metrics        {series} (at most {SERIES_MAX}), {files}")
    print(
        f"scrape, best, median, slowest   {best:.1f}, {middle:.1f}, {slowest:.1f} ms on the clock"
    )
    print(f"scrape, CPU of the ops plane    {cpu_ms:.1f} ms (at most {SCRAPE_MS_MAX})", flush=True)
    # Judged by CPU: on a busy machine the clock also measures other load.
    return cpu_ms < SCRAPE_MS_MAX and series <= SERIES_MAX


def bench_cost(payments: int, rounds: int) -> None:
    """The data plane's CPU for each payment, with metrics and logs on and off, in turn."""
    with _directory() as directory, ExitStack() as stack:
        (directory / "sitecustomize.py").write_text(QUIET)
        local_stacks = {
            kind: stack.enter_context(
                running_stack(
                    directory / kind.replace(" ", "-"), PYTHONPATH=str(directory), BENCH_OFF=off
                )
            )
            for kind, off in KINDS.items()
        }
        for local_stack in local_stacks.values():
            _pay(local_stack, payments // 4)
        cpu_ms: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(rounds):
            # Each round begins with another one.
            for kind in [*KINDS][number % len(KINDS) :] + [*KINDS][: number % len(KINDS)]:
                before_ms = _cpu_ms(local_stacks[kind].pids["data_plane"])
                _pay(local_stacks[kind], payments)
                after_ms = _cpu_ms(local_stacks[kind].pids["data_plane"])
                cpu_ms[kind].append((after_ms - before_ms) / payments)
        counted = {
            kind: local_stack.metric("holdfast_payments_total")
            for kind, local_stack in local_stacks.items()
        }
    assert counted["both off"] == counted["metrics off"] == 0 < counted["both on"]
    for kind in KINDS:
        ratios = [one / off for one, off in zip(cpu_ms[kind], cpu_ms["both off"], strict=True)]
        print(
            f"{kind:<15} {statistics.median(cpu_ms[kind]):6.3f} ms CPU a payment,"
            f" {statistics.median(ratios):5.3f} x both off ({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        # As root, PostgreSQL runs as another user.
        Path(directory).chmod(0o711)
        yield Path(directory)


def _new_workers(master: int, killed: set[int]) -> list[int]:
    """The workers, as soon as all have started and none was killed."""
    workers = [pid for pid in family(master) if parent(pid) == master]
    return workers if len(workers) == WORKERS and not killed & set(workers) else []


def _scrape(local_stack: RunningStack) -> tuple[list[float], int]:
    times_ms, text = [], ""
    with requests.Session() as session:
        for _ in range(SCRAPES):
            begin_s = time.perf_counter()
            text = session.get(f"{local_stack.ops_url}/metrics", timeout=10).text
            times_ms.append((time.perf_counter() - begin_s) * 1000)
    return times_ms, sum(not line.startswith("#") for line in text.splitlines())


def _scrape_cpu_ms(local_stack: RunningStack) -> float:
    before_ms = _cpu_ms(local_stack.pids["ops_plane"])
    _scrape(local_stack)
    return (_cpu_ms(local_stack.pids["ops_plane"]) - before_ms) / SCRAPES


def _cpu_ms(pid: int) -> float:
    """The kernel's CPU count of a process and its live children."""
    ticks = 0
    for one in family(pid):
        fields = read(f"/proc/{one}/stat").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * 1000 / TICKS_PER_S


def _pay(local_stack: RunningStack, payments: int) -> None:
    """Send this many payments from CALLERS that keep their connections."""
    host = urlsplit(local_stack.url).netloc
    headers = {"Authorization": f"Bearer {local_stack.api_key}", "Content-Type": "application/json"}
    body = json.dumps({"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa"})

    def call(share: int) -> None:
        with closing(http.client.HTTPConnection(host, timeout=15)) as connection:
            for _ in range(share):
                key = {"Idempotency-Key": str(uuid4())}
                connection.request("POST", "/v1/payments", body, {**headers, **key})
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 201, answer.status

    with ThreadPoolExecutor(CALLERS) as executor:
        list(executor.map(call, [payments // CALLERS] * CALLERS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restarts", type=int, default=200, help="workers killed (200)")
    parser.add_argument("--payments", type=int, default=800, help="in each turn (800)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind (5)")
    arguments = parser.parse_args()
    is_kept = bench_scrape(arguments.restarts)
    bench_cost(arguments.payments, arguments.rounds)
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
