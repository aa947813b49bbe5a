"""The metrics that a check may measure. A misspelt one would grow by 0 and satisfy every `max`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.metrics import MetricWrapperBase

from service.observability.metrics import catalogue as metrics

_KIND_OF = {
    **dict.fromkeys(("delta", "rate"), "counter"),
    **dict.fromkeys(("quantile", "share_over"), "histogram"),
    **dict.fromkeys(("peak", "low", "after"), "gauge"),
}


def require_measurable(measure: str, name: str, labels: Iterable[str]) -> None:
    """Raise ValueError for a metric or a label that the service does not have."""
    kind = _KIND_OF[measure]
    known = _labels_by_name(kind)
    if name not in known:
        raise ValueError(f"there is no {kind} {name}")
    if unknown := set(labels) - known[name]:
        raise ValueError(f"{name} has no label {', '.join(sorted(unknown))}")


def _labels_by_name(kind: str) -> Mapping[str, set[str]]:
    suffix = "_total" if kind == "counter" else ""
    return {
        metric._name.removeprefix(f"{metrics.NAMESPACE}_") + suffix: set(metric._labelnames)
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase) and metric._type == kind
    }
