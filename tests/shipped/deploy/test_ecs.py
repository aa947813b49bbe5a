"""The files for ECS: valid for the API, restricted, and consistent with the stack and the agent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from tests.support.manifests import DEPLOY, ROOT, ecs
from tests.support.stack.cloudwatch_stack import resources

CALLS = {
    "task-definition": ("ecs", "RegisterTaskDefinition"),
    "migrate-task-definition": ("ecs", "RegisterTaskDefinition"),
    "service": ("ecs", "CreateService"),
    "target-group": ("elbv2", "CreateTargetGroup"),
    "scalable-target": ("application-autoscaling", "RegisterScalableTarget"),
    "scaling-policy": ("application-autoscaling", "PutScalingPolicy"),
}
POLICIES = {"agent-policy", "execution-policy"}
TASKS = ("task-definition", "migrate-task-definition")
# The size limit of a parameter of the standard tier.
PARAMETER_BYTES_MAX = 4096


def containers(task: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in ecs(task)["containerDefinitions"]}


@pytest.mark.parametrize("name", CALLS)
def test_the_api_takes_the_file(name: str) -> None:
    service, operation = CALLS[name]
    model = botocore.session.get_session().get_service_model(service)

    report = ParamValidator().validate(ecs(name), model.operation_model(operation).input_shape)

    assert not report.has_errors(), report.generate_report()


def test_there_is_no_file_that_nothing_checks() -> None:
    assert {path.stem for path in (DEPLOY / "ecs").iterdir()} == set(CALLS) | POLICIES


@pytest.mark.parametrize("task", TASKS)
def test_the_containers_fit_the_task_and_can_change_nothing(task: str) -> None:
    asked = [each.get("memory", 0) for each in containers(task).values()]
    volumes = {each["name"] for each in ecs(task)["volumes"]}

    assert sum(asked) <= int(ecs(task)["memory"])
    for container in containers(task).values():
        assert container["readonlyRootFilesystem"] is True
        assert container["linuxParameters"]["capabilities"] == {"drop": ["ALL"]}
        assert {mount["sourceVolume"] for mount in container["mountPoints"]} <= volumes
        assert re.search(r":v?\d+\.\d+", container["image"])


def test_the_parts_share_network_processes_and_metric_files() -> None:
    task = ecs("task-definition")
    run = {"sourceVolume": "run", "containerPath": "/run/holdfast"}

    assert (task["networkMode"], task["pidMode"]) == ("awsvpc", "task")
    for name in ("data-plane", "ops-plane", "reconciler"):
        container = containers("task-definition")[name]
        assert run in container["mountPoints"]
        assert container["user"] == "10001:10001"
        # It restarts in its task; a part that cannot causes a new task.
        assert container["essential"] is True
        assert container["restartPolicy"]["enabled"] is True


def test_the_balancer_sends_to_the_data_plane_where_it_can_store() -> None:
    (balanced,) = ecs("service")["loadBalancers"]
    (port,) = containers("task-definition")[balanced["containerName"]]["portMappings"]

    assert balanced["containerName"] == "data-plane"
    assert balanced["containerPort"] == port["containerPort"] == ecs("target-group")["Port"]
    assert ecs("service")["taskDefinition"] == ecs("task-definition")["family"]


def test_the_scaling_is_for_this_service() -> None:
    service, target, policy = ecs("service"), ecs("scalable-target"), ecs("scaling-policy")

    assert target["ResourceId"] == f"service/{service['cluster']}/{service['serviceName']}"
    assert {name: policy[name] for name in ("ResourceId", "ScalableDimension")} == {
        name: target[name] for name in ("ResourceId", "ScalableDimension")
    }
    assert target["MinCapacity"] <= service["desiredCount"] <= target["MaxCapacity"]


def test_every_parameter_is_in_the_guide_and_readable_by_role() -> None:
    guide = (ROOT / "docs" / "deploying.md").read_text()
    (readable,) = (
        each["Resource"][0].rpartition("parameter")[2]
        for each in ecs("execution-policy")["Statement"]
        if each["Action"] == ["ssm:GetParameters"]
    )

    for task in TASKS:
        for container in containers(task).values():
            for secret in container["secrets"]:
                assert secret["valueFrom"] in guide, secret
                assert secret["valueFrom"].startswith(readable.removesuffix("*"))


@pytest.mark.parametrize("name", ["agent.json", "prometheus.yaml"])
def test_what_the_agent_is_given_fits_a_parameter(name: str) -> None:
    assert len((DEPLOY / "cloudwatch" / name).read_bytes()) <= PARAMETER_BYTES_MAX


def test_log_groups_are_in_the_stack_and_writable_by_the_roles() -> None:
    made = {each["LogGroupName"] for each in resources("Logs::LogGroup").values()}
    agent = (DEPLOY / "cloudwatch" / "agent.json").read_text()
    by_agent = set(re.findall(r'"log_group_name": "([^"]+)"', agent))
    by_driver = {
        each["logConfiguration"]["options"]["awslogs-group"]
        for task in TASKS
        for each in containers(task).values()
        if "logConfiguration" in each
    }

    assert by_agent | by_driver <= made
    assert by_agent <= _writable("agent-policy")
    assert by_driver <= _writable("execution-policy")


def test_the_agent_reads_what_the_parts_keep() -> None:
    agent = containers("task-definition")["cloudwatch-agent"]
    kept = {
        Path(containers("task-definition")[name]["entryPoint"][2]).parent
        for name in ("data-plane", "ops-plane", "reconciler")
    }

    (logs,) = (each for each in agent["mountPoints"] if each["sourceVolume"] == "logs")

    assert kept == {Path(logs["containerPath"])}
    assert logs["readOnly"] is True
    assert agent["essential"] is False, "payments must not end with the agent"


def _writable(policy: str) -> set[str]:
    return {
        resource.partition("log-group:")[2].removesuffix(":*")
        for statement in ecs(policy)["Statement"]
        if "logs:PutLogEvents" in statement["Action"]
        for resource in statement["Resource"]
    }
