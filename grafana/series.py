"""Reads a panel's queries from a live Prometheus, as Grafana would send them."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its legend, its moments (seconds since the epoch) and its values."""

    legend: str
    labels: Mapping[str, str]
    moments: list[float]
    values: list[float]


@dataclass(frozen=True, slots=True)
class Source:
    """A Prometheus and the span of time to read."""

    url: str
    begin_s: float
    end_s: float
    # Grafana's $__rate_interval: four scrapes, so that a missed one leaves no hole.
    window_s: int

    @property
    def step_s(self) -> float:
        """About as many points as a panel is wide."""
        return max(1.0, (self.end_s - self.begin_s) / 240)

    def over_time(self, target: Mapping[str, Any]) -> list[Series]:
        """Every series of a query over the span, a point every step."""
        found = self._get(
            "query_range",
            query=self._filled_in(target["expr"]),
            start=str(self.begin_s),
            end=str(self.end_s),
            step=str(self.step_s),
        )
        return [
            _series(one["metric"], one["values"], target.get("legendFormat", "")) for one in found
        ]

    def now(self, target: Mapping[str, Any]) -> list[Series]:
        """Every series of a query at the end of the span."""
        found = self._get("query", query=self._filled_in(target["expr"]), time=str(self.end_s))
        return [
            _series(one["metric"], [one["value"]], target.get("legendFormat", "")) for one in found
        ]

    def _filled_in(self, expr: str) -> str:
        span_s = round(self.end_s - self.begin_s)
        filled = expr.replace("$__rate_interval", f"{self.window_s}s")
        filled = filled.replace("$__range", f"{span_s}s")
        return filled.replace('"$instance"', '".*"').replace('"$provider"', '".*"')

    def _get(self, what: str, **parameters: str) -> list[dict[str, Any]]:
        body = urllib.parse.urlencode(parameters).encode()
        # The user gives the address on the command line.
        with urllib.request.urlopen(f"{self.url}/api/v1/{what}", body, timeout=30) as answer:  # noqa: S310
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result


def _series(labels: dict[str, str], samples: list[Any], legend_format: str) -> Series:
    legend = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend_format)
    return Series(
        legend.strip(),
        labels,
        [float(moment) for moment, _ in samples],
        [float(value) for _, value in samples],
    )
