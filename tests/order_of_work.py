"""The order of test files on several workers, and the progress output of a run.

Processor time decides the duration of a run, and many tests wait for processes and deadlines in between. The longest files start
first, and one worker in three takes the shortest files: the processors stay busy, and most failures appear early. tests/durations.json holds
the durations of the last measured run.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import cluster_template

DURATIONS = Path(__file__).with_name("durations.json")
# A file without a measured duration counts as long: at worst it starts too early.
NOT_MEASURED_S = 30.0
# Every third worker takes the shortest files.
SHORT_SHARE = 3
SILENT_S = 30.0
WORKERS_A_PROCESSOR = 2
# An instance has about twenty processes.
HOUSE_BYTES = 1 << 30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-durations",
        action="store_true",
        help="store the duration of each file, for the order of the next runs",
    )


def pytest_configure(config: pytest.Config) -> None:
    # No collection during the imports; see pytest_collection_finish.
    gc.disable()
    # Only the controlling process prints.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Course(config), "course")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two for each processor: some tests wait, but each worker costs its collection and its servers.

    Fewer where the memory is too small.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(WORKERS_A_PROCESSOR * (os.cpu_count() or 1), memory // HOUSE_BYTES))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by file, longest first; the random order within a file stays."""
    if hasattr(config, "workerinput"):
        durations_s = measured_s()
        items.sort(key=lambda item: _order(file_of(item.nodeid), durations_s))


def pytest_collection_finish() -> None:
    """Leave modules and tests out of all later collections: they live to the end."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class FromBothEnds(LoadFileScheduling):
        """Schedule whole files, because the tests of a file share fixtures."""

        def _assign_work_unit(self, node: Any) -> None:
            if _takes_short(node.gateway.id):
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

        def _reschedule(self, node: Any) -> None:
            # A worker needs the next test before it runs the current one. A longer queue would wait
            # behind a long test while another worker is idle.
            if not self.workqueue or self._pending_of(self.assigned_work[node]) <= 1:
                super()._reschedule(node)

    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return FromBothEnds(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run one test with a time limit at a time, over all workers of the run.

    A wrapper around the whole test, not a fixture: the wait for the others is no part of the test's own timeout.
    """
    if item.get_closest_marker("measures") is None:
        return (yield)
    with cluster_template.of_run("measuring.lock").open("w") as semaphore:
        fcntl.flock(semaphore, fcntl.LOCK_EX)
        return (yield)


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def measured_s() -> dict[str, float]:
    """The stored duration of each file."""
    return dict(json.loads(DURATIONS.read_text())) if DURATIONS.exists() else {}


def _order(file: str, durations_s: dict[str, float]) -> tuple[float, str]:
    return -durations_s.get(file, NOT_MEASURED_S), file


def _takes_short(worker: str) -> bool:
    return int(worker.removeprefix("gw")) % SHORT_SHARE == SHORT_SHARE - 1


class Course:
    """Prints failures at once, the running tests after a silence, and the seed at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._begun_s: dict[str, float] = {}
        self._took_s: Counter[str] = Counter()
        self._told_s = time.monotonic()
        self._over = threading.Event()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        threading.Thread(target=self._watch, name="course", daemon=True).start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._begun_s[nodeid] = self._told_s = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._begun_s.pop(nodeid, None)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._told_s = time.monotonic()
        self._took_s[file_of(report.nodeid)] += report.duration
        if report.failed:
            self._tell(f"FAILED {report.nodeid} ({report.when}): {_why(report)}", red=True)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._over.set()
        if self._config.getoption("write_durations"):
            kept = {**measured_s(), **{name: round(s, 1) for name, s in self._took_s.items()}}
            kept = {name: s for name, s in kept.items() if (self._config.rootpath / name).exists()}
            DURATIONS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        seed = self._config.getoption("randomly_seed", None)
        if seed is not None:
            terminalreporter.write_line(f"The order was random: -p randomly --randomly-seed={seed}")

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            silent_s = time.monotonic() - self._told_s
            if silent_s >= SILENT_S and (running := sorted(self._begun_s.items())):
                self._told_s = time.monotonic()
                self._tell(
                    "still running: "
                    + ", ".join(f"{name} ({self._told_s - at:.0f} s)" for name, at in running)
                )

    def _tell(self, line: str, **markup: bool) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            if terminal._tw.width_of_current_line:
                terminal._tw.line()
            terminal.write_line(line, **markup)


def _why(report: pytest.TestReport) -> str:
    """The first line of the failure."""
    crash = getattr(report.longrepr, "reprcrash", None)
    said = crash.message if crash is not None else str(report.longrepr).strip()
    return str(said.splitlines()[0]) if said else "no reason given"
