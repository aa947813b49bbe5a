"""Count the shipped queries that had an answer in a run, and those with changed values."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from grafana.build import DASHBOARDS
from grafana.series import Series, Source


def told(source: Source) -> Iterator[str]:
    """The figures of this run, a line each, with the queries that had no answer."""
    boards = [json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))]
    panels = [panel for board in boards for panel in board["panels"] if panel["type"] != "row"]
    queries = [
        (f"{board['title']}: {panel['title']}", target)
        for board in boards
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]
    yield f"{len(boards)} dashboards, {len(panels)} panels"
    yield from _counted("queries of panels", queries, source)
    rules = list(_rules(source))
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    # Several rules record one name, with other labels.
    named = [(name, {"expr": name}) for name in dict.fromkeys(recorded)]
    yield f"{len(rules)} rules: {len(recorded)} record, {len(rules) - len(recorded)} alert"
    yield from _counted("recorded series", named, source)
    failed = [rule["name"] for rule in rules if rule.get("lastError")]
    yield f"rules that failed: {', '.join(failed) or 'none'}"
    firing = source.over_time({"expr": 'max by (alertname) (ALERTS{alertstate="firing"})'})
    names = sorted(one.labels["alertname"] for one in firing)
    yield f"alerts that fired: {', '.join(names) or 'none'}"


def _counted(
    what: str, queries: list[tuple[str, Mapping[str, Any]]], source: Source
) -> Iterator[str]:
    answers = [(where, source.over_time(target)) for where, target in queries]
    with_data = sum(bool(series) for _, series in answers)
    moved = sum(any(map(_has_moved, series)) for _, series in answers)
    yield f"{len(queries)} {what}: {with_data} had data, {moved} moved"
    yield from (f"  no data: {where}" for where, series in answers if not series)


def _has_moved(series: Series) -> bool:
    values = [value for value in series.values if not math.isnan(value)]
    return len(values) > 1 and max(values) > min(values)


def _rules(source: Source) -> Iterator[Mapping[str, Any]]:
    # The user gives the address on the command line.
    with urllib.request.urlopen(f"{source.url}/api/v1/rules", timeout=30) as answer:  # noqa: S310
        for group in json.load(answer)["data"]["groups"]:
            yield from group["rules"]
