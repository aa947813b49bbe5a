"""The three incidents on a real service, in CloudWatch's view through the agent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests

from tests.support import yaml_text
from tests.support.processes.emf_agent import EmfAgent, MetricName
from tests.support.stack.cloudwatch_stack import (
    CLOUDWATCH,
    dashboard_metrics,
    filtered_event,
    metrics_of,
    resources,
)
from tests.support.stack.running_stack import RunningStack, running_stack, wait_for

PARTS = ("data-plane", "ops-plane", "reconciler")
PAYMENTS_AT_ONCE = 8
# Short intervals, so that three incidents take seconds: the numbers are not under test.
QUICK = {
    "HOLDFAST_WEB_WORKERS": "1",
    "HOLDFAST_PROVIDER_TIMEOUT_MS": "1000",
    "HOLDFAST_PROVIDER_CONNECT_TIMEOUT_MS": "300",
    "HOLDFAST_DB_POOL_SIZE": "1",
    "HOLDFAST_DB_POOL_WAIT_MS": "100",
}


@dataclass(frozen=True, slots=True)
class Run:
    """CloudWatch's data: values by metric, and events by the agent's source file."""

    values: dict[MetricName, list[float]]
    events: dict[str, list[dict[str, Any]]]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [
            each for events in self.events.values() for each in events if each["event"] == event
        ]

    def statistic(self, metric: MetricName, statistic: str) -> float:
        values = self.values[metric]
        return {"Sum": sum(values), "Maximum": max(values), "SampleCount": len(values)}[statistic]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Good payments, then the three incidents in turn, with continuous scrapes."""
    agent = EmfAgent(
        json.loads((CLOUDWATCH / "agent.json").read_text()),
        yaml_text.load((CLOUDWATCH / "prometheus.yaml").read_text()),
    )
    values: dict[MetricName, list[float]] = {}
    with running_stack(tmp_path_factory.mktemp("cloudwatch"), **QUICK) as local_stack:

        def scrape() -> None:
            page = requests.get(f"{local_stack.ops_url}/metrics", timeout=60).text
            for name, seen in agent.scrape(page).items():
                values.setdefault(name, []).extend(seen)

        # The first payment opens the worker's lazy resources; the reconciler sets its own gauges.
        # With such short intervals, a busy machine may be too late once.
        wait_for(lambda: local_stack.pay().status_code == 201)
        wait_for(lambda: "holdfast_invariant_violations{" in _page(local_stack))
        scrape()
        assert local_stack.pay().status_code == 201
        local_stack.control({"reset": 1.0})
        local_stack.pay()
        with _locked(local_stack.database_url):
            _pay_at_once(local_stack)
        local_stack.control({"hang": 1.0})
        _pay_at_once(local_stack)
        wait_for(lambda: local_stack.metric("holdfast_breaker_state", state="open") == 1)
        scrape()
        events = {part: local_stack.log_events(part) for part in PARTS}
    for filter_ in resources("Logs::MetricFilter").values():
        (transformed,) = filter_["MetricTransformations"]
        name = MetricName(transformed["MetricNamespace"], transformed["MetricName"])
        counted = [each["event"] for part in events.values() for each in part]
        # The default counts too: without an event in a minute the filter publishes 0.
        values[name] = [0.0, *(1.0 for each in counted if each == filtered_event(filter_))]
    return Run(values, events)


def test_every_alarm_stands_on_metrics_that_reach_cloudwatch(run: Run) -> None:
    starved = [
        (alarm["AlarmName"], name)
        for alarm in resources("CloudWatch::Alarm").values()
        for name, _ in metrics_of(alarm)
        if name not in run.values
    ]

    assert starved == []


def test_every_graph_of_the_dashboard_has_data(run: Run) -> None:
    assert [name for name in dashboard_metrics() if name not in run.values] == []


@pytest.mark.parametrize("alarm_name", ["ProviderTimeouts", "BreakerOpen", "PoolTimeouts"])
def test_an_incident_crosses_the_threshold_of_its_alarm(run: Run, alarm_name: str) -> None:
    alarm = resources("CloudWatch::Alarm")[f"{alarm_name}Alarm"]
    ((metric, statistic),) = metrics_of(alarm)

    value = run.statistic(metric, statistic)

    crossed = {
        "GreaterThanOrEqualToThreshold": value >= alarm["Threshold"],
        "GreaterThanThreshold": value > alarm["Threshold"],
        "LessThanThreshold": value < alarm["Threshold"],
    }[alarm["ComparisonOperator"]]
    assert crossed, value


def test_cloudwatch_counts_truthful_answers_in_the_incidents(
    run: Run,
) -> None:
    service = frozenset({("service", "holdfast")})

    good = run.statistic(MetricName("Holdfast", "holdfast_payments_good_total", service), "Sum")
    bad = run.statistic(MetricName("Holdfast", "holdfast_payments_bad_total", service), "Sum")

    assert good == 2 * PAYMENTS_AT_ONCE + 2
    assert bad == 0


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("payment-timeout", "timeout after 1000ms"),
        ("connection-error", "ConnectionError: HTTPSConnectionPool timeout"),
        ("pool-exhaustion", "connection pool exhausted"),
    ],
)
def test_incident_query_finds_its_text_and_all_its_fields(run: Run, query: str, words: str) -> None:
    text = (CLOUDWATCH / "queries" / f"{query}.query").read_text()
    event = re.search(r'\| filter event = "([a-z._]+)"', text)
    fields = re.search(r"^fields (.+)$", text, re.MULTILINE)
    assert event is not None
    assert fields is not None

    found = run.named(event[1])

    shown = [name for name in fields[1].split(", ") if not name.startswith("@")]
    assert any(words in json.dumps(each) for each in found)
    assert [name for name in shown if not any(each.get(name) for each in found)] == []


def test_what_became_of_payments_is_in_the_logs(run: Run) -> None:
    events = {each["event"] for each in run.events["data-plane"]}

    assert {"payment.succeeded", "payment.accepted"} <= events


def test_the_agent_reads_the_files_and_the_time_of_every_event(run: Run) -> None:
    agent = json.loads((CLOUDWATCH / "agent.json").read_text())
    collected = agent["logs"]["logs_collected"]["files"]["collect_list"]

    assert [Path(each["file_path"]).stem for each in collected] == list(PARTS)
    for each in collected:
        # The agent's %f accepts the same text as strptime's.
        for event in run.events[Path(each["file_path"]).stem]:
            datetime.strptime(event["timestamp"], each["timestamp_format"])  # noqa: DTZ007
        assert each["log_group_name"] == resources("Logs::LogGroup")["ServiceLogs"]["LogGroupName"]


@contextmanager
def _locked(database_url: str) -> Iterator[None]:
    """Lock the table: callers with a connection keep it, and the others wait."""
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE payments IN ACCESS EXCLUSIVE MODE")
        yield
    finally:
        connection.rollback()
        connection.close()


def _pay_at_once(local_stack: RunningStack) -> None:
    with ThreadPoolExecutor(PAYMENTS_AT_ONCE) as callers:
        list(callers.map(lambda _: local_stack.pay(), range(PAYMENTS_AT_ONCE)))


def _page(local_stack: RunningStack) -> str:
    return requests.get(f"{local_stack.ops_url}/metrics", timeout=60).text
