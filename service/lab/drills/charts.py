"""Draws a run's timeline as SVG: no script, no inline style, colours from the page's classes. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

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

    side: str
    end_s: float
    seconds: Sequence[Mapping[str, Any]]
    faults: Sequence[Mapping[str, Any]]

    def spans(self) -> list[tuple[float, float, Mapping[str, Any]]]:
        """(from, to, reading at the end) for each pair of consecutive readings of this target."""
        starts = [max(0.0, self.seconds[0]["at_s"] - 1.0)] if self.seconds else []
        starts += [point["at_s"] for point in self.seconds[:-1]]
        return [
            (start, point["at_s"], point["sides"][self.side])
            for start, point in zip(starts, self.seconds, strict=True)
        ]

    def values(self, name: str) -> list[tuple[float, float]]:
        """(second, value) of one figure of this target."""
        return [(point["at_s"], point["sides"][self.side][name] or 0.0) for point in self.seconds]


def timeline_of(document: Mapping[str, Any], side: Mapping[str, Any]) -> ChartTimeline:
    """The run as one target recorded it, until its last answer arrived."""
    seconds = [point for point in document["timeline"] if side["name"] in point["sides"]]
    samples = side["callers"]["samples"]
    ends = [point["at_s"] for point in seconds] + [s["at_s"] + s["ms"] / 1000 for s in samples]
    return ChartTimeline(
        side=side["name"],
        end_s=max([5.0, *ends]) + 0.5,
        seconds=seconds,
        # The control's links carry no fault.
        faults=document.get("faults", []) if side["name"] != "control" else [],
    )


def answers_chart(timeline: ChartTimeline) -> str:
    """The outcomes of calls, stacked; a late reading covers more than one second."""
    stacks = [
        (start, end, {name: read[name] / max(0.5, end - start) for name in OUTCOMES})
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
                marks.append(
                    f'<rect class="{name}" x="{left + 0.6:.1f}" y="{top:.1f}"'
                    f' width="{max(1.0, right - left - 1.2):.1f}" height="{foot - top:.1f}"/>'
                )
                below += rate
    return _chart("Answers a second", "".join(marks), timeline, _even_ticks(most), legend=OUTCOMES)


def waits_chart(timeline: ChartTimeline, samples: Sequence[Mapping[str, Any]]) -> str:
    """One dot for each payment: when it was sent, and how long its caller waited."""
    dots = "".join(
        f'<circle class="{_class_of(sample)}" cx="{_x(sample["at_s"], timeline.end_s):.1f}"'
        f' cy="{_log_y(sample["ms"]):.1f}" r="2.6"><title>{sample["ms"]:g} ms,'
        f" {escape(str(sample['status'] or 'no answer'))}</title></circle>"
        for sample in samples
    )
    ticks = [(_log_y(ms), text) for ms, text in _WAITS_MS.items()]
    return _chart("How long each caller waited", dots, timeline, ticks, legend=OUTCOMES)


def pool_chart(timeline: ChartTimeline) -> str:
    """Database connections checked out, and callers queued for one."""
    lines = {"pool_in_use": "connections in use", "pool_waiting": "callers in line"}
    values = {name: timeline.values(name) for name in lines}
    most = _round_up(max((v for points in values.values() for _, v in points), default=0))
    marks = "".join(
        f'<polyline class="{name}" points="'
        + " ".join(f"{_x(at_s, timeline.end_s):.1f},{_y(v, most):.1f}" for at_s, v in points)
        + '"/>'
        for name, points in values.items()
    )
    return _chart("Database connections", marks, timeline, _even_ticks(most), legend=lines)


def breaker_chart(timeline: ChartTimeline) -> str:
    """The breaker's state, second by second."""
    states = {"closed": "closed", "half_open": "probing", "open": "open"}
    bands = "".join(
        f'<rect class="{read["breaker"]}" x="{_x(start, timeline.end_s):.1f}" y="{TOP}"'
        f' width="{_x(end, timeline.end_s) - _x(start, timeline.end_s) + 0.3:.1f}"'
        f' height="{STRIP_HEIGHT - TOP - FOOT}"/>'
        for start, end, read in timeline.spans()
        if read["breaker"] in states
    )
    return _chart("Circuit breaker", bands, timeline, [], legend=states, height=STRIP_HEIGHT)


def gauge(value: float | None, least: float | None, most: float | None) -> str:
    """The ratio of a number to its bound: the bar is full at the bound."""
    if value is None:
        return ""
    if most is not None:
        share = value / most if most else float(value > 0)
        is_kept = value <= most
    else:
        share = 1.0 if not least else value / least
        is_kept = value >= (least or 0.0)
    width = 60 * min(1.0, max(0.0, share))
    word = "kept" if is_kept else "broken"
    return (
        '<svg class="gauge" viewBox="0 0 62 8" aria-hidden="true"><rect class="track" x="1" y="1"'
        f' width="60" height="6" rx="3"/><rect class="{word}" x="1" y="1" width="{width:.1f}"'
        ' height="6" rx="3"/></svg>'
    )


def _class_of(sample: Mapping[str, Any]) -> str:
    if sample["status"] is None or sample["status"] >= 500:
        return "failed"
    return {"succeeded": "succeeded", "pending": "queued", "unknown": "unknown"}.get(
        sample["outcome"] or "", "failed"
    )


def _chart(
    title: str,
    marks: str,
    timeline: ChartTimeline,
    ticks: Iterable[tuple[float, str]],
    *,
    legend: Mapping[str, str],
    height: int = HEIGHT,
) -> str:
    keys = "".join(
        f'<span><i class="{name}"></i>{escape(text)}</span>' for name, text in legend.items()
    )
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}">{escape(text)}</text>'
        for y, text in ticks
    )
    label = f"{title} of the {timeline.side}, {timeline.end_s:.0f} seconds"
    return (
        f'<figure><figcaption><b>{escape(title)}</b><span class="legend">{keys}</span></figcaption>'
        f'<div class="wide" tabindex="0"><svg viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{escape(label)}">{_fault_bands(timeline, height)}{grid}{marks}'
        f"{_time_axis(timeline.end_s, height)}</svg></div></figure>"
    )


def _fault_bands(timeline: ChartTimeline, height: int) -> str:
    bands = []
    for number, fault in enumerate(timeline.faults, 1):
        left = _x(fault["from_s"], timeline.end_s)
        right = _x(fault["to_s"] or timeline.end_s, timeline.end_s)
        text = "fault" if len(timeline.faults) == 1 else f"fault {number}"
        bands.append(
            f'<rect class="fault" x="{left:.1f}" y="{TOP - 12}" width="{right - left:.1f}"'
            f' height="{height - TOP - FOOT + 12}"><title>{escape(fault["text"])}</title></rect>'
            f'<text class="fault-name" x="{left + 4:.1f}" y="{TOP - 2}">{text}</text>'
        )
    return "".join(bands)


def _time_axis(end_s: float, height: int) -> str:
    y = height - FOOT
    step = next(step for step in (2, 5, 10, 20, 30, 60, 120, 300) if end_s / step <= 12)
    ticks = "".join(
        f'<text class="second" x="{_x(at_s, end_s):.1f}" y="{y + 15}">{at_s} s</text>'
        for at_s in range(0, int(end_s) + 1, step)
    )
    return f'<line class="axis" x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"/>{ticks}'


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
