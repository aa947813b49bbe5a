"""Real Prometheus and Alertmanager as a test starts them: on free loopback ports, in a hurry."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
ALERTMANAGER_YML = DEPLOY / "alertmanager" / "alertmanager.yml"

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
        """What rules said when they could not be evaluated."""
        groups = self._get("rules")["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in groups
            for rule in group["rules"]
            if rule.get("lastError")
        ]

    def wait_for(self, expr: str, *, within_s: float = 30.0) -> list[Sample]:
        """The samples of `expr` as soon as there are any."""
        return wait_until(lambda: self.query(expr), within_s=within_s, what=expr)

    def _get(self, what: str, **params: str) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{what}", params=params, timeout=10)
        body = answer.json()
        if body["status"] != "success":
            raise ValueError(f"{body['error']}: {params}")
        return body["data"]


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """A running Alertmanager."""

    url: str

    def received(self) -> dict[str, list[Mapping[str, str]]]:
        """The labels of the alerts that it was told of, by the receiver they are routed to."""
        alerts = requests.get(f"{self.url}/api/v2/alerts", timeout=10).json()
        by_receiver: dict[str, list[Mapping[str, str]]] = {}
        for alert in alerts:
            for receiver in alert["receivers"]:
                by_receiver.setdefault(receiver["name"], []).append(alert["labels"])
        return by_receiver


def wait_until(ask: Callable[[], T], *, within_s: float, what: str) -> T:
    """The first answer that is true; fails when none came in time."""
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
    rules: Path = RULES,
    alertmanager: Alertmanager | None = None,
    interval_s: float = 0.5,
    is_hurried: bool = True,
) -> Iterator[Prometheus]:
    """Scrape `targets` (host:port of ops planes) as job "holdfast", with the shipped rules.

    Hurried, rules wait 1 s before they fire, and slow groups are evaluated as often as the others;
    a test could not see them otherwise.
    """
    directory.mkdir(parents=True, exist_ok=True)
    copied = directory / "rules"
    shutil.copytree(rules, copied, dirs_exist_ok=True)
    if is_hurried:
        for path in copied.glob("*.yml"):
            text = re.sub(r"(?m)^( +for): .*$", r"\1: 1s", path.read_text())
            path.write_text(re.sub(r"(?m)^( +)interval: .*\n", "", text))
    milliseconds = f"{round(interval_s * 1000)}ms"
    config: dict[str, Any] = {
        "global": {"scrape_interval": milliseconds, "evaluation_interval": milliseconds},
        "rule_files": [str(copied / "*.yml")],
        "scrape_configs": [
            {
                "job_name": "holdfast",
                "scrape_timeout": milliseconds,
                "static_configs": [{"targets": list(targets)}],
            }
        ],
    }
    if alertmanager is not None:
        at = alertmanager.url.removeprefix("http://")
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [at]}]}]}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{_free_port()}"
    command = [
        "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address={address}",
        # Rules may look back 30 days; the default keeps 15.
        "--storage.tsdb.retention.time=40d",
        # Tests resend a resolved alert at once.
        "--rules.alert.resend-delay=1s",
    ]
    with _running(command, directory / "prometheus.log", f"http://{address}/-/ready"):
        yield Prometheus(f"http://{address}", interval_s)


@contextlib.contextmanager
def running_alertmanager(
    directory: Path, *, config: Path = ALERTMANAGER_YML
) -> Iterator[Alertmanager]:
    """The shipped routes on a free port; groups wait for a second at most."""
    directory.mkdir(parents=True, exist_ok=True)
    hastened = re.sub(r"group_(wait|interval): .*", r"group_\1: 1s", config.read_text())
    (directory / "alertmanager.yml").write_text(hastened)
    address = f"127.0.0.1:{_free_port()}"
    command = [
        "prometheus-alertmanager",
        f"--config.file={directory / 'alertmanager.yml'}",
        f"--storage.path={directory / 'alertmanager'}",
        f"--web.listen-address={address}",
        # Alone: without an address it joins no cluster and opens no second port.
        "--cluster.listen-address=",
    ]
    with _running(command, directory / "alertmanager.log", f"http://{address}/-/ready"):
        yield Alertmanager(f"http://{address}")


@contextlib.contextmanager
def _running(command: list[str], log: Path, ready_url: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:

        def is_ready() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"{command[0]} ended: {log.read_text()[-2000:]}")
            with contextlib.suppress(requests.RequestException):
                return requests.get(ready_url, timeout=5).status_code == 200
            return False

        wait_until(is_ready, within_s=30, what=f"{command[0]} ready")
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    """A port that was free a moment ago; neither program can say which port it took for 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
