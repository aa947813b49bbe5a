"""The targets of a drill as the drill sees them; the simplest target is this instance."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.lab.drills.expectations import Samples
from service.lab.drills.processes import children_of
from service.lab.faultproxy.client import FaultClient, ProxyGone
from service.observability.metrics.window import Window


class CannotStart(Exception):
    """The targets of a drill cannot be started; the message gives the reason."""


class LogTail:
    """The events that a part logs from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size if path.exists() else 0

    def events(self) -> Iterator[dict[str, Any]]:
        """All events so far, oldest first; lines that are not events are skipped."""
        for path, start in self._pieces():
            with contextlib.suppress(OSError), path.open("rb") as log:
                log.seek(start)
                for line in log:
                    with contextlib.suppress(ValueError):
                        event = json.loads(line)
                        if isinstance(event, dict):
                            yield event

    def _pieces(self) -> list[tuple[Path, int]]:
        size = self._path.stat().st_size if self._path.exists() else 0
        if size >= self._start:
            return [(self._path, self._start)]
        # The log was rotated; the old file is beside the new one.
        return [(Path(f"{self._path}.1"), self._start), (self._path, 0)]


@dataclass(kw_only=True)
class Target:
    """One copy of the service as a drill sees it."""

    name: str
    url: str
    read: Callable[[], Samples]
    log: LogTail | None
    # None: its links have no fault proxy.
    fault_client: FaultClient | None = None
    # The process whose children are the workers; None: not visible from this process.
    master_pid: int | None = None
    # Restarts the database and returns a description. None, here or returned: only the link can fail.
    restart_database: Callable[[], str | None] | None = None

    def workers_ready(self) -> int:
        """The number of workers with an open pool: the last step before a worker serves."""
        pools = Window({}, self.read(), 0.0).values_by("worker", "db_pool_size")
        return sum(worker.startswith("web-") for worker in pools)

    def kill_a_worker(self) -> int | None:
        """Kill -9 of one worker; its process id, or None where no worker is visible."""
        workers = children_of(self.master_pid) if self.master_pid else []
        if not workers:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(workers[0], signal.SIGKILL)
        return workers[0]


@dataclass(frozen=True, kw_only=True)
class OwnInstance:
    """This instance: its data plane, its metrics, and the fault proxy on its links."""

    url: str
    home: Path
    control_path: Path | None
    read: Callable[[], Samples]
    restart_database: Callable[[], str | None]

    @contextlib.contextmanager
    def targets(self) -> Iterator[list[Target]]:
        """The only target, with a client of its fault proxy where there is one."""
        log_path = self.home / "logs" / "data-plane.log"
        with contextlib.ExitStack() as stack:
            fault_client = None
            if self.control_path is not None:
                try:
                    fault_client = stack.enter_context(FaultClient(self.control_path))
                except ProxyGone as error:
                    raise CannotStart(str(error)) from error
            yield [
                Target(
                    name="instance",
                    url=self.url,
                    read=self.read,
                    # Elsewhere the events go to standard output, for a log collector.
                    log=LogTail(log_path) if log_path.exists() else None,
                    fault_client=fault_client,
                    master_pid=self._master_pid(),
                    restart_database=self.restart_database,
                )
            ]

    def _master_pid(self) -> int | None:
        try:
            pids = json.loads((self.home / "run.json").read_text())["pids"]
            return int(pids["data_plane"])
        except (OSError, ValueError, KeyError):
            return None
