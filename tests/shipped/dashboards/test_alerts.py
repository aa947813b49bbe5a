"""Every alert fires and stays silent in its test cases, and its route has the right receiver."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.observability import checks
from service.observability.metrics import catalogue as metrics
from tests.support import yaml_text
from tests.support.shipped_queries import ROOT, dashboards, rules

PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTMANAGER_YML = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))

ALERTS = [rule for rule in rules() if "alert" in rule]
CASES = [
    check
    for path in RULE_TESTS
    for test in yaml_text.load(path.read_text())["tests"]
    for check in test.get("alert_rule_test", [])
]


def identity(rule: dict[str, Any]) -> str:
    """A rule's name; burn-rate rules share a name and differ in their windows."""
    return f"{rule['alert']} {rule['labels'].get('long_window', '')}".strip()


@pytest.mark.needs("promtool")
def test_rules_and_configuration_are_valid() -> None:
    ended = _run("promtool", "check", "config", str(PROMETHEUS / "prometheus.yml"))

    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_the_cases_of_the_rules_hold(path: Path) -> None:
    ended = _run("promtool", "test", "rules", str(path))

    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=identity)
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(rule: dict[str, Any]) -> None:
    of_this = [case for case in CASES if case["alertname"] == rule["alert"]]
    fired = [expected["exp_labels"] for case in of_this for expected in case["exp_alerts"]]

    assert any(rule["labels"].items() <= labels.items() for labels in fired)
    assert any(not case["exp_alerts"] for case in of_this)


def test_every_recorded_series_is_evaluated_in_a_case() -> None:
    evaluated = " ".join(
        check["expr"]
        for path in RULE_TESTS
        for test in yaml_text.load(path.read_text())["tests"]
        for check in test.get("promql_expr_test", [])
    )

    for rule in rules():
        if "record" in rule:
            assert re.search(rf"(?<![\w:]){rule['record']}(?![\w:])", evaluated), rule["record"]


@pytest.mark.parametrize("rule", ALERTS, ids=identity)
def test_alert_names_its_severity_customer_impact_and_runbook(
    rule: dict[str, Any],
) -> None:
    annotations = rule["annotations"]
    uids = {dashboard["uid"] for dashboard in dashboards().values()}

    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert annotations["summary"].endswith(".")
    assert annotations["description"].endswith(".")
    assert annotations["runbook_url"] == f"https://runbooks.holdfast.example/{rule['alert']}.md"
    assert annotations["dashboard"].removeprefix("/d/") in uids


def test_the_budgets_are_what_the_service_promises() -> None:
    budgets = {
        rule["labels"]["slo"]: float(re.fullmatch(r"vector\((.*)\)", rule["expr"])[1])  # type: ignore[index]
        for rule in rules()
        if rule.get("record") == "slo:holdfast_error_budget:ratio"
    }

    promised = {slo: 1 - target for slo, target in metrics.SLO_TARGETS.items() if target < 1}
    assert budgets == pytest.approx(promised)


@pytest.mark.parametrize(
    ("alert", "limit_s"),
    [
        ("UnknownTooOld", checks.UNKNOWN_TOO_OLD_S),
        ("InvariantsNotChecked", checks.INVARIANTS_TOO_OLD_S),
        ("SweepBehind", checks.SWEEP_TOO_OLD_S),
    ],
)
def test_the_console_and_the_alert_have_one_limit(alert: str, limit_s: float) -> None:
    (rule,) = (rule for rule in ALERTS if rule["alert"] == alert)

    assert rule["expr"].endswith(f" > {limit_s:.0f}")


@pytest.mark.needs("amtool")
def test_alertmanagers_configuration_is_valid() -> None:
    ended = _run("amtool", "check-config", str(ALERTMANAGER_YML))

    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.needs("amtool")
@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["severity=page", "drill=false"], "pages"),
        (["severity=page"], "pages"),
        (["severity=page", "drill=true"], "drills"),
        (["severity=ticket", "drill=false"], "tickets"),
        (["severity=ticket", "drill=true"], "drills"),
        (["severity=of another rule file"], "tickets"),
    ],
)
def test_an_alert_reaches_its_receiver(labels: list[str], receiver: str) -> None:
    ended = _run("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER_YML}", *labels)

    assert ended.stdout.strip() == receiver, ended.stderr


def test_alertmanagers_configuration_holds_no_secret() -> None:
    text = ALERTMANAGER_YML.read_text()

    urls = re.findall(r"https?://\S+", text)

    assert all(url.startswith("http://127.0.0.1:") for url in urls)
    assert not re.search(r"(?m)^\s*(password|token|api_key|routing_key|credentials):", text)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
