"""The common frame of the dashboards: variables, annotations, links to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from grafana.panels import BAD, LIMIT, SOURCE, WAIT, Panel
from grafana.queries import INSTANCE, PROVIDER

TAG = "holdfast"


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard: rows of panels, each row under a question that it answers."""

    name: str
    title: str
    description: str
    rows: Sequence[tuple[str, Sequence[Panel]]]

    @property
    def uid(self) -> str:
        return f"holdfast-{self.name}"


def framed(board: Board, *, runbooks: str) -> dashboard.Dashboard:
    """The dashboard, ready to be encoded."""
    built = (
        dashboard.Dashboard(f"Holdfast: {board.title}")
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(_others())
    )
    for variable in _variables(runbooks):
        built = built.with_variable(variable)
    for annotation in _annotations():
        built = built.annotation(annotation)
    for title, panels in board.rows:
        built = built.with_row(dashboard.Row(title))
        for panel in panels:
            built = built.with_panel(panel)
    return built


def _others() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("Holdfast")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )


def _variables(
    runbooks: str,
) -> list[dashboard.DatasourceVariable | dashboard.QueryVariable | dashboard.ConstantVariable]:
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _label("instance", "Instance", "label_values(holdfast_build_info, instance)"),
        _label("provider", "Provider", "label_values(holdfast_breaker_state, provider)"),
        dashboard.ConstantVariable("runbooks").label("Runbooks").value(runbooks),
    ]


def _label(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(text="All", value="$__all", selected=True))
    )


# The texts of the annotations' marks. The SDK lacks these fields of Grafana's
# Prometheus data source, so `build` adds them by the annotation's name.
ANNOTATION_TEXTS = {
    "Breaker moved": "{{provider}}: {{from_state}} to {{to_state}}",
    "Deployed": "version {{version}}",
    "Drill or simulation": "{{fault}} on {{instance}}",
}


def _annotations() -> list[dashboard.AnnotationQuery]:
    # Openings shorter than a scrape have no state to see, but their transition was counted.
    moved = (
        "sum by (provider, from_state, to_state) "
        f"(increase(holdfast_breaker_transitions_total{{{PROVIDER}}}[1m])) > 0"
    )
    versions = f"count by (version) (holdfast_build_info{{{INSTANCE}}}"
    deployed = f"{versions}) unless {versions} offset 2m)"
    drilled = f"max by (instance, fault) (holdfast_simulation_active{{{INSTANCE}}}) > 0"
    return [
        _annotation("Breaker moved", BAD, moved),
        _annotation("Deployed", LIMIT, deployed),
        _annotation("Drill or simulation", WAIT, drilled),
    ]


def _annotation(name: str, colour: str, expr: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(True)
        .icon_color(colour)
        .expr(expr)
    )
