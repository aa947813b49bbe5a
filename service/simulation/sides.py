"""What a rehearsal acts on: this instance itself, or a pair of short-lived copies of the service."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import requests

from service.observability.registry import SharedRegistry, read_samples
from service.observability.window import Window
from service.resilience.lifeline import Kept
from service.simulation.expectations import Samples
from service.simulation.links import Links
from service.simulation.processes import children_of
from service.simulation.strike import ProxyGone, Striker

# A copy is one worker: small enough to stand beside the real ones.
COPY_POOL_SIZE = 4
COPY_THREADS = 12
START_TIMEOUT_S = 20.0
# Not a copy's: what belongs to the instance it stands beside, or would be read from a file instead.
_NOT_INHERITED = (
    *("PROMETHEUS_MULTIPROC_DIR", "DATABASE_URL_FILE", "HOLDFAST_FAULT_PROXY_CONTROL"),
    *("HOLDFAST_BOOTSTRAP_API_KEY", "HOLDFAST_BOOTSTRAP_API_KEY_FILE"),
)


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
    # Ends every connection to its database; what was done, in words. None: only the link can.
    restart_database: Callable[[], str] | None = None

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
    restart_database: Callable[[], str]

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


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two copies on ports of their own, on the same database and with the same provider."""

    provider_url: str
    database_url: str
    # With the secrets: the copies read their settings from it, as this process did.
    environ: Mapping[str, str]
    root: Path

    @contextlib.contextmanager
    def sides(self) -> Iterator[list[Side]]:
        """`experiment` with a fault proxy on its links and `control` without; stopped at the end."""
        home = Path(tempfile.mkdtemp(prefix="holdfast-pair-"))
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            links = Links(
                home / "links", provider_url=self.provider_url, database_url=self.database_url
            )
            stack.callback(links.close)
            proxy = Kept(
                links.command,
                log_path=home / "fault-proxy.log",
                env=dict(self.environ),
                cwd=self.root,
                inherited_fds=links.filenos,
            )
            stack.callback(proxy.stop)
            behind = {
                "HOLDFAST_PROVIDER_PROXY_URL": links.provider_proxy_url,
                "DATABASE_URL": links.database_url,
            }
            copies = {
                "experiment": self._start(home / "experiment", behind),
                "control": self._start(home / "control", {"DATABASE_URL": self.database_url}),
            }
            for kept, _url in copies.values():
                stack.callback(kept.stop)
                # All at once, then each waited for.
                stack.callback(kept.release)
            for kept, url in copies.values():
                _wait_until_ready(kept, url)
            striker = stack.enter_context(_hold(links.control_path))
            yield [
                Side(
                    name=name,
                    url=url,
                    read=_reader(home / name / "metrics"),
                    log=LogTail(kept.log_path),
                    striker=striker if name == "experiment" else None,
                    master_pid=kept.pid,
                )
                for name, (kept, url) in copies.items()
            ]

    def _start(self, home: Path, changed: Mapping[str, str]) -> tuple[Kept, str]:
        home.mkdir()
        bind = f"127.0.0.1:{_free_port()}"
        kept = Kept(
            [sys.executable, "-m", "service", "serve"],
            log_path=home / "data-plane.log",
            env={
                **{
                    name: value
                    for name, value in self.environ.items()
                    if name not in _NOT_INHERITED
                },
                "HOLDFAST_HOME": str(home),
                "HOLDFAST_BIND": bind,
                "HOLDFAST_WEB_WORKERS": "1",
                "HOLDFAST_WEB_THREADS": str(COPY_THREADS),
                "HOLDFAST_DB_POOL_SIZE": str(COPY_POOL_SIZE),
                "HOLDFAST_GRACEFUL_STOP_S": "3",
                "HOLDFAST_DRAIN_S": "0.01",
                "HOLDFAST_SIMULATION_ENABLED": "false",
                **changed,
            },
            cwd=self.root,
            grace_s=5.0,
        )
        return kept, f"http://{bind}"


def _reader(path: Path) -> Callable[[], Samples]:
    registry = SharedRegistry(path)
    return lambda: read_samples(registry)


def _hold(control_path: Path) -> Striker:
    """A hold on a proxy that was started a moment ago."""
    give_up_at_s = monotonic() + START_TIMEOUT_S
    while True:
        try:
            return Striker(control_path)
        except ProxyGone as error:
            if monotonic() > give_up_at_s:
                raise CannotStart(str(error)) from error
            sleep(0.05)


def _wait_until_ready(kept: Kept, url: str) -> None:
    give_up_at_s = monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        if kept.poll() is not None or monotonic() > give_up_at_s:
            said = " ".join(kept.lines()[-3:])
            raise CannotStart(f"A copy of the service did not start: {said}"[:500])
        sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
