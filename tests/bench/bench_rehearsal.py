"""A drill on a pair: its cost for real payments, as their p99 with and without it, in one run.

    python -m tests.bench rehearsal

Quiet windows and drills in turn, at a steady rate; the start and end of the copies count too.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import requests

from tests.bench.bench_outage import Answer, Load
from tests.support.stack.running_stack import RunningStack, running_stack, wait_for

ROUNDS = 4
RATE = 20.0
QUIET_S = 20.0
FAULT_S = 10
LIMIT_RATIO = 1.25


def main() -> int:
    """Print both figures and their ratio; 1 when it is above its limit."""
    with (
        tempfile.TemporaryDirectory() as home,
        running_stack(Path(home) / "local_stack") as local_stack,
    ):
        for _ in range(50):
            local_stack.pay(reference="warm-up")
        load = Load(local_stack, monotonic())
        quiet_s, starting_s, rehearsed_s = [], [], []
        with _steadily(load):
            for _ in range(ROUNDS):
                began_s = monotonic()
                sleep(QUIET_S)
                quiet_s.append((began_s, monotonic()))
                began_s = monotonic()
                ready_s = _rehearse(local_stack)
                starting_s.append((began_s, ready_s))
                rehearsed_s.append((began_s, monotonic()))
    quiet, starting, rehearsed = (
        _within(load, spans) for spans in (quiet_s, starting_s, rehearsed_s)
    )
    ratio = _ms(rehearsed, 99) / _ms(quiet, 99)
    print(f"real payments                 {len(quiet)} quiet, {len(rehearsed)} beside a pair")
    print(f"not answered 201              {sum(a.status != 201 for a in load.answers)}")
    print(f"p50 quiet, beside a pair      {_ms(quiet, 50):.1f}, {_ms(rehearsed, 50):.1f} ms")
    print(f"p99 quiet, beside a pair      {_ms(quiet, 99):.1f}, {_ms(rehearsed, 99):.1f} ms")
    print(f"p99 while the copies start    {_ms(starting, 99):.1f} ms ({len(starting)} payments)")
    print(f"ratio of the p99              {ratio:.2f} (limit {LIMIT_RATIO})")
    return int(ratio > LIMIT_RATIO)


@contextmanager
def _steadily(load: Load) -> Iterator[None]:
    """Send payments at their times, independent of earlier results, until the block ends."""
    stopping = threading.Event()

    def run() -> None:
        with ThreadPoolExecutor(32) as callers:
            next_s = monotonic()
            while not stopping.wait(max(0.0, next_s - monotonic())):
                next_s += 1 / RATE
                callers.submit(load.pay)

    clock = threading.Thread(target=run)
    clock.start()
    try:
        yield
    finally:
        stopping.set()
        clock.join()


def _rehearse(local_stack: RunningStack) -> float:
    """Run one simulation on a pair until its copies end; returns the time at which they were ready."""
    headers = {"Authorization": f"Bearer {local_stack.api_key}"}
    begun = requests.post(
        f"{local_stack.ops_url}/simulate/payment-timeout",
        json={"scope": "pair", "ttl_s": FAULT_S},
        headers=headers,
        timeout=10,
    )
    begun.raise_for_status()
    where = local_stack.ops_url + begun.headers["Location"]

    def run() -> dict[str, str]:
        document: dict[str, str] = requests.get(where, timeout=10).json()
        return document

    wait_for(lambda: run()["phase"] != "starting", timeout_s=60)
    ready_s = monotonic()
    ended = wait_for(lambda: (seen := run())["status"] == "ended" and seen, timeout_s=120)
    if ended["verdict"] != "SHOWN":
        raise SystemExit(f"The rehearsal proved nothing: {ended['summary']}")
    return ready_s


def _within(load: Load, spans: list[tuple[float, float]]) -> list[Answer]:
    began_s = load.began_s
    return [
        answer
        for answer in load.answers
        if any(first <= began_s + answer.at_s < last for first, last in spans)
    ]


def _ms(answers: list[Answer], percentile: int) -> float:
    return statistics.quantiles([a.took_s * 1000 for a in answers], n=100)[percentile - 1]


if __name__ == "__main__":
    raise SystemExit(main())
