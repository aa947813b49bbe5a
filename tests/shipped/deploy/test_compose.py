"""compose.yaml: the schema, the mounts and variables, and the restrictions of each container."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.support import yaml_text
from tests.support.manifests import DEPLOY, ROOT, compose

FILES = ("compose.yaml", "compose.sandbox.yaml")
WHOLE = compose("compose.sandbox.yaml")
SERVICES: dict[str, Any] = WHOLE["services"]
PARTS = ("data-plane", "ops-plane", "reconciler")
# Built here, or a tag that names one release.
PINNED = re.compile(r"holdfast:\d+\.\d+\.\d+(-sandbox)?|\S+/\S+:v?\d+\.\d+(\.\d+)?\S*")


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_what_compose_publishes_as_its_schema(name: str) -> None:
    tool = str(Path(sys.executable).with_name("check-jsonschema"))
    schema = ("--builtin-schema", "vendor.compose-spec")

    check = subprocess.run([tool, *schema, str(DEPLOY / name)], capture_output=True, text=True)

    assert check.returncode == 0, check.stdout


def test_everything_that_is_named_is_there() -> None:
    for name, service in SERVICES.items():
        for other in service.get("depends_on", {}):
            assert other in SERVICES, (name, other)
        for network in service.get("networks", []):
            assert network in WHOLE["networks"], (name, network)
        for secret in service.get("secrets", []):
            assert secret in WHOLE["secrets"], (name, secret)
        for source, *_ in (volume.split(":") for volume in service.get("volumes", [])):
            known = (DEPLOY / source).exists() if "/" in source else source in WHOLE["volumes"]
            assert known, (name, source)


def test_named_secrets_and_mounted_secrets_are_the_same() -> None:
    for name, service in SERVICES.items():
        named = set(re.findall(r"/run/secrets/(\w+)", yaml.safe_dump(service)))

        assert named == set(service.get("secrets", [])), name


def test_the_settings_are_whole_with_the_secrets_that_are_made(tmp_path: Path) -> None:
    made = _make_secrets(tmp_path)
    environ = SERVICES["data-plane"]["environment"] | SERVICES["migrate"]["environment"]

    settings = Settings.from_environ(
        {name: text.replace("/run/secrets", str(tmp_path)) for name, text in environ.items()}
    )

    assert {path.name for path in tmp_path.iterdir()} == set(WHOLE["secrets"])
    assert settings.database_url is not None
    assert "@postgres:5432/holdfast" in settings.database_url
    assert not any(path.read_text().strip() in made for path in tmp_path.iterdir())


def test_what_is_there_is_kept_when_secrets_are_made_again(tmp_path: Path) -> None:
    _make_secrets(tmp_path)
    (tmp_path / "stripe_api_key").chmod(0o600)
    (tmp_path / "stripe_api_key").write_text("sk_test_mine")
    (tmp_path / "database_url").unlink()
    password = (tmp_path / "service_password").read_text().strip()

    said = _make_secrets(tmp_path)

    assert said == "Made database_url.\n"
    assert (tmp_path / "stripe_api_key").read_text() == "sk_test_mine"
    assert f":{password}@" in (tmp_path / "database_url").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_change_nothing_but_what_it_is_given(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].partition(":")[0]) > 0
    assert PINNED.fullmatch(service["image"].partition("@")[0]), service["image"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_bounds_and_somebody_looks_at_it(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]

    assert {"memory", "pids"} <= set(limits)
    assert service["logging"]["options"].keys() >= {"max-size", "max-file"}
    # The agent's image has no program for a probe; containers without a port disable it explicitly.
    assert "healthcheck" in service or name == "cloudwatch-agent"


def test_ports_are_open_on_loopback_only() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert all(each.startswith("127.0.0.1:") for opened in ports.values() for each in opened)
    assert set(ports) == {"instance", "prometheus", "alertmanager", "grafana"}


def test_the_parts_of_the_instance_live_together_as_in_a_pod() -> None:
    for name in PARTS:
        assert SERVICES[name]["network_mode"] == "service:instance"
        assert SERVICES[name]["pid"] == "service:instance"
        assert "run:/run/holdfast" in SERVICES[name]["volumes"]
    for name in ("cloudwatch-agent", "sandbox"):
        assert SERVICES[name]["network_mode"] == "service:instance"
    assert WHOLE["volumes"]["run"]["driver_opts"]["type"] == "tmpfs"


def test_nothing_of_the_sandbox_is_in_the_file_for_production() -> None:
    assert "sandbox" not in (DEPLOY / "compose.yaml").read_text()
    # A service without its provider would queue payments without end.
    assert all("sandbox" in SERVICES[name]["depends_on"] for name in PARTS)


def test_prometheus_configuration_differs_only_in_addresses() -> None:
    here, there = (
        yaml_text.load((DEPLOY / "prometheus" / name).read_text())
        for name in ("prometheus.yml", "compose.yml")
    )

    (service,) = there["scrape_configs"][0].pop("static_configs")
    (alertmanager,) = there["alerting"]["alertmanagers"][0].pop("static_configs")
    here["scrape_configs"][0].pop("static_configs")
    here["alerting"]["alertmanagers"][0].pop("static_configs")

    assert there == here
    assert service["targets"] == ["instance:8081"]
    assert alertmanager["targets"] == ["alertmanager:9093"]


@pytest.mark.needs("promtool")
def test_prometheus_takes_the_configuration_of_compose() -> None:
    check = subprocess.run(
        ["promtool", "check", "config", str(DEPLOY / "prometheus" / "compose.yml")],
        capture_output=True,
        text=True,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    grafana = SERVICES["grafana"]
    provisioning = (ROOT / "grafana" / "provisioning").rglob("*.yml")

    asked = {name for path in provisioning for name in re.findall(r"\$\{(\w+)\}", path.read_text())}

    assert asked <= set(grafana["environment"])
    assert grafana["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"
    mounted = dict(each.split(":")[1::-1] for each in grafana["volumes"])
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == grafana["environment"]["HOLDFAST_DASHBOARDS"]
    assert (DEPLOY / mounted[str(home.parent)] / home.name).is_file()


def _make_secrets(directory: Path) -> str:
    command = [sys.executable, "deploy/make_secrets.py", str(directory)]
    # In the image the package is installed.
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout
