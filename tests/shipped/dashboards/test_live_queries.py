"""Our queries and rules in a real Prometheus, and our routes in a real Alertmanager."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from grafana.figures import told
from grafana.series import Source
from tests.support.processes.exposition_server import Exposition, serving
from tests.support.processes.prometheus_process import (
    Alertmanager,
    Prometheus,
    running_alertmanager,
    running_prometheus,
    wait_until,
)
from tests.support.shipped_queries import dashboards, panel_queries, rules

pytestmark = pytest.mark.needs("prometheus", "alertmanager")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Two instances with the same fault; one of them runs a drill."""

    prometheus: Prometheus
    alertmanager: Alertmanager
    in_earnest: str
    drilled: str


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    in_earnest, drilled = Exposition(), Exposition()
    in_earnest.gauges["simulation_active"] = 0
    with ExitStack() as stack:
        targets = [stack.enter_context(serving(each)) for each in (in_earnest, drilled)]
        directory = tmp_path_factory.mktemp("prometheus")
        alertmanager = stack.enter_context(running_alertmanager(directory))
        prometheus = stack.enter_context(
            running_prometheus(directory, targets, alertmanager=alertmanager)
        )
        prometheus.wait_for('slo:holdfast_burn_rate:5m{drill="true"}')
        # A panel may read a rule over other rules, which have values one after the other.
        wait_until(
            lambda: not _panels_without_data(prometheus), within_s=60, what="data for panels"
        )
        yield Fleet(prometheus, alertmanager, *targets)


def _panels_without_data(prometheus: Prometheus) -> list[str]:
    queries = panel_queries(window="10s")
    return [query.where for query in queries if not prometheus.query(query.expr)]


def test_every_panel_has_data_when_the_service_tells_everything(fleet: Fleet) -> None:
    assert _panels_without_data(fleet.prometheus) == []


@pytest.mark.parametrize("name", sorted(dashboards()))
def test_drawn_dashboard_has_data_and_is_marked_not_grafana(fleet: Fleet, name: str) -> None:
    # Imported here: every worker collects this file, and one draws.
    from grafana.draw import picture

    now_s = time.time()
    source = Source(fleet.prometheus.url, now_s - 10, now_s, window_s=10)

    figure, without_samples = picture(dashboards()[name], source)

    assert without_samples == []
    assert "not Grafana's rendering" in " ".join(text.get_text() for text in figure.texts)


def test_the_figures_of_a_run_count_all_that_is_shipped(fleet: Fleet) -> None:
    now_s = time.time()
    source = Source(fleet.prometheus.url, now_s - 10, now_s, window_s=10)

    figures = " ".join(told(source))

    queries = len(list(panel_queries()))
    assert f"{queries} queries of panels: {queries} had data" in figures
    assert f"{len(rules())} rules: " in figures
    assert "rules that failed: none" in figures


def test_no_rule_fails_on_two_instances(fleet: Fleet) -> None:
    assert fleet.prometheus.rule_errors() == []


def test_the_same_trouble_pages_in_earnest_and_not_for_a_drill(fleet: Fleet) -> None:
    def reached(receiver: str) -> set[tuple[str, str]]:
        alerts = fleet.alertmanager.received().get(receiver, [])
        return {(alert["alertname"], alert.get("instance", "")) for alert in alerts}

    wait_until(
        lambda: (
            ("PoolTimeouts", fleet.in_earnest) in reached("pages")
            and ("PoolTimeouts", fleet.drilled) in reached("drills")
        ),
        within_s=60,
        what="both alerts at their receivers",
    )

    assert ("PoolTimeouts", fleet.drilled) not in reached("pages")


def test_a_broken_promise_about_money_pages_though_a_drill_is_on(fleet: Fleet) -> None:
    def pages() -> set[str]:
        return {alert["alertname"] for alert in fleet.alertmanager.received().get("pages", [])}

    wait_until(lambda: "InvariantViolated" in pages(), within_s=60, what="a page")


def test_every_instance_has_the_mark_that_the_alerts_join(fleet: Fleet) -> None:
    def marks() -> dict[str, str]:
        samples = fleet.prometheus.query("instance:holdfast_drill:info")
        return {sample.labels["instance"]: sample.labels["drill"] for sample in samples}

    wanted = {fleet.in_earnest: "false", fleet.drilled: "true"}
    # An instance with a late scrape has no value until the next.
    wait_until(lambda: marks() == wanted, within_s=60, what="a mark on each of the two")
    assert any("instance:holdfast_drill:info" in rule["expr"] for rule in rules())
