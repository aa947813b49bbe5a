"""What a rehearsal acts on, as it sees it; the simplest of it is this instance itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.observability.window import Window
from service.simulation.expectations import Samples
from service.simulation.processes import children_of
from service.simulation.strike import ProxyGone, Striker


class CannotStart(Exception):
    """The sides of a rehearsal cannot be had; the message says why."""


class LogTail:
    """The events that a part logs from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size if path.exists() else 0

    def events(self) -> Iterator[dict[str, Any]]:
        """All of them so far, oldest first; lines that are no events are left out."""
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
        # A new file was begun meanwhile; the old one is beside it.
        return [(Path(f"{self._path}.1"), self._start), (self._path, 0)]


@dataclass(kw_only=True)
class Side:
    """One copy of the service as a rehearsal sees it."""

    name: str
    url: str
    read: Callable[[], Samples]
    log: LogTail | None
    # None: nothing can be put on its links.
    striker: Striker | None = None
    # The process whose children are the workers; None: not known here.
    master_pid: int | None = None
    # Restarts its database: what was done, in words. None, as its answer too: only the link can.
    restart_database: Callable[[], str | None] | None = None

    def workers_ready(self) -> int:
        """How many workers have their pool: the last thing before one serves."""
        pools = Window({}, self.read(), 0.0).values_by("worker", "db_pool_size")
        return sum(worker.startswith("web-") for worker in pools)

    def kill_a_worker(self) -> int | None:
        """Kill -9 of one worker; its process id, None where there is none to be seen."""
        workers = children_of(self.master_pid) if self.master_pid else []
        if not workers:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(workers[0], signal.SIGKILL)
        return workers[0]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """This instance: its data plane, its metrics, and the fault proxy on its links."""

    url: str
    home: Path
    control_path: Path | None
    read: Callable[[], Samples]
    restart_database: Callable[[], str | None]

    @contextlib.contextmanager
    def sides(self) -> Iterator[list[Side]]:
        """The one side, with a hold on its links where they can be struck."""
        log_path = self.home / "logs" / "data-plane.log"
        with contextlib.ExitStack() as stack:
            striker = None
            if self.control_path is not None:
                try:
                    striker = stack.enter_context(Striker(self.control_path))
                except ProxyGone as error:
                    raise CannotStart(str(error)) from error
            yield [
                Side(
                    name="instance",
                    url=self.url,
                    read=self.read,
                    # Elsewhere the events go to standard output, and from there to who collects.
                    log=LogTail(log_path) if log_path.exists() else None,
                    striker=striker,
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
