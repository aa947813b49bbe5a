"""A check as a PromQL query, for the same question in Grafana. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from service.lab.drills.plan import Check
from service.observability.metrics.catalogue import NAMESPACE

_ANSWERS = {"route": "/v1/payments", "method": "POST"}


def promql(check: Check, seconds: float) -> str:
    """The query over the run's length; empty where only the drill has the data."""
    span = f"[{max(1, math.ceil(seconds))}s]"
    name = f"{NAMESPACE}_{check.metric}"
    series = name + _braces(check.labels)
    match check.measure:
        case "delta" if check.per is not None:
            whole = f"{NAMESPACE}_{check.per}{_braces(check.per_labels)}"
            return f"sum(increase({series}{span})) / sum(increase({whole}{span}))"
        case "delta":
            return f"sum(increase({series}{span}))"
        case "rate":
            return f"sum(rate({series}{span}))"
        case "quantile":
            return _quantile(check.at, name, check.labels, span)
        case "share_over":
            quick = _braces({**check.labels, "le": str(check.at)})
            return (
                f"1 - sum(increase({name}_bucket{quick}{span}))"
                f" / sum(increase({name}_count{_braces(check.labels)}{span}))"
            )
        case "peak" | "low":
            function = "max" if check.measure == "peak" else "min"
            return f"{function}_over_time(sum({series}){span[:-1]}:1s])"
        case "after":
            return f"sum({series})"
        case "callers":
            return _share_of_answers(check.word, span)
        case "waited":
            return _quantile(check.at, f"{NAMESPACE}_http_request_duration_seconds", _ANSWERS, span)
    return ""


def _quantile(q: float, name: str, labels: Mapping[str, str], span: str) -> str:
    buckets = f"{name}_bucket{_braces(labels)}{span}"
    return f"histogram_quantile({q:g}, sum by (le) (rate({buckets})))"


def _share_of_answers(word: str, span: str) -> str:
    """The share of all callers, of the drill or not; no metric counts callers without an answer."""
    if word[:1] in "2345" and len(word) == 3:
        status = f'status=~"{word.replace("x", ".")}"'
        counter, wanted = f"{NAMESPACE}_http_requests_total", [status]
        labels = [f'{label}="{value}"' for label, value in _ANSWERS.items()]
    elif word in ("succeeded", "unknown", "declined"):
        counter, wanted, labels = f"{NAMESPACE}_payments_total", [f'outcome="{word}"'], []
    else:
        return ""
    part, whole = (
        f"sum(increase({counter}{{{', '.join(words)}}}{span}))"
        if words
        else f"sum(increase({counter}{span}))"
        for words in ([*labels, *wanted], labels)
    )
    return f"{part} / {whole}"


def _braces(labels: Mapping[str, str]) -> str:
    """`{name="value"}`; a value after `!` must not match."""
    if not labels:
        return ""
    pairs = [
        f'{name}!="{word[1:]}"' if word.startswith("!") else f'{name}="{word}"'
        for name, word in labels.items()
    ]
    return "{" + ", ".join(pairs) + "}"
