"""The dashboards match their code, and query only metrics of the service."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.boards import ALL
from grafana.build import rendered
from tests.support import shipped_queries, yaml_text
from tests.support.shipped_queries import (
    DASHBOARDS,
    FOREIGN_LABELS,
    ROOT,
    annotation_queries,
    catalogue,
    dashboards,
    families,
    family,
    our_names,
    panel_queries,
    recorded_names,
    rule_queries,
)

# Metrics that no dashboard and no rule queries, with the reason.
DELIBERATELY_UNUSED: dict[str, str] = {}


@pytest.mark.parametrize("board", ALL, ids=lambda board: board.name)
def test_the_committed_dashboard_is_what_its_code_makes(board: Any) -> None:
    committed = DASHBOARDS / f"{board.name}.json"

    made = rendered(board)

    assert committed.read_text() == made, "Run `python -m grafana.build`."


def test_no_dashboard_is_committed_without_its_code() -> None:
    assert set(dashboards()) == {board.name for board in ALL}


@pytest.mark.needs("promtool")
def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": query.expr}
        for number, query in enumerate([*panel_queries(), *annotation_queries()])
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))

    checked = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_query_uses_metrics_and_labels_of_the_catalogue() -> None:
    known = catalogue()

    for query in [*panel_queries(), *annotation_queries(), *rule_queries()]:
        assert our_names(query.expr) <= set(known), query
        for name, selector in re.findall(r"(?<![\w:])(holdfast_\w+)\{([^}]*)\}", query.expr):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert labels <= known[name] | FOREIGN_LABELS, query


def test_every_recorded_series_that_is_asked_for_is_recorded() -> None:
    recorded = {rule["record"] for rule in shipped_queries.rules() if "record" in rule}

    for query in [*panel_queries(), *annotation_queries(), *rule_queries()]:
        assert recorded_names(query.expr) <= recorded, query


def test_every_metric_of_the_catalogue_is_asked_for() -> None:
    asked = {
        family(name)
        for query in [*panel_queries(), *annotation_queries(), *rule_queries()]
        for name in our_names(query.expr)
    }

    assert families() - asked == set(DELIBERATELY_UNUSED)


@pytest.mark.parametrize("name", sorted(dashboards()))
def test_every_panel_has_its_unit_normal_value_and_runbook(name: str) -> None:
    for panel in dashboards()[name]["panels"]:
        if panel["type"] == "row":
            continue
        runbook = panel["links"][0]["url"].removeprefix("${runbooks}/")

        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].startswith("Good "), panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert (ROOT / "docs" / "runbooks" / runbook).is_file(), runbook
        assert panel["targets"], panel["title"]


@pytest.mark.parametrize("name", sorted(dashboards()))
def test_panels_fill_the_grid_without_overlap(name: str) -> None:
    places = [panel["gridPos"] for panel in dashboards()[name]["panels"]]

    taken = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23
    # Complete rows without holes.
    assert len(taken) == 24 * (max(y for _, y in taken) + 1)


@pytest.mark.parametrize("name", sorted(dashboards()))
def test_a_dashboard_has_the_variables_and_annotations_of_all(name: str) -> None:
    dashboard = dashboards()[name]

    variables = [variable["name"] for variable in dashboard["templating"]["list"]]
    annotations = [annotation["name"] for annotation in dashboard["annotations"]["list"]]

    assert variables == ["datasource", "instance", "provider", "runbooks"]
    assert annotations == ["Breaker moved", "Deployed", "Drill or simulation"]


def test_a_color_means_the_same_on_every_dashboard() -> None:
    meanings: dict[str, set[str]] = {}

    for dashboard in dashboards().values():
        for panel in dashboard["panels"]:
            for override in panel.get("fieldConfig", {}).get("overrides", []):
                colour = override["properties"][0]["value"]["fixedColor"]
                for word in override["matcher"]["options"][3:].split(")")[0].split("|"):
                    meanings.setdefault(word, set()).add(colour)

    assert {word: colours for word, colours in meanings.items() if len(colours) > 1} == {}


def test_provisioning_names_the_data_source_and_the_directory() -> None:
    provisioning = ROOT / "grafana" / "provisioning"

    (source,) = yaml_text.load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    (provider,) = yaml_text.load((provisioning / "dashboards/holdfast.yml").read_text())[
        "providers"
    ]

    assert source["type"] == "prometheus"
    assert source["url"] == "${PROMETHEUS_URL}"
    assert provider["options"]["path"] == "${HOLDFAST_DASHBOARDS}"
