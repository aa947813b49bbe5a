"""The CloudWatch files without a run: the agent's syntax, the template's rules, and AWS's stored state."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pydantic import ValidationError

from service.payments.settling.invariants import RULES
from tests.support import yaml_text
from tests.support.cwagent_configuration import AgentConfiguration
from tests.support.stack.cloudwatch_stack import (
    CLOUDWATCH,
    REGION,
    dashboard,
    dashboard_metrics,
    filtered_event,
    metrics_of,
    resources,
)

ROOT = CLOUDWATCH.parent.parent


def test_each_rule_about_money_has_its_place_in_the_alarm() -> None:
    alarm = resources("CloudWatch::Alarm")["InvariantViolatedAlarm"]["Metrics"]
    watched = {
        dimension["Value"]
        for metric in alarm
        for dimension in metric.get("MetricStat", {}).get("Metric", {}).get("Dimensions", ())
        if dimension["Name"] == "rule"
    }

    assert watched == set(RULES)
    shown = {
        value
        for metric in dashboard_metrics()
        for name, value in metric.dimensions
        if name == "rule"
    }
    assert shown == set(RULES)


def test_the_agents_configuration_says_only_what_the_agent_reads() -> None:
    AgentConfiguration.model_validate_json((CLOUDWATCH / "agent.json").read_text())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"timezone": "UTC"', '"timezone": "Europe/Berlin"'),
        ('"timestamp_format": "%Y', '"timestamp_format": "%G'),
        ('"log_stream_name": "{hostname}', '"log_stream_name": "{host}'),
        ('"log_group_name": "/holdfast/metrics"', '"log_group_name": "/holdfast/my metrics"'),
        ('"metric_selectors"', '"metric_selector"'),
        ('"^holdfast_needs_review$"', '"^(holdfast_needs_review$"'),
        ('"Seconds"', '"seconds"'),
        ('"force_flush_interval": 5', '"force_flush_interval": "5"'),
        ('"omit_hostname": true', '"omit_host_name": true'),
    ],
)
def test_a_word_that_the_agent_does_not_know_is_found(before: str, after: str) -> None:
    sound = (CLOUDWATCH / "agent.json").read_text()
    assert before in sound

    with pytest.raises(ValidationError):
        AgentConfiguration.model_validate_json(sound.replace(before, after, 1))


def test_the_template_gives_cfn_lint_nothing_to_say() -> None:
    lint = _run("cfn-lint", str(CLOUDWATCH / "stack.yaml"))

    assert lint.returncode == 0, lint.stdout


def test_the_agent_scrapes_nothing_that_it_does_not_declare() -> None:
    agent = json.loads((CLOUDWATCH / "agent.json").read_text())
    scraping = yaml_text.load((CLOUDWATCH / "prometheus.yaml").read_text())
    emf = agent["logs"]["metrics_collected"]["prometheus"]["emf_processor"]

    (kept,) = (rule["regex"] for rule in scraping["scrape_configs"][0]["metric_relabel_configs"])
    declared = [
        selector
        for declaration in emf["metric_declaration"]
        for selector in declaration["metric_selectors"]
    ]

    assert sorted(_alternatives(kept.removeprefix("holdfast_"))) == sorted(
        selector.removeprefix("^holdfast_").removesuffix("$") for selector in declared
    )


def test_every_alarm_is_named_after_a_runbook_and_tells_somebody() -> None:
    alarms = resources("CloudWatch::Alarm")

    for logical_name, alarm in alarms.items():
        runbook = alarm["AlarmName"].removeprefix("holdfast-")
        assert logical_name == f"{runbook}Alarm"
        assert (ROOT / "docs" / "runbooks" / f"{runbook}.md").exists(), runbook
        assert alarm["AlarmDescription"].endswith(f"/{runbook}.md")
        assert len(alarm["AlarmActions"]) == len(alarm["OKActions"]) == 1
    assert len(alarms) >= 15


def test_queries_are_equal_in_files_dashboard_and_saved_queries() -> None:
    files = {path.stem: path.read_text().rstrip("\n") for path in _query_files()}

    saved = {
        each["Name"].removeprefix("holdfast/").replace(" ", "-"): each["QueryString"].rstrip("\n")
        for each in resources("Logs::QueryDefinition").values()
    }
    shown = {
        widget["properties"]["query"]
        for widget in dashboard()["widgets"]
        if widget["type"] == "log"
    }

    assert saved == files
    assert shown == {
        "SOURCE '/holdfast/service' | " + " ".join(_without_comments(text))
        for text in files.values()
    }


@pytest.fixture(scope="module")
def aws() -> Iterator[dict[str, Any]]:
    """Clients of a simulated AWS on loopback. It extracts no metrics and raises no alarm (the live
    tests do); it shows whether the API accepts our calls."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    account = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": REGION}
    names = ("cloudwatch", "logs", "cloudformation")
    clients = {
        name: boto3.client(name, endpoint_url=f"http://{host}:{port}", **account) for name in names
    }
    yield clients
    for client in clients.values():
        client.close()
    server.stop()


def test_aws_takes_every_alarm_and_keeps_what_it_stands_on(aws: dict[str, Any]) -> None:
    alarms = {each["AlarmName"]: each for each in resources("CloudWatch::Alarm").values()}

    for alarm in alarms.values():
        aws["cloudwatch"].put_metric_alarm(**alarm)

    kept = aws["cloudwatch"].describe_alarms(AlarmNamePrefix="holdfast-", MaxRecords=100)
    assert {each["AlarmName"] for each in kept["MetricAlarms"]} == set(alarms)
    for each in kept["MetricAlarms"]:
        assert list(metrics_of(each)) == list(metrics_of(alarms[each["AlarmName"]]))


def test_aws_takes_the_dashboard_the_filters_and_the_queries(aws: dict[str, Any]) -> None:
    for group in resources("Logs::LogGroup").values():
        aws["logs"].create_log_group(logGroupName=group["LogGroupName"])
        aws["logs"].put_retention_policy(
            logGroupName=group["LogGroupName"], retentionInDays=group["RetentionInDays"]
        )
    for each in resources("Logs::MetricFilter").values():
        aws["logs"].put_metric_filter(**_as_call(each))
    aws["cloudwatch"].put_dashboard(DashboardName="holdfast", DashboardBody=json.dumps(dashboard()))

    filters = aws["logs"].describe_metric_filters(logGroupName="/holdfast/service")
    assert len(filters["metricFilters"]) == len(resources("Logs::MetricFilter"))
    assert {filtered_event(each) for each in resources("Logs::MetricFilter").values()} >= {
        "provider.timeout",
        "provider.connection_error",
        "db.pool_exhausted",
    }
    assert aws["cloudwatch"].get_dashboard(DashboardName="holdfast")["DashboardBody"]


def _query_files() -> list[Path]:
    return sorted((CLOUDWATCH / "queries").glob("*.query"))


def _without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def _alternatives(regex: str) -> list[str]:
    """The branches of `(a|b(c|d)|e)`."""
    branches, depth, branch = [], 0, ""
    for character in regex.removeprefix("(").removesuffix(")"):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth == 0:
            branches.append(branch)
            branch = ""
        else:
            branch += character
    return [*branches, branch]


def _as_call(properties: dict[str, Any]) -> dict[str, Any]:
    """CloudFormation's keys in the API's spelling."""
    return {
        name[0].lower() + name[1:]: (
            [_as_call(each) for each in value] if isinstance(value, list) else value
        )
        for name, value in properties.items()
    }


def _run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(tool)), *arguments]
    return subprocess.run(command, capture_output=True, text=True)
