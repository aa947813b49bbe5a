"""A run's timeline as charts: the shapes of an SVG, placed; the page's template writes them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.lab.drills.document import (
    CallerFigures,
    CallSample,
    DrillCheckResult,
    DrillReport,
    FaultPeriod,
    TargetEvidence,
    TargetSecond,
    TimelineSecond,
)

WIDTH, LEFT, RIGHT, TOP, FOOT = 760, 52, 12, 24, 22
# The strip of breaker states needs less height than a chart with values.
HEIGHT, STRIP_HEIGHT = 190, 74

# The outcomes of calls from best to worst: the charts' CSS class and the text of the legend.
OUTCOMES = {
    "succeeded": "succeeded",
    "queued": "kept for later",
    "unknown": "outcome unknown",
    "failed": "refused or no answer",
}
# The scale of waits is logarithmic: 10 ms is normal, 5 s is the timeout.
_WAITS_MS = {10: "10 ms", 100: "100 ms", 1000: "1 s", 5000: "5 s", 15000: "15 s"}
_LEAST_MS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartTimeline:
    """The data that all charts of one target share: the run's seconds, and each fault's period."""

    target: str
    end_s: float
    seconds: Sequence[TimelineSecond]
    faults: Sequence[FaultPeriod]

    def spans(self) -> list[tuple[float, float, TargetSecond]]:
        """(from, to, reading at the end) for each pair of consecutive readings of this target."""
        starts = [max(0.0, self.seconds[0].at_s - 1.0)] if self.seconds else []
        starts += [point.at_s for point in self.seconds[:-1]]
        return [
            (start, point.at_s, point.targets[self.target])
            for start, point in zip(starts, self.seconds, strict=True)
        ]

    def values(self, name: str) -> list[tuple[float, float]]:
        """(second, value) of one figure of this target."""
        return [
            (point.at_s, getattr(point.targets[self.target], name) or 0.0) for point in self.seconds
        ]


def timeline_of(report: DrillReport, target: TargetEvidence) -> ChartTimeline:
    """The run as one target recorded it, until its last answer arrived."""
    seconds = [point for point in report.timeline if target.name in point.targets]
    samples = target.callers.samples
    ends = [point.at_s for point in seconds] + [s.at_s + s.ms / 1000 for s in samples]
    return ChartTimeline(
        target=target.name,
        end_s=max([5.0, *ends]) + 0.5,
        seconds=seconds,
        # The control's links carry no fault.
        faults=report.faults if target.name != "control" else (),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One element of an SVG; its class gives the colour, `text` is shown under the pointer."""

    shape: str
    attributes: Mapping[str, str]
    text: str = ""


def drawn(timeline: ChartTimeline, callers: CallerFigures) -> list[dict[str, Any]]:
    """Four charts of the same seconds, for the template."""
    samples = callers.samples
    left_out = callers.count - len(samples)
    note = f"The first {len(samples)} payments are drawn." if left_out else ""
    return [
        _answers(timeline),
        {**_waits(timeline, samples), "note": note},
        _breaker(timeline),
        _pool(timeline),
    ]


def gauge(check: DrillCheckResult) -> dict[str, Any] | None:
    """The ratio of a check's value to its bound: the bar is full at the bound."""
    value, least, most = check.value, check.min, check.max
    if value is None:
        return None
    if most is not None:
        share = value / most if most else float(value > 0)
        is_kept = value <= most
    else:
        share = 1.0 if not least else value / least
        is_kept = value >= (least or 0.0)
    return {"width": 60 * min(1.0, max(0.0, share)), "is_kept": is_kept}


def _answers(timeline: ChartTimeline) -> dict[str, Any]:
    """The outcomes of calls, stacked; a late reading covers more than one second."""
    stacks = [
        (start, end, {name: getattr(read, name) / max(0.5, end - start) for name in OUTCOMES})
        for start, end, read in timeline.spans()
    ]
    most = _round_up(max((sum(stack.values()) for _, _, stack in stacks), default=0))
    marks = []
    for start, end, stack in stacks:
        below = 0.0
        left, right = _x(start, timeline.end_s), _x(end, timeline.end_s)
        for name, rate in stack.items():
            if rate:
                top, foot = _y(below + rate, most), _y(below, most)
                width = max(1.0, right - left - 1.2)
                marks.append(_box(name, left + 0.6, top, width, foot - top))
                below += rate
    return _chart("Answers a second", marks, timeline, _even_ticks(most), OUTCOMES)


def _waits(timeline: ChartTimeline, samples: Sequence[CallSample]) -> dict[str, Any]:
    """One dot for each payment: when it was sent, and how long its caller waited."""
    dots = [
        Mark(
            shape="circle",
            attributes={
                "class": _class_of(sample),
                "cx": f"{_x(sample.at_s, timeline.end_s):.1f}",
                "cy": f"{_log_y(sample.ms):.1f}",
                "r": "2.6",
            },
            text=f"{sample.ms:g} ms, {sample.status or 'no answer'}",
        )
        for sample in samples
    ]
    ticks = [(_log_y(ms), text) for ms, text in _WAITS_MS.items()]
    return _chart("How long each caller waited", dots, timeline, ticks, OUTCOMES)


def _pool(timeline: ChartTimeline) -> dict[str, Any]:
    """Database connections checked out, and callers queued for one."""
    lines = {"pool_in_use": "connections in use", "pool_waiting": "callers queued"}
    values = {name: timeline.values(name) for name in lines}
    most = _round_up(max((v for points in values.values() for _, v in points), default=0))
    marks = [
        Mark(
            shape="polyline",
            attributes={
                "class": name,
                "points": " ".join(
                    f"{_x(at_s, timeline.end_s):.1f},{_y(v, most):.1f}" for at_s, v in points
                ),
            },
        )
        for name, points in values.items()
    ]
    return _chart("Database connections", marks, timeline, _even_ticks(most), lines)


def _breaker(timeline: ChartTimeline) -> dict[str, Any]:
    """The breaker's state, second by second."""
    states = {"closed": "closed", "half_open": "probing", "open": "open"}
    bands = []
    for start, end, read in timeline.spans():
        if read.breaker in states:
            left, right = _x(start, timeline.end_s), _x(end, timeline.end_s)
            height = STRIP_HEIGHT - TOP - FOOT
            bands.append(_box(read.breaker, left, TOP, right - left + 0.3, height))
    return _chart("Circuit breaker", bands, timeline, [], states, height=STRIP_HEIGHT)


def _class_of(sample: CallSample) -> str:
    if sample.status is None or sample.status >= 500:
        return "failed"
    return {"succeeded": "succeeded", "pending": "queued", "unknown": "unknown"}.get(
        sample.outcome or "", "failed"
    )


def _chart(
    title: str,
    marks: Sequence[Mark],
    timeline: ChartTimeline,
    ticks: Iterable[tuple[float, str]],
    legend: Mapping[str, str],
    *,
    height: int = HEIGHT,
) -> dict[str, Any]:
    """A whole chart: its marks between the faults' bands, the grid and the seconds."""
    right = f"{WIDTH - RIGHT}"
    foot = height - FOOT
    return {
        "title": title,
        "label": f"{title} of the {timeline.target}, {timeline.end_s:.0f} seconds",
        "legend": legend,
        "width": WIDTH,
        "height": height,
        "marks": marks,
        "faults": _fault_bands(timeline, height),
        "ticks": [
            {
                "line": {"x1": LEFT, "y1": f"{y:.1f}", "x2": right, "y2": f"{y:.1f}"},
                "at": {"x": LEFT - 6, "y": f"{y + 4:.1f}"},
                "text": text,
            }
            for y, text in ticks
        ],
        "axis": {"x1": LEFT, "y1": foot, "x2": right, "y2": foot},
        "seconds": [
            {"at": {"x": f"{_x(at_s, timeline.end_s):.1f}", "y": foot + 15}, "text": f"{at_s} s"}
            for at_s in range(0, int(timeline.end_s) + 1, _step_s(timeline.end_s))
        ],
        "note": "",
    }


def _fault_bands(timeline: ChartTimeline, height: int) -> list[dict[str, Any]]:
    bands = []
    for number, fault in enumerate(timeline.faults, 1):
        left = _x(fault.from_s, timeline.end_s)
        right = _x(fault.to_s or timeline.end_s, timeline.end_s)
        bands.append(
            {
                "text": fault.text,
                "name": "fault" if len(timeline.faults) == 1 else f"fault {number}",
                "box": _sizes(left, TOP - 12, right - left, height - TOP - FOOT + 12),
                "at": {"x": f"{left + 4:.1f}", "y": TOP - 2},
            }
        )
    return bands


def _box(name: str, left: float, top: float, width: float, height: float) -> Mark:
    return Mark(shape="rect", attributes={"class": name, **_sizes(left, top, width, height)})


def _sizes(left: float, top: float, width: float, height: float) -> dict[str, str]:
    sizes = {"x": left, "y": top, "width": width, "height": height}
    return {name: f"{size:.1f}" for name, size in sizes.items()}


def _step_s(end_s: float) -> int:
    """The seconds between two labels of the time axis: at most twelve labels."""
    return next(step for step in (2, 5, 10, 20, 30, 60, 120, 300) if end_s / step <= 12)


def _x(at_s: float, end_s: float) -> float:
    return LEFT + max(0.0, min(at_s, end_s)) / end_s * (WIDTH - LEFT - RIGHT)


def _y(value: float, most: float) -> float:
    return HEIGHT - FOOT - value / most * (HEIGHT - TOP - FOOT)


def _log_y(ms: float) -> float:
    """From one millisecond at the bottom to the longest wait of a caller at the top."""
    most = math.log10(max(_WAITS_MS))
    share = math.log10(max(_LEAST_MS, min(ms, max(_WAITS_MS)))) / most
    return HEIGHT - FOOT - share * (HEIGHT - TOP - FOOT)


def _round_up(value: float) -> float:
    """The next number that is divisible by four without a remainder worth showing."""
    return next((n for n in (4, 8, 12, 20, 40, 80, 120, 200, 400) if n >= value), value)


def _even_ticks(most: float) -> list[tuple[float, str]]:
    return [(_y(most * part / 4, most), f"{most * part / 4:g}") for part in range(5)]
