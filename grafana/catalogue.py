"""Writes docs/metrics.md: every metric of the service, for readers who write their own queries.

`python -m grafana.catalogue`. The names, words and buckets are the catalogue's; nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from service.observability.metrics import catalogue as metrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

HEAD = """\
# Metrics

Every metric of the service, as `/metrics` on the ops plane gives it: added up over the instance's workers,
dead ones included. `python -m grafana.catalogue` writes this page from `service/observability/metrics/catalogue.py`; a
test compares the two. Labels come from closed sets (never a merchant, a payment, a path as typed or an
error's text), so an instance has at most 2,000 series. The OpenMetrics format adds exemplars with the trace
id on the buckets of requests, payments, provider calls and waits for a connection.

[dashboards.md](dashboards.md) shows the dashboards; the [runbooks](runbooks/README.md) describe the alerts.
"""
# The families in the order of the catalogue, by how their names begin.
FAMILIES = {
    "HTTP": ("http_", "worker_", "requests_"),
    "Payments": ("payments_", "payment_", "idempotent_", "unknown_", "money_", "needs_"),
    "Provider": ("provider_", "retry_"),
    "Circuit breaker": ("breaker_",),
    "Bulkhead": ("bulkhead_",),
    "Database": ("db_",),
    "Settling": (
        "reconcile_",
        "sweep_",
        "disputes_",
        "invariant_",
        "event_",
        "queued_",
        "recovering",
        "webhooks_",
        "webhook_",
        "rows_",
    ),
    "Health, drills, promises": ("health_", "simulation_", "drill_", "slo_", "build_"),
}
SUFFIXES = {"counter": "_total"}


def rendered() -> str:
    """The page; the same text for the same catalogue, always."""
    return "\n".join([HEAD, *_families()])


def _families() -> Iterator[str]:
    declared = {
        name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)
    }
    for title, beginnings in FAMILIES.items():
        yield f"## {title}\n"
        yield "| metric | type | labels | meaning |"
        yield "|---|---|---|---|"
        for name, metric in declared.items():
            if name.startswith(beginnings):
                yield _row(metric)
        yield ""


def _row(metric: MetricWrapperBase) -> str:
    name = f"`{metric._name}{SUFFIXES.get(metric._type, '')}`"
    labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "–"
    tells = metric._documentation
    if metric._type == "histogram":
        edges = ", ".join(f"{edge:g}" for edge in metric._kwargs["buckets"])
        tells = f"{tells} Buckets: {edges} s."
    return f"| {name} | {metric._type} | {labels} | {tells} |"


def main() -> None:
    PAGE.write_text(rendered(), encoding="utf-8")


if __name__ == "__main__":
    main()
