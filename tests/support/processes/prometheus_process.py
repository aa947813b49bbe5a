"""Real Prometheus and Alertmanager in a test: on free loopback ports, with short intervals."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests

from service.lab.observe import programs
from tests.support.stack.running_stack import free_port

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an answer to an instant query."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str
    interval_s: float

    def query(self, expr: str) -> list[Sample]:
        """The value of every series of `expr` now."""
        result = self._get("query", query=expr)["result"]
        return [Sample(series["metric"], float(series["value"][1])) for series in result]

    def value(self, expr: str) -> float:
        """The sum of the series of `expr` now; 0 when there are none."""
        return sum(sample.value for sample in self.query(expr))

    def firing(self) -> list[Mapping[str, str]]:
        """The labels of the alerts that fire."""
        alerts = self._get("alerts")["alerts"]
        return [alert["labels"] for alert in alerts if alert["state"] == "firing"]

    def rule_errors(self) -> list[str]:
        """The errors of rules that could not be evaluated."""
        groups = self._get("rules")["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in groups
            for rule in group["rules"]
            if rule.get("lastError")
        ]

    def traces(self, expr: str) -> set[str]:
        """The trace ids of the exemplars on the series of `expr` in the last hour."""
        now_s = time.time()
        found = self._get("query_exemplars", query=expr, start=str(now_s - 3600), end=str(now_s))
        return {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}

    def wait_for(self, expr: str, *, within_s: float = 90.0) -> list[Sample]:
        """The samples of `expr` as soon as there are any."""
        return wait_until(lambda: self.query(expr), within_s=within_s, what=expr)

    def _get(self, what: str, **params: str) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{what}", params=params, timeout=60)
        body = answer.json()
        if body["status"] != "success":
            raise ValueError(f"{body['error']}: {params}")
        return body["data"]


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """A running Alertmanager."""

    url: str

    def received(self) -> dict[str, list[Mapping[str, str]]]:
        """The labels of the received alerts, by the receiver of their route."""
        alerts = requests.get(f"{self.url}/api/v2/alerts", timeout=60).json()
        by_receiver: dict[str, list[Mapping[str, str]]] = {}
        for alert in alerts:
            for receiver in alert["receivers"]:
                by_receiver.setdefault(receiver["name"], []).append(alert["labels"])
        return by_receiver


def wait_until(ask: Callable[[], T], *, within_s: float, what: str) -> T:
    """The first true result; fails without one in time."""
    end_s = time.monotonic() + within_s
    while not (answer := ask()):
        if time.monotonic() > end_s:
            raise AssertionError(f"Not within {within_s} s: {what}")
        time.sleep(0.1)
    return answer


@contextlib.contextmanager
def running_prometheus(
    directory: Path,
    targets: Sequence[str],
    *,
    alertmanager: Alertmanager | None = None,
    hurry_s: float = 0.5,
) -> Iterator[Prometheus]:
    """Scrape `targets` (host:port of ops planes) as job "holdfast", with the shipped rules.

    With short intervals, rules wait five scrapes before they fire, and slow groups are evaluated as often
    as the others; otherwise a test could not wait for them.
    """
    program = programs.prometheus(
        directory / "prometheus",
        f"127.0.0.1:{free_port()}",
        targets=targets,
        alertmanager=alertmanager and alertmanager.url.removeprefix("http://"),
        hurry_s=hurry_s,
    )
    with _running(program, directory):
        yield Prometheus(program.url, hurry_s)


@contextlib.contextmanager
def running_alertmanager(directory: Path) -> Iterator[Alertmanager]:
    """The shipped routes on a free port; groups wait for a second at most."""
    program = programs.alertmanager(
        directory / "alertmanager", f"127.0.0.1:{free_port()}", hurry_s=1.0
    )
    with _running(program, directory):
        yield Alertmanager(program.url)


@contextlib.contextmanager
def _running(program: programs.Program, directory: Path) -> Iterator[None]:
    log = directory / f"{program.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(program.command, stdout=output, stderr=output)
    try:

        def is_ready() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"{program.name} ended: {log.read_text()[-2000:]}")
            with contextlib.suppress(requests.RequestException):
                return requests.get(program.url + program.ready_path, timeout=5).ok
            return False

        wait_until(is_ready, within_s=90, what=f"{program.name} ready")
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
