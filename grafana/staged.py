"""Stages the incident before a real Prometheus, so that the pictures show what happened and not a sketch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grafana.series import Source
from service.lab.faultproxy.client import FaultClient
from service.lab.observe.incidents import INCIDENTS, Incident
from service.lab.observe.session import recover
from service.lab.observe.site import Site, observed_stack
from service.lab.observe.traffic import Traffic
from service.settings import Settings
from service.startup.ports import free_bind

# A scrape every two seconds makes seconds visible; a rate needs four of them.
SCRAPE_S, WINDOW_S = 2.0, 8
PAYMENTS_PER_S = 10.0
# The whole must fit into five minutes, which is what the figures at the top of a board look back.
QUIET_S, FAULT_S, RECOVERY_S = 20.0, 36.0, 45.0
DRILL = "payment-timeout"


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when something was staged, in seconds since the epoch, and its name in short."""

    mark: str
    name: str
    begin_s: float
    end_s: float


@contextmanager
def staged(home: Path) -> Iterator[tuple[Source, list[Span]]]:
    """A local run that has been through the three incidents and a drill; Prometheus still answers."""
    environ = {
        **os.environ,
        "HOLDFAST_HOME": str(home),
        "HOLDFAST_BIND": free_bind(),
        "HOLDFAST_OPS_BIND": free_bind(),
    }
    settings = Settings.from_environ(environ)
    with observed_stack(settings, environ, _tell, hurry_s=SCRAPE_S) as site:
        spans: list[Span] = []
        began_s = time.time()
        with Traffic(site.run["url"], site.run["api_key"], per_s=PAYMENTS_PER_S):
            for number, incident in enumerate(INCIDENTS, start=1):
                _tell(f"{number} of {len(INCIDENTS)}: {incident.title}")
                time.sleep(QUIET_S)
                begin_s, end_s = _strike(site, incident)
                spans.append(Span(str(number), incident.title, begin_s, end_s))
                recover(site, within_s=RECOVERY_S)
            time.sleep(QUIET_S / 2)
            spans.append(_drill(environ))
            time.sleep(QUIET_S / 2)
            yield Source(site.urls["prometheus"], began_s, time.time(), WINDOW_S), spans


def _strike(site: Site, incident: Incident) -> tuple[float, float]:
    begin_s = time.time()
    with FaultClient(Path(site.run["fault_proxy_control"])) as fault_client:
        fault_client.inject(incident.link, incident.mode, ttl_s=FAULT_S)
        time.sleep(FAULT_S)
    return begin_s, time.time()


def _drill(environ: dict[str, str]) -> Span:
    begin_s = time.time()
    command = [sys.executable, "-m", "service", "drill", DRILL, "--reason", "pictures"]
    subprocess.run(command, env=environ, check=False)
    return Span("D", f"drill {DRILL}", begin_s, time.time())


def _tell(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
