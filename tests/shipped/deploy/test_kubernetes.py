"""The kustomizations: built for a cluster, valid, restricted, and with every name defined."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.startup.database import OPS_POOL_SIZE, RECONCILER_POOL_SIZE
from tests.support import yaml_text
from tests.support.manifests import DEPLOY, KUSTOMIZATIONS, ROOT, kubernetes, resource

# Kinds that a cluster learns from the Prometheus operator; the validator has no schema of them.
CUSTOM_KINDS = {"PodMonitor"}
# PostgreSQL's default of max_connections, without those for administrators.
CONNECTIONS_BY_DEFAULT = 97
SELECTING = ("Deployment", "Job")


def pod_template(kustomization: str, kind: str, name: str) -> dict[str, Any]:
    template: dict[str, Any] = resource(kustomization, kind, name)["spec"]["template"]
    return template


def pods(kustomization: str) -> list[dict[str, Any]]:
    """The template of every pod, with metadata and spec."""
    built = kubernetes(kustomization)
    return [each["spec"]["template"] for each in built if each["kind"] in SELECTING]


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_it_builds_and_every_resource_is_valid(kustomization: str, tmp_path: Path) -> None:
    built = [each for each in kubernetes(kustomization) if each["kind"] not in CUSTOM_KINDS]
    path = tmp_path / "built.yaml"
    path.write_text(yaml.safe_dump_all(built))
    tool = str(Path(sys.executable).with_name("kubernetes-validate"))

    check = subprocess.run([tool, "--strict", str(path)], capture_output=True, text=True)

    assert check.returncode == 0, check.stdout + check.stderr
    assert check.stdout.count(" passed ") + check.stderr.count(" passed ") == len(built)


def test_every_file_belongs_to_a_kustomization() -> None:
    folders = [path.parent for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml")]

    for folder in folders:
        text = (folder / "kustomization.yaml").read_text()
        for path in folder.iterdir():
            assert path.is_dir() or path.name in (
                *re.findall(r"[\w.-]+", text),
                "kustomization.yaml",
            )
    assert len(folders) == len(KUSTOMIZATIONS) + 2


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_a_pod_passes_the_restricted_standard_and_has_no_token(kustomization: str) -> None:
    for template in pods(kustomization):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(template):
            closed = container["securityContext"]
            assert closed["allowPrivilegeEscalation"] is False
            assert closed["readOnlyRootFilesystem"] is True
            assert closed["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert re.search(r":v?\d+\.\d+", container["image"]), container["image"]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_everything_that_is_mounted_or_read_is_there(kustomization: str) -> None:
    maps = {
        each["metadata"]["name"]: set(each["data"])
        for each in kubernetes(kustomization)
        if each["kind"] == "ConfigMap"
    }
    for template in pods(kustomization):
        volumes = {each["name"]: each for each in template["spec"]["volumes"]}
        for container in containers(template):
            for mount in container["volumeMounts"]:
                assert mount["name"] in volumes
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {}).get("configMapKeyRef")
                assert source is None or source["key"] in maps[source["name"]]
        for volume in volumes.values():
            if "configMap" in volume:
                items = {item["key"] for item in volume["configMap"]["items"]}
                assert items <= maps[volume["configMap"]["name"]]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_secrets_match_the_guide_and_no_other_role_reads_them(
    kustomization: str,
) -> None:
    guide = (ROOT / "docs" / "deploying.md").read_text()
    made = {
        name: set(re.findall(r"--from-(?:file|literal)=([\w-]+)=", rest))
        for name, rest in re.findall(r"create secret generic ([\w-]+)((?:.*\\\n)*.*)", guide)
    }

    for template in pods(kustomization):
        volumes = {each["name"]: each for each in template["spec"]["volumes"]}
        for container in template["spec"]["containers"]:
            paths = [each["value"] for each in container["env"] if each["name"].endswith("_FILE")]
            for path in paths:
                mount = next(
                    each for each in container["volumeMounts"] if path.startswith(each["mountPath"])
                )
                secret = volumes[mount["name"]]["secret"]
                assert Path(path).name in made[secret["secretName"]]
                # The service refuses a secret that every user may read.
                assert secret["defaultMode"] == 0o440


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_whatever_selects_pods_selects_the_instances(kustomization: str) -> None:
    labels = pod_template(kustomization, "Deployment", "holdfast")["metadata"]["labels"]
    spec = pod_template(kustomization, "Deployment", "holdfast")["spec"]
    ports = {port["name"] for each in spec["containers"] for port in each.get("ports", [])}
    selectors = [constraint["labelSelector"] for constraint in spec["topologySpreadConstraints"]]

    for each in kubernetes(kustomization):
        match each["kind"]:
            case "Service":
                selectors.append({"matchLabels": each["spec"]["selector"]})
                assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
            case "PodDisruptionBudget" | "Deployment":
                selectors.append(each["spec"]["selector"])
            case "NetworkPolicy":
                selectors.append(each["spec"]["podSelector"])
            case "PodMonitor":
                selectors.append(each["spec"]["selector"])
                assert {end["port"] for end in each["spec"]["podMetricsEndpoints"]} <= ports
            case "HorizontalPodAutoscaler":
                assert each["spec"]["scaleTargetRef"]["name"] == "holdfast"
                (metric,) = each["spec"]["metrics"]
                assert metric["containerResource"]["container"] == "data-plane"

    for selector in selectors:
        assert selector["matchLabels"]
        assert selector["matchLabels"].items() <= labels.items()


def test_replicas_and_a_release_fit_a_default_database() -> None:
    settings = resource("base", "ConfigMap", "holdfast-settings")["data"]
    most = resource("base", "HorizontalPodAutoscaler", "holdfast")["spec"]["maxReplicas"]
    strategy = resource("base", "Deployment", "holdfast")["spec"]["strategy"]
    surge = strategy["rollingUpdate"]["maxSurge"]
    workers, size = (int(settings[f"HOLDFAST_{name}"]) for name in ("WEB_WORKERS", "DB_POOL_SIZE"))

    an_instance = workers * size + OPS_POOL_SIZE + RECONCILER_POOL_SIZE

    assert (most + surge) * an_instance <= CONNECTIONS_BY_DEFAULT


def test_release_keeps_capacity_and_drain_takes_one_instance() -> None:
    deployment = resource("overlays/production", "Deployment", "holdfast")["spec"]
    budget = resource("overlays/production", "PodDisruptionBudget", "holdfast")["spec"]
    fewest = resource("overlays/production", "HorizontalPodAutoscaler", "holdfast")["spec"]

    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "replicas" not in deployment, "it would undo what the autoscaler said"
    assert budget["maxUnavailable"] == 1 < fewest["minReplicas"]


def test_the_parts_share_what_they_tell_each_other_by() -> None:
    spec = pod_template("base", "Deployment", "holdfast")["spec"]

    assert spec["shareProcessNamespace"] is True
    assert spec["enableServiceLinks"] is False
    assert all(
        {"name": "run", "mountPath": "/run/holdfast"} in container["volumeMounts"]
        for container in spec["containers"]
    )


def test_only_calls_that_are_meant_pass_the_network_policy() -> None:
    policy = resource("overlays/production", "NetworkPolicy", "holdfast")["spec"]

    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert opened == {8080, 8081}
    assert all("from" in rule for rule in policy["ingress"])
    public = next(rule for rule in policy["egress"] if rule["ports"][0]["port"] == 443)
    # A webhook endpoint must lead neither into private networks nor to the node's credentials.
    assert "169.254.0.0/16" in public["to"][0]["ipBlock"]["except"]
    assert "10.0.0.0/8" in public["to"][0]["ipBlock"]["except"]


def test_the_operator_scrapes_as_our_own_configuration_does() -> None:
    ours = yaml_text.load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (scrape,) = ours["scrape_configs"]
    monitor = resource("overlays/production", "PodMonitor", "holdfast")["spec"]
    labels = pod_template("overlays/production", "Deployment", "holdfast")["metadata"]["labels"]

    (endpoint,) = monitor["podMetricsEndpoints"]

    assert labels[monitor["jobLabel"]] == scrape["job_name"]
    assert endpoint["path"] == scrape["metrics_path"]
    assert endpoint["interval"] == ours["global"]["scrape_interval"]
    assert monitor["sampleLimit"] == scrape["sample_limit"]


def test_the_agent_begins_before_the_parts_and_ends_after_them() -> None:
    (agent,) = pod_template("overlays/eks", "Deployment", "holdfast")["spec"]["initContainers"]
    carried = resource("overlays/eks", "ConfigMap", "holdfast-cloudwatch")["data"]

    assert agent["restartPolicy"] == "Always"
    assert carried["agent.json"] == (DEPLOY / "cloudwatch" / "agent.json").read_text()
    assert carried["prometheus.yaml"] == (DEPLOY / "cloudwatch" / "prometheus.yaml").read_text()
