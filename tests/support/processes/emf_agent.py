"""A model of the CloudWatch agent's path from /metrics to embedded metric format, for tests.

By its source: histograms are dropped; a counter is published as its growth, and its first value is only
the start; a series is published under the dimension sets of its declaration, without sums over other
labels. A dimension set without one of a series' labels would therefore mix several series into one
metric: the model refuses to publish such a metric, and no alarm may use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

# Labels that the scrape adds; no declaration names them as dimensions.
SCRAPE_LABELS = frozenset(("job", "instance"))


@dataclass(frozen=True, slots=True)
class MetricName:
    """A CloudWatch metric: the same name with other dimensions is another metric."""

    namespace: str
    name: str
    dimensions: frozenset[tuple[str, str]] = frozenset()


@dataclass(slots=True)
class EmfAgent:
    """An agent with these two configurations; each `scrape` gives what it publishes."""

    agent: dict[str, Any]
    scraping: dict[str, Any]
    _last: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)

    def scrape(self, exposition: str) -> dict[MetricName, list[float]]:
        """The values that reach CloudWatch from this page of /metrics."""
        published: dict[MetricName, list[float]] = {}
        for job in self.scraping["scrape_configs"]:
            for family in text_string_to_metric_families(exposition):
                for sample in family.samples:
                    labels = {**sample.labels, **_target_labels(job)}
                    if not _is_kept(job, sample.name):
                        continue
                    value = self._value(family, sample, labels)
                    if value is None:
                        continue
                    for name in self._names(sample.name, labels):
                        published.setdefault(name, []).append(value)
        return published

    def _value(self, family: Metric, sample: Sample, labels: dict[str, str]) -> float | None:
        if family.type == "gauge":
            return sample.value
        if family.type != "counter":
            return None
        series = (sample.name, frozenset(labels.items()))
        before = self._last.get(series)
        self._last[series] = sample.value
        if before is None:
            return None
        return sample.value - before if sample.value >= before else sample.value

    def _names(self, name: str, labels: dict[str, str]) -> Iterator[MetricName]:
        emf = self.agent["logs"]["metrics_collected"]["prometheus"]["emf_processor"]
        told_apart_by = set(labels) - SCRAPE_LABELS
        for declaration in emf["metric_declaration"]:
            separator = declaration.get("label_separator", ";")
            text = separator.join(labels.get(label, "") for label in declaration["source_labels"])
            if not re.search(declaration["label_matcher"], text):
                continue
            if not any(re.search(selector, name) for selector in declaration["metric_selectors"]):
                continue
            for dimensions in declaration["dimensions"]:
                if set(dimensions) == told_apart_by:
                    chosen = frozenset((label, labels[label]) for label in dimensions)
                    yield MetricName(emf["metric_namespace"], name, chosen)


def _target_labels(job: dict[str, Any]) -> dict[str, str]:
    (static,) = job["static_configs"]
    return {"job": job["job_name"], "instance": static["targets"][0], **static.get("labels", {})}


def _is_kept(job: dict[str, Any], name: str) -> bool:
    return all(
        re.fullmatch(rule["regex"], name) is not None
        for rule in job.get("metric_relabel_configs", [])
        if rule["action"] == "keep" and rule["source_labels"] == ["__name__"]
    )
