"""Every alert has a runbook with valid queries, and every runbook has an alert."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import get_args

import psycopg2
import pytest
import yaml

from service.payments.settling.invariants import RULES
from service.web.api.schemas import PaymentStatus
from tests.support.shipped_queries import ROOT, catalogue, our_names, recorded_names, rules

RUNBOOKS = ROOT / "docs" / "runbooks"
SECTIONS = [
    "Meaning",
    "Customer impact",
    "First look",
    "Actions",
    "Escalation",
]
ALERTS = sorted({rule["alert"] for rule in rules() if "alert" in rule})


def blocks(language: str) -> list[tuple[str, str]]:
    """Every fenced block of a language, with its page."""
    return [
        (path.name, block)
        for path in sorted(RUNBOOKS.glob("*.md"))
        for block in re.findall(rf"(?ms)^ *```{language}\n(.*?)^ *```$", path.read_text())
    ]


def queries() -> list[tuple[str, str]]:
    """The PromQL queries, separated by empty lines."""
    return [
        (page, query.strip()) for page, block in blocks("promql") for query in block.split("\n\n")
    ]


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}

    assert pages == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_answers_the_five_questions_in_order(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()

    assert text.startswith(f"# {alert}\n")
    assert re.findall(r"(?m)^## (.*)$", text) == SECTIONS
    assert "```promql" in text


def test_a_runbook_says_how_its_alert_wakes() -> None:
    for alert in ALERTS:
        severities = {rule["labels"]["severity"] for rule in rules() if rule.get("alert") == alert}
        head = (RUNBOOKS / f"{alert}.md").read_text().split("\n")[2].lower()

        assert {word for word in ("page", "ticket") if word in head} == severities, alert


def test_index_names_every_runbook_and_every_link_works() -> None:
    index = (RUNBOOKS / "README.md").read_text()

    assert {f"{alert}.md" for alert in ALERTS} <= set(re.findall(r"\]\((\w+\.md)\)", index))
    for path in RUNBOOKS.glob("*.md"):
        for link in re.findall(r"\]\((\w+\.md)\)", path.read_text()):
            assert (RUNBOOKS / link).is_file(), f"{path.name}: {link}"


@pytest.mark.needs("promtool")
def test_runbook_queries_are_promql_over_the_catalogue(tmp_path: Path) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    written = [
        {"record": f"query:{number}", "expr": query} for number, (_, query) in enumerate(queries())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": written}]}))

    checked = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
    for page, query in queries():
        assert our_names(query) <= set(catalogue()), page
        assert recorded_names(query) <= recorded, page


def test_the_statements_of_the_runbooks_fit_the_schema(owner_url: str) -> None:
    connection = psycopg2.connect(owner_url)
    try:
        with connection.cursor() as cursor:
            for page, block in blocks("sql"):
                # The planner knows every table and column without touching a row.
                cursor.execute(f"EXPLAIN {block}")
                assert cursor.fetchall(), page
    finally:
        connection.close()


def test_the_metrics_that_a_runbooks_prose_names_exist() -> None:
    families = {name.removesuffix("_bucket") for name in catalogue()}

    for path in RUNBOOKS.glob("*.md"):
        for name in re.findall(r"`(holdfast_\w+)", path.read_text()):
            known = any(family.startswith(name) for family in families)
            assert known or name == "holdfast_", f"{path.name}: {name}"


def test_the_settings_that_a_runbook_names_exist() -> None:
    example = (ROOT / "service" / "settings.py").read_text()

    for path in RUNBOOKS.glob("*.md"):
        for name in re.findall(r"\b(HOLDFAST_[A-Z_]+)\b", path.read_text()):
            assert f'"{name}"' in example, f"{path.name}: {name}"


def test_runbook_status_filters_are_those_of_the_contract() -> None:
    asked = {
        (path.name, status)
        for path in RUNBOOKS.glob("*.md")
        for status in re.findall(r"/v1/payments\?status=(\w+)", path.read_text())
    }

    assert asked
    assert {one for one in asked if one[1] not in get_args(PaymentStatus)} == set()


def test_every_invariant_is_explained_where_its_alert_leads() -> None:
    page = (RUNBOOKS / "InvariantViolated.md").read_text()

    assert [rule for rule in RULES if f"`{rule}`" not in page] == []
