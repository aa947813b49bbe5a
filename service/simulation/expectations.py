"""Measures a check on the service's registry, on its callers and on the run. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.observability.registry import SampleKey
from service.observability.window import Window
from service.simulation.load import Call
from service.simulation.plan import Check
from service.simulation.promql import promql

Samples = Mapping[SampleKey, float]

# What callers get and how long it takes is a question without a fault too.
_TELLING_WITHOUT_FAULT = frozenset({"callers", "waited", "quantile", "share_over"})
_SERVED = frozenset({"200", "201", "2xx", "succeeded"})
# Where a machine with too much to do is as slow as a service that does not hold.
_OF_TIME = _TELLING_WITHOUT_FAULT | {"recovery", "settled"}


@dataclass(frozen=True, slots=True)
class Reading:
    """The registry at one moment of the run."""

    at_s: float
    samples: Samples


Span = tuple[Reading, Reading]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What a run read of one side: all at its turns, and once a second the gauges of `peak`, `low`."""

    fault_began: Reading
    fault_ended: Reading
    ended: Reading
    every_second: Sequence[Reading] = ()
    # The named faults of the plan, each with its first and last reading.
    faults: Mapping[str, Span] = field(default_factory=dict)
    # What the run's own callers of this side got; the same key again is not among them.
    calls: Sequence[Call] = ()
    # From the end of the fault to the first success of a payment sent after it; None: never.
    recovery_s: float | None = None
    # From the end of the fault until no payment of the run was in doubt; None: never.
    settled_s: float | None = None
    # How often a link, a signal or a webhook struck.
    struck: int = 0
    # The same without the fault: the control of a pair, or the seconds before it.
    reference: Readings | None = None

    def span(self, during: str) -> Span | None:
        """The first and last reading; None where the run did not come to it."""
        return {
            **self.faults,
            "fault": (self.fault_began, self.fault_ended),
            "recovery": (self.fault_ended, self.ended),
            "all": (self.fault_began, self.ended),
        }.get(during)


def before(moment_s: float, calls: Sequence[Call]) -> list[Call]:
    """The calls that were answered by then; one that was still on its way tells of what came next."""
    return [call for call in calls if call.at_s + call.ms / 1000 <= moment_s]


def evaluate(check: Check, readings: Readings) -> dict[str, Any]:
    """The check as people are shown it; a number that cannot be had fails it."""
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
    return {
        "text": check.text,
        "promql": promql(check, 0.0 if span is None else span[1].at_s - span[0].at_s),
        "value": _rounded(value),
        # What it was where no fault was on; a promise that was not kept there either blames nobody.
        "reference": _rounded(reference),
        "min": check.min,
        "max": check.max,
        "during": check.during,
        "is_of_time": check.measure in _OF_TIME,
        "ok": is_kept,
    }


def _is_telling_without_fault(check: Check) -> bool:
    """Whether the same bound is to be kept where no fault is on; `at least` so many who are told
    that their payment is kept for later, say, is not."""
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
            return float(readings.struck)
        case "settled":
            return readings.settled_s
    return readings.recovery_s


def _delta(window: Window, metric: str, labels: Mapping[str, str]) -> float:
    """Growth over all series with these labels; a word after `!` is left out."""
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
    """The highest or lowest value that a gauge was seen at."""
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
