"""Measures a check on the service's own registry, and says the same in PromQL. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.observability.metrics import NAMESPACE
from service.observability.registry import SampleKey
from service.observability.window import Window
from service.simulation.plan import Check

Samples = Mapping[SampleKey, float]


@dataclass(frozen=True, slots=True)
class Reading:
    """The whole registry at one moment of the run."""

    at_s: float
    samples: Samples


@dataclass(frozen=True, slots=True)
class Readings:
    """What a run read of one side: at its turns, and once a second in between."""

    fault_began: Reading
    fault_ended: Reading
    ended: Reading
    every_second: Sequence[Reading]
    # From the end of the fault to the first success of a payment sent after it; None: never.
    recovery_s: float | None

    def window(self, during: str) -> Window:
        first, last = {
            "fault": (self.fault_began, self.fault_ended),
            "recovery": (self.fault_ended, self.ended),
            "all": (self.fault_began, self.ended),
        }[during]
        return Window(first.samples, last.samples, last.at_s - first.at_s)

    def within(self, during: str) -> list[Reading]:
        first = self.fault_ended if during == "recovery" else self.fault_began
        last = self.fault_ended if during == "fault" else self.ended
        return [one for one in self.every_second if first.at_s <= one.at_s <= last.at_s]


def evaluate(check: Check, readings: Readings) -> dict[str, Any]:
    """The check as people are shown it; a number that cannot be had fails it."""
    value = _value(check, readings)
    is_kept = (
        value is not None
        and (check.min is None or value >= check.min)
        and (check.max is None or value <= check.max)
    )
    return {
        "text": check.text,
        "promql": promql(check, readings.window(check.during).seconds),
        "value": None if value is None else round(value, 4),
        "min": check.min,
        "max": check.max,
        "during": check.during,
        "ok": is_kept,
    }


def _value(check: Check, readings: Readings) -> float | None:
    window = readings.window(check.during)
    match check.measure:
        case "delta":
            return _ratio(window.delta(check.metric, **check.labels), check, window)
        case "rate":
            return window.rate(check.metric, **check.labels)
        case "quantile":
            return window.quantile(check.at, check.metric, **check.labels)
        case "share_over":
            return _share_over(check, window)
        case "peak" | "low":
            seen = [
                value
                for one in readings.within(check.during)
                if (value := Window({}, one.samples, 0.0).value(check.metric, **check.labels))
                is not None
            ]
            return (max if check.measure == "peak" else min)(seen, default=None)
        case "after":
            return window.value(check.metric, **check.labels)
    return readings.recovery_s


def _ratio(delta: float, check: Check, window: Window) -> float | None:
    if check.per is None:
        return delta
    whole = window.delta(check.per)
    return delta / whole if whole else None


def _share_over(check: Check, window: Window) -> float | None:
    count = window.delta(f"{check.metric}_count", **check.labels)
    quick = window.delta(f"{check.metric}_bucket", le=_edge(check.at), **check.labels)
    return 1 - quick / count if count else None


def _edge(seconds: float) -> str:
    return "+Inf" if math.isinf(seconds) else str(float(seconds))


def promql(check: Check, seconds: float) -> str:
    """The same question for Prometheus, over the run's own length."""
    span = f"[{max(1, math.ceil(seconds))}s]"
    name = f"{NAMESPACE}_{check.metric}"
    series = name + _braces(check.labels)
    match check.measure:
        case "delta" if check.per is not None:
            whole = f"sum(increase({NAMESPACE}_{check.per}{span}))"
            return f"sum(increase({series}{span})) / {whole}"
        case "delta":
            return f"sum(increase({series}{span}))"
        case "rate":
            return f"sum(rate({series}{span}))"
        case "quantile":
            buckets = f"{name}_bucket{_braces(check.labels)}{span}"
            return f"histogram_quantile({check.at:g}, sum by (le) (rate({buckets})))"
        case "share_over":
            quick = _braces({**check.labels, "le": _edge(check.at)})
            return (
                f"1 - sum(increase({name}_bucket{quick}{span}))"
                f" / sum(increase({name}_count{_braces(check.labels)}{span}))"
            )
        case "peak" | "low":
            function = "max" if check.measure == "peak" else "min"
            return f"{function}_over_time(sum({series}){span[:-1]}:1s])"
        case "after":
            return f"sum({series})"
    return ""


def _braces(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
