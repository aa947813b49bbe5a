"""The containers of deploy/ (compose, Kubernetes and ECS) in one common form for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from service.settings import describe
from tests.support import yaml_text

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUSTOMIZATIONS = ("base", "overlays/production", "overlays/eks")
# The keys whose entries compose adds to those of the earlier file.
_ADDED = ("volumes", "secrets", "ports", "tmpfs")
_SETTINGS = frozenset(name for name, *_ in describe())


@dataclass(frozen=True)
class Part:
    """One container of ours, for any engine."""

    engine: str
    name: str
    image: str
    # The whole command line, the image's own entry point included.
    command: tuple[str, ...]
    # Plain values; for a secret, the name of its source.
    environ: dict[str, str] = field(default_factory=dict)
    secret_environ: dict[str, str] = field(default_factory=dict)
    # (port, path) of the engine's probe.
    probes: frozenset[tuple[int, str]] = frozenset()
    # The time from the signal to the kill.
    grace_s: float | None = None

    @property
    def sub_command(self) -> str:
        """The word after `python -m service`."""
        return self.command[self.command.index("service") + 1]

    def __str__(self) -> str:
        return f"{self.engine}:{self.name}"


ENTRYPOINT = ("python", "-m", "service")


@cache
def compose(*names: str) -> dict[str, Any]:
    """compose.yaml merged with other files by the rules of compose."""
    merged: dict[str, Any] = yaml_text.load((DEPLOY / "compose.yaml").read_text())
    for name in names:
        merged = _overlaid(merged, yaml_text.load((DEPLOY / name).read_text()))
    return merged


@cache
def kubernetes(kustomization: str) -> list[dict[str, Any]]:
    """The resources of a folder below deploy/kubernetes after kustomize."""
    kubectl = str(Path(sys.executable).with_name("kubectl"))
    folder = str(DEPLOY / "kubernetes" / kustomization)
    built = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return yaml_text.load_all(built.stdout)


def resource(kustomization: str, kind: str, name: str) -> dict[str, Any]:
    """One resource of a build; generated names have no hash here."""
    (found,) = (
        each
        for each in kubernetes(kustomization)
        if each["kind"] == kind and _without_hash(kind, each["metadata"]["name"]) == name
    )
    return found


def ecs(name: str) -> dict[str, Any]:
    """A JSON file of deploy/ecs."""
    document: dict[str, Any] = json.loads((DEPLOY / "ecs" / f"{name}.json").read_text())
    return document


def parts() -> Iterator[Part]:
    """Every container of ours that any of the engines runs."""
    for name, service in compose("compose.sandbox.yaml")["services"].items():
        if service["image"].startswith("holdfast:") and name not in ("instance", "sandbox"):
            yield _compose_part(name, service)
    for kustomization in KUSTOMIZATIONS:
        for each in kubernetes(kustomization):
            if each["kind"] in ("Deployment", "Job"):
                yield from _kubernetes_parts(kustomization, each["spec"]["template"]["spec"])
    for name in ("task-definition", "migrate-task-definition"):
        for container in ecs(name)["containerDefinitions"]:
            if "/holdfast:" in container["image"]:
                yield _ecs_part(container)


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _overlaid(merged[key], value)
        elif isinstance(value, list) and key in _ADDED:
            merged[key] = [*merged.get(key, []), *value]
        else:
            merged[key] = value
    return merged


def _without_hash(kind: str, name: str) -> str:
    return name.rpartition("-")[0] if kind == "ConfigMap" else name


def _compose_part(name: str, service: dict[str, Any]) -> Part:
    environ = service.get("environment", {})
    test = service.get("healthcheck", {}).get("test", [])
    grace = service.get("stop_grace_period")
    return Part(
        engine="compose",
        name=name,
        image=service["image"],
        command=(*service.get("entrypoint", ENTRYPOINT), *service["command"]),
        environ=_plain(environ),
        secret_environ=_from_files(environ),
        probes=_probes_of(test[1:]),
        grace_s=float(grace.removesuffix("s")) if grace else None,
    )


def _kubernetes_parts(kustomization: str, pod: dict[str, Any]) -> Iterator[Part]:
    for container in pod["containers"]:
        environ = {each["name"]: each["value"] for each in container.get("env", [])}
        for source in container.get("envFrom", []):
            generated = source["configMapRef"]["name"]
            name = _without_hash("ConfigMap", generated)
            environ |= resource(kustomization, "ConfigMap", name)["data"]
        ports = {each["name"]: each["containerPort"] for each in container.get("ports", [])}
        asked = [
            container[probe]["httpGet"]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe")
            if probe in container
        ]
        yield Part(
            engine=f"kubernetes/{kustomization}",
            name=container["name"],
            image=container["image"],
            command=(*container.get("command", ENTRYPOINT), *container["args"]),
            environ=_plain(environ),
            secret_environ=_from_files(environ),
            probes=frozenset((ports[each["port"]], each["path"]) for each in asked),
            grace_s=pod.get("terminationGracePeriodSeconds"),
        )


def _ecs_part(container: dict[str, Any]) -> Part:
    return Part(
        engine="ecs",
        name=container["name"],
        image=container["image"],
        command=(*container.get("entryPoint", ENTRYPOINT), *container["command"]),
        environ={each["name"]: each["value"] for each in container["environment"]},
        secret_environ={each["name"]: each["valueFrom"] for each in container["secrets"]},
        probes=_probes_of(container.get("healthCheck", {}).get("command", [])[1:]),
        grace_s=container.get("stopTimeout"),
    )


def _plain(environ: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in environ.items() if name not in _from_files(environ)}


def _from_files(environ: dict[str, str]) -> dict[str, str]:
    """Variables with a secret's file name; HOLDFAST_PROVIDER_CA_FILE is an ordinary setting."""
    return {
        name: text
        for name, text in environ.items()
        if name.endswith("_FILE") and name not in _SETTINGS
    }


def _probes_of(command: list[str]) -> frozenset[tuple[int, str]]:
    """The port and path that a command like `python deploy/healthcheck.py 8080` probes."""
    if "deploy/healthcheck.py" not in command:
        return frozenset()
    return frozenset({(int(command[-1]), "/healthz")})
