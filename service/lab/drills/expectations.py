"""Measures a check on the service's registry, on its callers and on the run. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.lab.drills.document import DrillCheckResult
from service.lab.drills.load import Call
from service.lab.drills.plan import Check
from service.lab.drills.promql import promql
from service.observability.metrics.registry import SampleKey
from service.observability.metrics.window import Window

Samples = Mapping[SampleKey, float]

# Measures of answers and waiting times are meaningful without a fault too.
_TELLING_WITHOUT_FAULT = frozenset({"callers", "waited", "quantile", "share_over"})
_SERVED = frozenset({"200", "201", "2xx", "succeeded"})
_OF_TIME = _TELLING_WITHOUT_FAULT | {"recovery", "settled"}


@dataclass(frozen=True, slots=True)
class Reading:
    """The registry at one moment of the run."""

    at_s: float
    samples: Samples


Span = tuple[Reading, Reading]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """All readings of one target: named transitions, and each second the gauges of `peak`, `low`."""

    fault_began: Reading
    fault_ended: Reading
    ended: Reading
    every_second: Sequence[Reading] = ()
    # The plan's named faults, each with its first and last reading.
    faults: Mapping[str, Span] = field(default_factory=dict)
    # Answers to the run's own callers of this target; retries with the same key are not included.
    calls: Sequence[Call] = ()
    # From the end of the fault to the first success of a payment sent after it; None: never.
    recovery_s: float | None = None
    # From the end of the fault until no payment of the run was in doubt; None: never.
    settled_s: float | None = None
    # How often a link, a signal or a webhook injected the fault.
    injections: int = 0
    # The readings without the fault: of a pair's control, or of the seconds before the fault.
    reference: Readings | None = None

    def span(self, during: str) -> Span | None:
        """The first and last reading; None where the run ended before this phase."""
        return {
            **self.faults,
            "fault": (self.fault_began, self.fault_ended),
            "recovery": (self.fault_ended, self.ended),
            "all": (self.fault_began, self.ended),
        }.get(during)


def before(moment_s: float, calls: Sequence[Call]) -> list[Call]:
    """The calls answered before `moment_s`; calls in flight then belong to the next phase."""
    return [call for call in calls if call.at_s + call.ms / 1000 <= moment_s]


def evaluate(check: Check, readings: Readings) -> DrillCheckResult:
    """The check as reports show it; a number that cannot be measured fails the check."""
    value = _measured(check, readings)
    reference = None
    if readings.reference is not None and _is_telling_without_fault(check):
        reference = _measured(check, readings.reference)
    is_kept = (
        value is not None
        and (check.min is None or value >= check.min)
        and (check.max is None or value <= check.max)
    )
    span = readings.span(check.during)
    return DrillCheckResult(
        text=check.text,
        promql=promql(check, 0.0 if span is None else span[1].at_s - span[0].at_s),
        value=_rounded(value),
        reference=_rounded(reference),
        min=check.min,
        max=check.max,
        during=check.during,
        is_of_time=check.measure in _OF_TIME,
        ok=is_kept,
    )


def _is_telling_without_fault(check: Check) -> bool:
    """Whether the same bound must hold without a fault. An `at least` bound on 202 answers, for
    example, need not hold: without a fault no payment is queued."""
    if check.measure == "callers" and check.min is not None:
        return check.word in _SERVED
    return check.measure in _TELLING_WITHOUT_FAULT


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _measured(check: Check, readings: Readings) -> float | None:
    span = readings.span(check.during)
    return None if span is None else _value(check, readings, *span)


def _value(check: Check, readings: Readings, first: Reading, last: Reading) -> float | None:
    window = Window(first.samples, last.samples, last.at_s - first.at_s)
    match check.measure:
        case "delta":
            return _ratio(check, window)
        case "rate":
            grown = _delta(window, check.metric, check.labels)
            return grown / window.seconds if window.seconds > 0 else 0.0
        case "quantile":
            return window.quantile(check.at, check.metric, **check.labels)
        case "share_over":
            return _share_over(check, window)
        case "peak" | "low":
            return _extreme(check, readings, first, last)
        case "after":
            return window.value(check.metric, **check.labels)
        case "callers" | "waited":
            calls = [call for call in readings.calls if first.at_s <= call.at_s <= last.at_s]
            return _of_callers(check, calls)
        case "struck":
            return float(readings.injections)
        case "settled":
            return readings.settled_s
    return readings.recovery_s


def _delta(window: Window, metric: str, labels: Mapping[str, str]) -> float:
    """Growth over all series with these labels; a label value after `!` is excluded."""
    wanted = {name: word for name, word in labels.items() if not word.startswith("!")}
    left_out = [
        window.delta(metric, **wanted, **{name: word[1:]})
        for name, word in labels.items()
        if word.startswith("!")
    ]
    return window.delta(metric, **wanted) - sum(left_out)


def _ratio(check: Check, window: Window) -> float | None:
    delta = _delta(window, check.metric, check.labels)
    if check.per is None:
        return delta
    whole = _delta(window, check.per, check.per_labels)
    return delta / whole if whole else None


def _share_over(check: Check, window: Window) -> float | None:
    count = window.delta(f"{check.metric}_count", **check.labels)
    quick = window.delta(f"{check.metric}_bucket", le=str(check.at), **check.labels)
    return 1 - quick / count if count else None


def _extreme(check: Check, readings: Readings, first: Reading, last: Reading) -> float | None:
    """The highest or lowest value of a gauge among the readings."""
    windows = [
        Window({}, one.samples, 0.0)
        for one in readings.every_second
        if first.at_s <= one.at_s <= last.at_s
    ]
    values = [window.value(check.metric, **check.labels) for window in windows]
    seen = [value for value in values if value is not None]
    return (max if check.measure == "peak" else min)(seen, default=None)


def _of_callers(check: Check, calls: Sequence[Call]) -> float | None:
    if not calls:
        return None
    if check.measure == "callers":
        return sum(call.got(check.word) for call in calls) / len(calls)
    waits_s = sorted(call.ms / 1000 for call in calls)
    return waits_s[max(0, math.ceil(check.at * len(waits_s)) - 1)]
