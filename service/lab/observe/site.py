"""Starts a local stack together with its monitoring, watches all of it, and stops it together."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

from service.lab.local.stack import PartDied
from service.lab.observe import programs
from service.lab.observe.pager import Pager
from service.lab.observe.programs import Program
from service.process.managed import ManagedProcess
from service.settings import Settings, SettingsError
from service.startup.gunicorn import ROOT
from service.startup.ports import free_bind

# A cold start installs a database; Grafana creates another.
START_WAIT_S = 90.0
# The stack stops one part after the other, each with its own grace period.
STACK_GRACE_S = 60.0
# Loopback answers quickly, but this machine runs all parts at once.
ANSWER_TIMEOUT_S = 10.0
# The default ports of the programs.
PORTS = {"prometheus": 9090, "alertmanager": 9093, "grafana": 3000}


@dataclass(frozen=True, slots=True)
class Site:
    """The running parts and their addresses."""

    # The local stack's run.json: addresses, key, the fault proxy's control socket.
    run: Mapping[str, Any]
    pager: Pager
    # URLs of the installed programs, by name.
    urls: Mapping[str, str]
    parts: dict[str, ManagedProcess] = field(default_factory=dict)

    def require_alive(self) -> None:
        """Raise PartDied when a part has ended unexpectedly."""
        for name, part in self.parts.items():
            if part.poll() is not None:
                raise PartDied(name, part)

    def firing(self, since: datetime) -> set[str]:
        """The alerts that Alertmanager has listed as firing since before this moment."""
        if "alertmanager" not in self.urls:
            return set()
        alerts = json.loads(_get(urlsplit(self.urls["alertmanager"]).netloc, "/api/v2/alerts")[1])
        return {
            alert["labels"]["alertname"]
            for alert in alerts
            if datetime.fromisoformat(alert["startsAt"]) <= since
        }

    def metric(self, name: str, *labels: str) -> float:
        """The sum of a metric's series on the ops plane that match the labels (`state="open"`)."""
        text = _get(urlsplit(self.run["ops_url"]).netloc, "/metrics")[1]
        series = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return sum(
            float(value)
            for told, _, value in series
            if told.partition("{")[0] == name and all(label in told for label in labels)
        )


@contextlib.contextmanager
def observed_stack(
    settings: Settings,
    environ: Mapping[str, str],
    tell: Callable[[str], None],
    *,
    hurry_s: float | None = None,
) -> Iterator[Site]:
    """Start a local stack, with the installed ones of Prometheus, Alertmanager and Grafana."""
    home = settings.home.absolute()
    parts: dict[str, ManagedProcess] = {}
    with contextlib.ExitStack() as stack:
        pager = stack.enter_context(Pager(tell))
        # Stop in the reverse order of the start.
        stack.callback(lambda: [part.stop() for part in reversed(parts.values())])
        parts["local_stack"] = _start_local_stack(home, environ)
        run = _wait_for_local_stack(home, parts["local_stack"])
        watchers = _watchers(home / "observe", run, pager, hurry_s)
        for watcher in watchers:
            parts[watcher.name] = _keep(watcher, home, environ)
        for watcher in watchers:
            _wait_until_ready(watcher, parts[watcher.name])
        yield Site(run, pager, {watcher.name: watcher.url for watcher in watchers}, parts)


def _start_local_stack(home: Path, environ: Mapping[str, str]) -> ManagedProcess:
    return ManagedProcess(
        [sys.executable, "-m", "service", "run", "--end-with-parent"],
        log_path=home / "logs" / "local-stack.log",
        env={**environ, "HOLDFAST_HOME": str(home)},
        cwd=ROOT,
        grace_s=STACK_GRACE_S,
    )


def _keep(program: Program, home: Path, environ: Mapping[str, str]) -> ManagedProcess:
    return ManagedProcess(
        program.command,
        log_path=home / "logs" / f"{program.name}.log",
        env={**environ, **program.env},
        cwd=home,
    )


def _watchers(
    directory: Path, run: Mapping[str, Any], pager: Pager, hurry_s: float | None
) -> list[Program]:
    """The installed programs, each on its default port, or on another where that port is taken."""
    started: list[Program] = []
    alertmanager: Program | None = None
    prometheus: Program | None = None
    if programs.found(programs.ALERTMANAGER):
        alertmanager = programs.alertmanager(
            directory / "alertmanager",
            free_bind(PORTS["alertmanager"]),
            receivers=pager.bind,
            hurry_s=hurry_s,
        )
        started.append(alertmanager)
    if programs.found(programs.PROMETHEUS):
        prometheus = programs.prometheus(
            directory / "prometheus",
            free_bind(PORTS["prometheus"]),
            targets=[urlsplit(run["ops_url"]).netloc],
            alertmanager=alertmanager.bind if alertmanager else None,
            hurry_s=hurry_s,
        )
        started.append(prometheus)
    if prometheus and programs.found(programs.GRAFANA_SERVER):
        started.append(
            programs.grafana(
                directory / "grafana",
                free_bind(PORTS["grafana"]),
                prometheus_url=prometheus.url,
            )
        )
    return started


def _wait_for_local_stack(home: Path, stack: ManagedProcess) -> Mapping[str, Any]:
    """This run's run.json; the file of an earlier run does not count."""
    give_up_at_s = monotonic() + START_WAIT_S
    while monotonic() < give_up_at_s:
        if stack.poll() is not None:
            raise SettingsError("\n".join(stack.lines()[-10:]))
        with contextlib.suppress(OSError, ValueError):
            run: dict[str, Any] = json.loads((home / "run.json").read_text())
            if run["pids"]["supervisor"] == stack.pid:
                return run
        sleep(0.05)
    raise SettingsError(f"The local stack did not start in {START_WAIT_S:.0f} s: {stack.log_path}")


def _wait_until_ready(program: Program, part: ManagedProcess) -> None:
    give_up_at_s = monotonic() + START_WAIT_S
    while monotonic() < give_up_at_s:
        if part.poll() is not None:
            raise PartDied(program.name, part)
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _get(program.bind, program.ready_path)[0] == 200:
                return
        sleep(0.1)
    raise SettingsError(f"{program.name} did not start in {START_WAIT_S:.0f} s: {part.log_path}")


def _get(bind: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(bind, timeout=ANSWER_TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
