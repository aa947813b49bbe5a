"""Configures Prometheus, Alertmanager and Grafana for a local run, from the shipped files.

Only addresses differ from `deploy/` and `grafana/`. In a hurry, rules also wait seconds instead of
minutes, so that a minute shows the course of an hour.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.startup.gunicorn import ROOT

DEPLOY = ROOT / "deploy"
GRAFANA = ROOT / "grafana"
# All names of a program: Debian's first, then the vendor's.
PROMETHEUS = ("prometheus",)
ALERTMANAGER = ("prometheus-alertmanager", "alertmanager")
GRAFANA_SERVER = ("grafana-server",)
# Budgets and NoDrillHeld look back 30 days; the default keeps 15.
RETENTION = "40d"
# The directories where packages install Grafana's own files.
GRAFANA_HOMES = ("/usr/share/grafana", "/opt/homebrew/share/grafana", "/usr/local/share/grafana")


@dataclass(frozen=True, slots=True)
class Program:
    """One program with its configuration, ready to start."""

    name: str
    command: list[str]
    # host:port of its http server.
    bind: str
    ready_path: str
    # Added to the parent's environment.
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.bind}"


def found(names: Sequence[str]) -> str | None:
    """The first of these programs that is installed."""
    return next((path for name in names if (path := shutil.which(name))), None)


def prometheus(
    directory: Path,
    bind: str,
    *,
    targets: Sequence[str],
    alertmanager: str | None,
    hurry_s: float | None = None,
) -> Program:
    """Scrape these ops planes (host:port) with all the rules; `hurry_s` is how often, in a hurry."""
    directory.mkdir(parents=True, exist_ok=True)
    rules = directory / "rules"
    # Remove rules of an earlier run that are no longer shipped.
    shutil.rmtree(rules, ignore_errors=True)
    shutil.copytree(DEPLOY / "prometheus" / "rules", rules)
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    config = _changed(config, "targets: [127.0.0.1:8081]", f"targets: [{', '.join(targets)}]")
    config = _changed(config, "targets: [127.0.0.1:9093]", f"targets: [{alertmanager or ''}]")
    more: list[str] = []
    if hurry_s is not None:
        milliseconds = f"{round(hurry_s * 1000)}ms"
        config = re.sub(r"(interval|timeout): \d+s", rf"\1: {milliseconds}", config)
        for path in rules.glob("*.yml"):
            # Five scrapes: one late scrape must not page.
            wait = f"{round(hurry_s * 5000)}ms"
            text = re.sub(r"(?m)^( +for): .*$", rf"\1: {wait}", path.read_text())
            # Evaluate slow groups as often as the others.
            path.write_text(re.sub(r"(?m)^( +)interval: .*\n", "", text))
        more = ["--rules.alert.resend-delay=1s"]
    (directory / "prometheus.yml").write_text(config)
    command = [
        found(PROMETHEUS) or PROMETHEUS[0],
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--storage.tsdb.retention.time={RETENTION}",
        f"--web.listen-address={bind}",
        # Exemplars lead from a slow bucket to the trace and the log events of one slow request.
        "--enable-feature=exemplar-storage",
        *more,
    ]
    return Program("prometheus", command, bind, "/-/ready")


def alertmanager(
    directory: Path, bind: str, *, receivers: str | None = None, hurry_s: float | None = None
) -> Program:
    """The shipped routes; `receivers` (host:port) replaces the placeholders for alert receivers."""
    directory.mkdir(parents=True, exist_ok=True)
    config = (DEPLOY / "alertmanager" / "alertmanager.yml").read_text()
    if receivers is not None:
        config = _changed(config, "http://127.0.0.1:9099/", f"http://{receivers}/")
    if hurry_s is not None:
        config = re.sub(r"group_(wait|interval): .*", r"group_\1: 1s", config)
    (directory / "alertmanager.yml").write_text(config)
    command = [
        found(ALERTMANAGER) or ALERTMANAGER[0],
        f"--config.file={directory / 'alertmanager.yml'}",
        f"--storage.path={directory / 'data'}",
        f"--web.listen-address={bind}",
        # An instance without a cluster address joins no cluster and opens no second port.
        "--cluster.listen-address=",
    ]
    return Program("alertmanager", command, bind, "/-/ready")


def grafana(directory: Path, bind: str, *, prometheus_url: str) -> Program:
    """The provisioned dashboards of `grafana/`; anonymous users on this machine may view, not change."""
    directory.mkdir(parents=True, exist_ok=True)
    program = found(GRAFANA_SERVER) or GRAFANA_SERVER[0]
    host, _, port = bind.rpartition(":")
    env = {
        "PROMETHEUS_URL": prometheus_url,
        "HOLDFAST_DASHBOARDS": str(GRAFANA / "dashboards"),
        "GF_PATHS_PROVISIONING": str(GRAFANA / "provisioning"),
        "GF_PATHS_DATA": str(directory / "data"),
        "GF_PATHS_LOGS": str(directory / "logs"),
        "GF_PATHS_PLUGINS": str(directory / "plugins"),
        "GF_SERVER_HTTP_ADDR": host,
        "GF_SERVER_HTTP_PORT": port,
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        # Grafana serves this machine only and sends no data elsewhere.
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
    }
    homes = (os.environ.get("GRAFANA_HOME"), *GRAFANA_HOMES)
    home = next((home for home in homes if home and Path(home).is_dir()), None)
    command = [program, *(["--homepath", home] if home else [])]
    return Program("grafana", command, bind, "/api/health", env)


def _changed(text: str, old: str, new: str) -> str:
    if old not in text:
        raise ValueError(f"The shipped files in {DEPLOY} no longer contain {old!r}.")
    return text.replace(old, new)
