"""Every shipped query (panels, annotations, variables, rules), and the names of the catalogue."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from service.observability.metrics import catalogue as metrics
from tests.support import yaml_text

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "grafana" / "dashboards"
RULES = ROOT / "deploy" / "prometheus" / "rules"
# Labels that Prometheus or its histograms add to ours.
FOREIGN_LABELS = {"instance", "job", "le", "worker"}


@dataclass(frozen=True, slots=True)
class ShippedQuery:
    """A query and its place; `expr` has its variables filled in."""

    where: str
    expr: str


def dashboards() -> dict[str, dict[str, Any]]:
    """The committed dashboards by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panel_queries(*, window: str = "1m") -> Iterator[ShippedQuery]:
    """Each query of each panel; rates over `window`, for all instances and providers."""
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                expr = filled_in(target["expr"], window=window)
                yield ShippedQuery(f"{name}: {panel['title']} ({target['refId']})", expr)


def annotation_queries() -> Iterator[ShippedQuery]:
    for name, dashboard in dashboards().items():
        for annotation in dashboard["annotations"]["list"]:
            yield ShippedQuery(f"{name}: {annotation['name']}", filled_in(annotation["expr"]))


def rules() -> list[dict[str, Any]]:
    """Every rule of every file, recording and alerting."""
    return [
        rule
        for path in sorted(RULES.glob("*.yml"))
        for group in yaml_text.load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def rule_queries() -> Iterator[ShippedQuery]:
    for rule in rules():
        yield ShippedQuery(f"rule {rule.get('alert') or rule['record']}", rule["expr"])


def filled_in(expr: str, *, window: str = "1m") -> str:
    """The query that Grafana sends with every value selected."""
    replaced = expr.replace("$__rate_interval", window).replace("$__range", "1h")
    return replaced.replace('"$instance"', '".*"').replace('"$provider"', '".*"')


def our_names(expr: str) -> set[str]:
    """The names of our metrics in a query, without recorded series, whose names have a colon."""
    return set(re.findall(r"(?<![\w:])holdfast_\w+(?!:)\b", expr))


def recorded_names(expr: str) -> set[str]:
    return set(re.findall(r"\b\w+:holdfast_\w+:\w+|\bholdfast:\w+:\w+", expr))


def catalogue() -> Mapping[str, set[str]]:
    """Each series name that `metrics.py` can give, and its labels."""
    names: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            suffixes = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}
            for suffix in suffixes.get(metric._type or "", ("",)):
                names[metric._name + suffix] = set(metric._labelnames)
    return names


def families() -> set[str]:
    """The catalogue's own names."""
    return {name.removesuffix("_bucket") for name in catalogue() if not _is_part(name)}


def family(name: str) -> str:
    return re.sub(r"_(bucket|count|sum)$", "", name)


def _is_part(name: str) -> bool:
    return name.endswith(("_count", "_sum"))
