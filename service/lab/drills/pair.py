"""Two short-lived copies of the service: `experiment` behind a fault proxy, `control` without."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import requests

from service.lab.drills.expectations import Samples
from service.lab.drills.links import FaultLinks
from service.lab.drills.targets import CannotStart, LogTail, Target
from service.lab.faultproxy.client import FaultClient, ProxyGone
from service.observability.metrics.registry import SharedRegistry, read_samples
from service.process.file_lock import lock_fileno
from service.process.managed import ManagedProcess
from service.process.ports import free_port

log = logging.getLogger(__name__)

# A copy has one worker, so that it takes little from the real ones.
COPY_POOL_SIZE = 4
COPY_THREADS = 12
START_TIMEOUT_S = 45.0
# A copy answers or refuses its open requests within this time; no caller waits for it longer.
COPY_GRACE_S = 5.0
# Real payments have priority for the cores, above all while the copies start.
COPY_NICENESS = 10
HOME_PREFIX = "holdfast-pair-"
# Settings that belong to the instance itself, or that a copy would otherwise read from a file.
_NOT_INHERITED = (
    *("PROMETHEUS_MULTIPROC_DIR", "DATABASE_URL_FILE", "HOLDFAST_FAULT_PROXY_CONTROL"),
    *("HOLDFAST_BOOTSTRAP_API_KEY", "HOLDFAST_BOOTSTRAP_API_KEY_FILE"),
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two copies on separate ports, with the same database and the same provider."""

    provider_url: str
    database_url: str
    # Includes the secrets: the copies read their settings from it, as this process did.
    environ: Mapping[str, str]
    root: Path

    @contextlib.contextmanager
    def targets(self) -> Iterator[list[Target]]:
        """Start both copies, and stop them at the end; on CannotStart no process remains."""
        with contextlib.ExitStack() as stack:
            home, lock_fd = stack.enter_context(_home())
            links = FaultLinks(
                home / "links", provider_url=self.provider_url, database_url=self.database_url
            )
            stack.callback(links.close)
            proxy = ManagedProcess(
                links.command,
                log_path=home / "fault-proxy.log",
                env=dict(self.environ),
                cwd=self.root,
                inherited_fds=[*links.filenos, lock_fd],
            )
            stack.callback(proxy.stop)
            behind = {
                "HOLDFAST_PROVIDER_PROXY_URL": links.provider_proxy_url,
                "DATABASE_URL": links.database_url,
            }
            copies: dict[str, tuple[ManagedProcess, str]] = {}
            for name, changed in (
                ("experiment", behind),
                ("control", {"DATABASE_URL": self.database_url}),
            ):
                process, url = copies[name] = self._start(home / name, changed, lock_fd)
                stack.callback(process.stop)
                # Start them one after the other: two at once would leave no core to real payments.
                _wait_until_ready(process, url)
            # This callback runs first: it signals all copies, then each is awaited.
            for process, _url in copies.values():
                stack.callback(process.release)
            fault_client = stack.enter_context(_hold(links.control_path))
            yield [
                Target(
                    name=name,
                    url=url,
                    read=_reader(home / name / "metrics"),
                    log=LogTail(process.log_path),
                    fault_client=fault_client if name == "experiment" else None,
                    master_pid=process.pid,
                )
                for name, (process, url) in copies.items()
            ]

    def _start(
        self, home: Path, changed: Mapping[str, str], lock_fd: int
    ) -> tuple[ManagedProcess, str]:
        home.mkdir()
        bind = f"127.0.0.1:{free_port()}"
        process = ManagedProcess(
            _gently([sys.executable, "-m", "service", "serve"]),
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
                "HOLDFAST_DRAIN_S": "0.01",
                "HOLDFAST_SIMULATION_ENABLED": "false",
                **changed,
            },
            cwd=self.root,
            grace_s=COPY_GRACE_S,
            inherited_fds=[lock_fd],
        )
        return process, f"http://{bind}"


def _gently(command: list[str]) -> list[str]:
    """The command with a lower priority, where the machine has `nice`."""
    nice = shutil.which("nice")
    return [nice, "-n", str(COPY_NICENESS), *command] if nice else command


def sweep_leftovers() -> None:
    """Remove the home of each pair that outlived its ops plane, after its last process has ended.

    The processes end by themselves; only the files need a cleanup.
    """
    for home in Path(tempfile.gettempdir()).glob(f"{HOME_PREFIX}*"):
        try:
            lock_fd = _locked(home)
        except OSError:
            continue  # Removed by another sweep, or owned by another user.
        shutil.rmtree(home, ignore_errors=True)
        os.close(lock_fd)
        log.info("rehearsal.leftover_removed", extra={"path": str(home)})


@contextlib.contextmanager
def _home() -> Iterator[tuple[Path, int]]:
    """A directory for this pair, removed at the end, and the lock that shows a sweep its users."""
    home = Path(tempfile.mkdtemp(prefix=HOME_PREFIX))
    lock_fd = _locked(home)
    try:
        yield home, lock_fd
    finally:
        shutil.rmtree(home, ignore_errors=True)
        os.close(lock_fd)


def _locked(home: Path) -> int:
    """The directory's lock, once it is free: each process of a pair inherits it."""
    lock_fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    # No limit: a pair holds it for as long as one of its processes lives.
    lock_fileno(lock_fd, wait_s=math.inf)
    return lock_fd


def _reader(path: Path) -> Callable[[], Samples]:
    registry = SharedRegistry(path)
    return lambda: read_samples(registry)


def _hold(control_path: Path) -> FaultClient:
    """A client of a proxy that has just been started."""
    give_up_at_s = monotonic() + START_TIMEOUT_S
    while True:
        try:
            return FaultClient(control_path)
        except ProxyGone as error:
            if monotonic() > give_up_at_s:
                raise CannotStart(str(error)) from error
            sleep(0.05)


def _wait_until_ready(process: ManagedProcess, url: str) -> None:
    give_up_at_s = monotonic() + START_TIMEOUT_S
    with requests.Session() as session:
        session.trust_env = False
        while True:
            with contextlib.suppress(requests.RequestException):
                if session.get(f"{url}/readyz", timeout=2).status_code == 200:
                    return
            if process.poll() is not None or monotonic() > give_up_at_s:
                said = " ".join(process.lines()[-3:])
                raise CannotStart(f"A copy of the service did not start: {said}"[:500])
            sleep(0.05)
