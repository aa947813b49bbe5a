"""The console's cost: its first paint and its bytes, its polling, and its growth while it stays open.

    python -m tests.bench console
    python -m tests.bench.bench_console --open-s 60

Runs in real Chromium on a real local stack that processes payments.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from playwright.sync_api import Browser, Page

from tests.shipped.console.console_browser import chromium, console
from tests.support.stack.running_stack import RunningStack, running_stack

PAINT_LIMIT_MS = 1000
BYTES_LIMIT = 150_000
POLLING_LIMIT = 0.01
# The allowed growth of a page that stays open, after a garbage collection.
GROWN_BYTES_MAX = 1_000_000
GROWN_NODES_MAX = 100
GROWN_LISTENERS_MAX = 5
LOADS = 5
OPEN_S = 600.0
# Long enough for several polls of all data, and for the lists on the page to be full.
SETTLE_S = 45.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--open-s", type=float, default=OPEN_S, help="how long the page stays open (600)"
    )
    open_s = parser.parse_args().open_s
    with (
        tempfile.TemporaryDirectory() as home,
        running_stack(Path(home) / "local_stack") as local_stack,
        chromium() as browser,
        _payments(local_stack),
    ):
        paint_ms, size = _first_paint(browser, local_stack)
        print(f"first paint (median of {LOADS})     {paint_ms:.0f} ms (limit {PAINT_LIMIT_MS})")
        print(f"bytes in all, as sent         {size} (limit {BYTES_LIMIT})")
        polling, alone = _cost_of_polling(browser, local_stack)
        print(
            f"ops plane, share of a core    {alone:.2%} alone, {alone + polling:.2%} with a page:"
            f" {polling:.2%} for its polling (limit {POLLING_LIMIT:.0%})"
        )
        before, after = _left_open(browser, local_stack, open_s)
    grown = {name: after[name] - before[name] for name in after}
    print(
        f"left open for {open_s:.0f} s            heap {before['JSHeapUsedSize'] / 1e6:.2f} to"
        f" {after['JSHeapUsedSize'] / 1e6:.2f} MB, nodes {before['Nodes']:.0f} to"
        f" {after['Nodes']:.0f}, listeners {before['JSEventListeners']:.0f} to"
        f" {after['JSEventListeners']:.0f}"
    )
    is_kept = (
        paint_ms < PAINT_LIMIT_MS
        and size < BYTES_LIMIT
        and polling < POLLING_LIMIT
        and grown["JSHeapUsedSize"] <= GROWN_BYTES_MAX
        and grown["Nodes"] <= GROWN_NODES_MAX
        and grown["JSEventListeners"] <= GROWN_LISTENERS_MAX
    )
    return int(not is_kept)


def _first_paint(browser: Browser, local_stack: RunningStack) -> tuple[float, int]:
    """The median first paint in fresh contexts, and the bytes of the page with its first state."""
    paints, sizes = [], []
    for _ in range(LOADS):
        with console(browser, local_stack) as seen:
            page = seen.open()
            paints.append(
                page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            )
            sizes.append(_bytes_of(page))
    return statistics.median(paints), max(sizes)


def _bytes_of(page: Page) -> int:
    return int(
        page.evaluate(
            "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
            ".reduce((sum, entry) => sum + entry.transferSize, 0)"
        )
    )


def _cost_of_polling(
    browser: Browser, local_stack: RunningStack, rounds: int = 3, each_s: float = 20.0
) -> tuple[float, float]:
    """The ops plane's CPU added by a visible page, and its CPU without a page, as shares of a core."""
    added, alone = [], []
    for _ in range(rounds):
        # The ops plane's readings slow down again some time after the last page is closed.
        sleep(35)
        without = _share_of_core(local_stack, each_s)
        with console(browser, local_stack) as seen:
            seen.open()
            sleep(5)
            added.append(_share_of_core(local_stack, each_s) - without)
        alone.append(without)
    return statistics.median(added), statistics.median(alone)


def _share_of_core(local_stack: RunningStack, seconds: float) -> float:
    began_s, used_s = monotonic(), _cpu_s(local_stack)
    sleep(seconds)
    return (_cpu_s(local_stack) - used_s) / (monotonic() - began_s)


def _cpu_s(local_stack: RunningStack) -> float:
    """The CPU time of all ops plane processes."""
    master = local_stack.pids["ops_plane"]
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    ticks = 0
    for pid in (master, *children):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _left_open(
    browser: Browser, local_stack: RunningStack, open_s: float
) -> tuple[dict[str, float], dict[str, float]]:
    """The page's memory after a while and after `open_s` more, each after a garbage collection."""
    with console(browser, local_stack) as seen:
        page = seen.open()
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        page.wait_for_timeout(SETTLE_S * 1000)
        before = _held(devtools)
        page.wait_for_timeout(open_s * 1000)
        return before, _held(devtools)


def _held(devtools: Any) -> dict[str, float]:
    devtools.send("HeapProfiler.collectGarbage")
    wanted = ("JSHeapUsedSize", "Nodes", "JSEventListeners")
    held = devtools.send("Performance.getMetrics")["metrics"]
    return {one["name"]: one["value"] for one in held if one["name"] in wanted}


@contextmanager
def _payments(local_stack: RunningStack) -> Iterator[None]:
    """One payment a second, so that the page has data."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.wait(1.0):
            local_stack.pay(reference="bench")

    payer = threading.Thread(target=run)
    payer.start()
    try:
        yield
    finally:
        stopping.set()
        payer.join()


if __name__ == "__main__":
    raise SystemExit(main())
