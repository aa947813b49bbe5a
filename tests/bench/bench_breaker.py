"""Our breaker against pybreaker and bare circuitbreaker: `python -m tests.bench.bench_breaker`.

Four tables, each with ratios of one run: the cost of a call, the throughput of parallel threads, the
calls that a half-open breaker lets through to a provider that is still down, and the calls until
every worker has opened.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import circuitbreaker
import pybreaker

from service.resilience.breaker.breaker import Breaker, BreakerOpen
from service.resilience.breaker.rules import BreakerRules

CALLS = 20_000
ROUNDS = 7
HALF_OPEN_THREADS = 32
WORKERS = 4
THREADS = 8
FAILURES_TO_OPEN = 10
# A caller's wait for a dead provider, scaled down so that the run is short.
CALL_S = 0.05
PAUSE_S = 0.3
NAMES = ("holdfast", "pybreaker", "circuitbreaker")


class Down(Exception):
    """The error of a call to a dead provider."""


def main() -> None:
    table("A call that succeeds", "us a call", call_costs(), digits=2)
    table(
        f"Calls into a healthy provider, {THREADS} threads, {CALL_S * 1000:.0f} ms a call",
        "calls/s",
        {name: rate_side_by_side(name) for name in NAMES},
    )
    table(
        f"Calls let into a dead provider by a half-open breaker, {HALF_OPEN_THREADS} threads",
        "calls",
        {name: half_open_calls(name) for name in NAMES},
    )
    table(
        f"Calls into a dead provider until all is open, {WORKERS} workers x {THREADS} threads,"
        f" threshold {FAILURES_TO_OPEN}",
        "calls",
        {name: calls_to_open(name) for name in NAMES},
    )


def table(title: str, unit: str, figures: dict[str, float], *, digits: int = 0) -> None:
    print(f"\n{title}")
    for name, figure in figures.items():
        ratio = figure / figures["holdfast"]
        print(f"  {name:<32} {figure:>10.{digits}f} {unit:<10} {ratio:>6.2f} x")


# --- The cost of a call


def call_costs() -> dict[str, float]:
    """Medians over alternating rounds, so that a noisy moment affects all equally."""
    with tempfile.TemporaryDirectory() as home:
        shared = Breaker("bench", page_path=Path(home) / "state")
        decorated = Breaker("bench")
        ways = {
            "holdfast": partial(_admit_and_record, shared),
            "holdfast as a decorator": decorated(_nothing),
            "pybreaker": partial(pybreaker.CircuitBreaker().call, _nothing),
            "circuitbreaker": circuitbreaker.CircuitBreaker()(_nothing),
            "no breaker": _nothing,
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, call in ways.items():
                taken[name].append(_cost_us(call))
        shared.close()
        decorated.close()
    return {name: median(costs) for name, costs in taken.items()}


def _cost_us(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began_s) / CALLS * 1e6


def _admit_and_record(breaker: Breaker) -> None:
    with breaker.admit() as permit:
        _nothing()
        permit.record(failed=False)


def _nothing() -> None:
    return None


# --- The throughput of parallel threads


def rate_side_by_side(name: str) -> float:
    guarded, made = _guarded(name, None, is_dead=False)
    began_s = time.perf_counter()
    _in_threads(THREADS, lambda: [guarded() for _ in range(5)])
    return len(made) / (time.perf_counter() - began_s)


# --- The calls that a half-open breaker lets through


def half_open_calls(name: str) -> float:
    guarded, made = _guarded(name, None)
    while _failed_call(guarded):
        pass
    time.sleep(PAUSE_S * 1.5)
    before = len(made)
    together = threading.Barrier(HALF_OPEN_THREADS)
    _in_threads(HALF_OPEN_THREADS, lambda: (together.wait(), _failed_call(guarded)))
    return len(made) - before


# --- The calls until every worker has opened


def calls_to_open(name: str) -> float:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as home:
        together, counts = context.Barrier(WORKERS), context.SimpleQueue()
        workers = [
            context.Process(target=_work, args=(name, Path(home) / "state", together, counts))
            for _ in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(counts.get() for _ in workers)


def _work(name: str, page_path: Path, together: object, counts: object) -> None:
    guarded, made = _guarded(name, page_path)
    together.wait()  # type: ignore[attr-defined]
    until_s = time.monotonic() + 10

    def call_until_refused() -> None:
        while time.monotonic() < until_s and _failed_call(guarded):
            pass

    _in_threads(THREADS, call_until_refused)
    counts.put(len(made))  # type: ignore[attr-defined]


# --- The three breakers, set up equally


def _guarded(
    name: str, page_path: Path | None, *, is_dead: bool = True
) -> tuple[Callable[[], object], list[int]]:
    """A call to a provider behind the breaker of that name, and the calls that reached it."""
    logging.disable()
    made: list[int] = []

    def call() -> None:
        made.append(1)
        time.sleep(CALL_S)
        if is_dead:
            raise Down

    if name == "holdfast":
        rules = BreakerRules(minimum_calls=FAILURES_TO_OPEN, open_s=PAUSE_S)
        return Breaker("bench", rules=rules, page_path=page_path)(call), made
    if name == "pybreaker":
        breaker = pybreaker.CircuitBreaker(fail_max=FAILURES_TO_OPEN, reset_timeout=PAUSE_S)
        return partial(breaker.call, call), made
    return (
        circuitbreaker.CircuitBreaker(failure_threshold=FAILURES_TO_OPEN, recovery_timeout=PAUSE_S)(
            call
        ),
        made,
    )


def _failed_call(guarded: Callable[[], object]) -> bool:
    """Make one call; False: it was refused."""
    try:
        guarded()
    except Down:
        return True
    except (BreakerOpen, circuitbreaker.CircuitBreakerError, pybreaker.CircuitBreakerError):
        return False
    return True


def _in_threads(count: int, work: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
