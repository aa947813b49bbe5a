"""deploy/cloudwatch/stack.yaml as CloudFormation would fill it in, for tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes.emf_agent import MetricName

CLOUDWATCH = Path(__file__).resolve().parents[3] / "deploy" / "cloudwatch"
REGION = "eu-west-1"
PARAMETERS: dict[str, Any] = {
    "PageTopicArn": f"arn:aws:sns:{REGION}:123456789012:page",
    "TicketTopicArn": f"arn:aws:sns:{REGION}:123456789012:ticket",
    "RetentionDays": 30,
    "Provider": "stripe",
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with CloudFormation's short forms."""


_Loader.add_constructor("!Ref", lambda loader, node: {"Ref": loader.construct_scalar(node)})  # type: ignore[arg-type]
_Loader.add_constructor("!Sub", lambda loader, node: {"Sub": loader.construct_scalar(node)})  # type: ignore[arg-type]


def resources(kind: str) -> dict[str, dict[str, Any]]:
    """The properties of every resource of this type, by logical name, references filled in."""
    template = yaml.load((CLOUDWATCH / "stack.yaml").read_text(), _Loader)  # noqa: S506
    named = template["Resources"]
    groups = {
        name: each["Properties"]["LogGroupName"]
        for name, each in named.items()
        if each["Type"] == "AWS::Logs::LogGroup"
    }
    return {
        name: _filled(each["Properties"], {**PARAMETERS, **groups})
        for name, each in named.items()
        if each["Type"] == f"AWS::{kind}"
    }


def metrics_of(alarm: dict[str, Any]) -> Iterator[tuple[MetricName, str]]:
    """Each metric that an alarm uses, with the alarm's statistic."""
    if "MetricName" in alarm:
        yield _name(alarm), alarm["Statistic"]
    for query in alarm.get("Metrics", []):
        if "MetricStat" in query:
            yield _name(query["MetricStat"]["Metric"]), query["MetricStat"]["Stat"]


def dashboard_metrics() -> Iterator[MetricName]:
    for widget in dashboard()["widgets"]:
        for entry in widget["properties"].get("metrics", []):
            namespace, name, *pairs = [each for each in entry if isinstance(each, str)]
            yield MetricName(namespace, name, frozenset(zip(pairs[::2], pairs[1::2], strict=True)))


def dashboard() -> dict[str, Any]:
    (properties,) = resources("CloudWatch::Dashboard").values()
    body: dict[str, Any] = json.loads(properties["DashboardBody"])
    return body


def filtered_event(properties: dict[str, Any]) -> str:
    """The one event that a metric filter counts."""
    found = re.fullmatch(r'\{ \$\.event = "([a-z_.]+)" \}', properties["FilterPattern"])
    assert found is not None, properties["FilterPattern"]
    return found[1]


def _name(metric: dict[str, Any]) -> MetricName:
    dimensions = frozenset((each["Name"], each["Value"]) for each in metric.get("Dimensions", []))
    return MetricName(metric["Namespace"], metric["MetricName"], dimensions)


def _filled(value: Any, given: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_filled(each, given) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Ref"}:
        return given[value["Ref"]]
    if set(value) == {"Sub"}:
        text: str = value["Sub"].replace("${AWS::Region}", REGION)
        return text.replace("${Provider}", given["Provider"])
    return {name: _filled(each, given) for name, each in value.items()}
