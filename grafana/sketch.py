"""Draws one panel of each kind with matplotlib, in the colours and units that its JSON asks for."""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.ticker import FuncFormatter, MaxNLocator

from grafana.series import Series, Source

PAGE, PANEL, GRID, TEXT, FAINT = "#111217", "#181b1f", "#2c3036", "#d8d9da", "#8e8e8e"
LEGEND_LENGTH = 34

PanelJson = Mapping[str, Any]


def draw(axes: Axes, panel: PanelJson, source: Source) -> bool:
    """Draw the panel; False when its queries returned nothing, which the picture then says."""
    kind = KINDS[panel["type"]]
    has_samples = kind(axes, panel, source)
    if not has_samples:
        axes.text(0.5, 0.5, "no samples", color=FAINT, ha="center", va="center",
                  transform=axes.transAxes)  # fmt: skip
    return has_samples


def value_text(value: float, unit: str) -> str:
    """A value as people read it: 12 ms, 99.5 %, 3.1/s, 14 k."""
    if math.isnan(value):
        return "no traffic"
    if unit == "percentunit":
        return f"{value * 100:.4g} %"
    if unit == "s":
        return _seconds_text(value)
    size, suffix = (value / 1000, " k") if abs(value) >= 10000 else (value, "")
    text = f"{size:.3g}" if size != round(size) else f"{size:.0f}"
    return f"{text}{suffix}{'/s' if unit == 'ops' else ''}"


def _seconds_text(value: float) -> str:
    for limit, divisor, name in ((1, 0.001, "ms"), (120, 1, "s"), (7200, 60, "min")):
        if abs(value) < limit:
            return f"{value / divisor:.3g} {name}" if value else "0 s"
    return f"{value / 3600:.3g} h"


def _lines(axes: Axes, panel: PanelJson, source: Source) -> bool:
    series = [one for target in panel["targets"] for one in source.over_time(target)]
    if len(panel["targets"]) == 1:
        series.sort(key=_peak, reverse=True)
    colours = _colours(panel, series)
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    is_stacked = custom.get("stacking", {}).get("mode") == "normal"
    _time_axis(axes, source)
    if is_stacked and series:
        moments = sorted({moment for one in series for moment in one.moments})
        heights = [[_at(one, moment) for moment in moments] for one in series]
        axes.stackplot(
            [days(moment) for moment in moments], heights, colors=colours, alpha=0.75,
            labels=[one.legend for one in series],
        )  # fmt: skip
    for one, colour in zip(series, colours, strict=True):
        if not is_stacked:
            style = "--" if _is_dashed(panel, one.legend) else "-"
            axes.plot([days(moment) for moment in one.moments], one.values, color=colour,
                      linewidth=1.4, linestyle=style, label=one.legend)  # fmt: skip
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", []):
        if custom.get("thresholdsStyle") and step["value"] is not None:
            axes.axhline(step["value"], color=step["color"], linewidth=0.8, linestyle="--")
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] < 1e-6:
        axes.set_ylim(top=1)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: value_text(value, unit)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if series:
        _legend(axes)
    return bool(series)


def _number(axes: Axes, panel: PanelJson, source: Source) -> bool:
    series = [one for target in panel["targets"] for one in source.now(target)]
    _bare(axes)
    defaults = panel["fieldConfig"]["defaults"]
    for index, one in enumerate(series):
        left, width = index / len(series), 1 / len(series)
        colour = _threshold_colour(defaults["thresholds"]["steps"], one.values[-1])
        axes.axvspan(left, left + width, color=colour, alpha=0.9, linewidth=0)
        text = _stat_text(one.values[-1], defaults)
        middle = left + width / 2
        size = 17 if len(series) < 3 else 13
        axes.text(middle, 0.55, text, color="white", fontsize=size, weight="bold",
                  ha="center", va="center")  # fmt: skip
        if len(series) > 1:
            axes.text(middle, 0.14, one.legend, color="white", fontsize=7, ha="center")
    return bool(series)


def _stat_text(value: float, defaults: Mapping[str, Any]) -> str:
    decimals = defaults.get("decimals")
    if decimals is None or math.isnan(value):
        return value_text(value, defaults["unit"])
    # A share is shown in percent, so its decimals come two places later.
    places = int(decimals) + (2 if defaults["unit"] == "percentunit" else 0)
    return value_text(round(value, places), defaults["unit"])


def _states(axes: Axes, panel: PanelJson, source: Source) -> bool:
    series = [one for target in panel["targets"] for one in source.over_time(target)]
    options = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    known = {float(value): result for value, result in options.items()}
    _time_axis(axes, source)
    step_days = days(source.step_s)
    for row, one in enumerate(reversed(series)):
        for moment, value in zip(one.moments, one.values, strict=True):
            result = known.get(value) or known[max(known)]
            start = days(moment)
            axes.broken_barh([(start, step_days * 1.05)], (row + 0.12, 0.76),
                             facecolors=result["color"], linewidth=0)  # fmt: skip
    axes.set_ylim(0, max(1, len(series)))
    axes.set_yticks([row + 0.5 for row in range(len(series))])
    axes.set_yticklabels([_short(one.legend) for one in reversed(series)])
    for result in options.values():
        axes.plot([], [], color=result["color"], linewidth=5, label=result["text"])
    _legend(axes)
    return bool(series)


def _heat(axes: Axes, panel: PanelJson, source: Source) -> bool:
    series = source.over_time(panel["targets"][0])
    series.sort(key=lambda one: float(one.labels["le"]))
    _time_axis(axes, source)
    if not series:
        return False
    moments = sorted({moment for one in series for moment in one.moments})
    cumulated = [[_at(one, moment) for moment in moments] for one in series]
    below = [[0.0] * len(moments), *cumulated[:-1]]
    counts = [
        [max(0.0, upper - lower) for upper, lower in zip(row, under, strict=True)]
        for row, under in zip(cumulated, below, strict=True)
    ]
    blues = LinearSegmentedColormap.from_list("crowd", [PANEL, "#3274D9", "#C0D8FF"])
    axes.pcolormesh(
        [days(moment) for moment in [*moments, moments[-1] + source.step_s]],
        list(range(len(series) + 1)), counts, cmap=blues,
    )  # fmt: skip
    unit = panel["options"]["yAxis"]["unit"]
    every = max(1, len(series) // 6)
    axes.set_yticks(list(range(1, len(series) + 1))[::every])
    names = [value_text(float(one.labels["le"]), unit) for one in series]
    axes.set_yticklabels([name if "inf" not in name else "more" for name in names][::every])
    return True


def _bars(axes: Axes, panel: PanelJson, source: Source) -> bool:
    series = [one for target in panel["targets"] for one in source.now(target)][::-1]
    colours = _colours(panel, series)
    names = [_short(one.legend) for one in series]
    axes.barh(names, [one.values[-1] for one in series], color=colours, height=0.6)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for row, one in enumerate(series):
        text = " " + value_text(round(one.values[-1]), unit)
        axes.text(one.values[-1], row, text, color=TEXT, fontsize=7, va="center")
    if not any(one.values[-1] for one in series):
        axes.set_xlim(0, 1)
    axes.tick_params(colors=TEXT, labelsize=7, length=0)
    axes.set_xticks([])
    return bool(series)


KINDS: Mapping[str, Callable[[Axes, PanelJson, Source], bool]] = {
    "timeseries": _lines,
    "stat": _number,
    "state-timeline": _states,
    "heatmap": _heat,
    "bargauge": _bars,
}


def _colours(panel: PanelJson, series: list[Series]) -> list[Any]:
    """The colour of each series: of its word's meaning, else a shade of the panel's own."""
    base = panel["fieldConfig"]["defaults"]["color"]["fixedColor"]
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(base))
    colours: list[Any] = []
    for index, one in enumerate(series):
        override = _override(panel, one.legend)
        # Around the middle, so that neighbours differ and none melts into the dark page.
        shade = min(0.88, max(0.35, lightness + 0.11 * ((index + 1) // 2) * (-1) ** (index + 1)))
        shaded = colorsys.hls_to_rgb((hue + 0.03 * (index // 5)) % 1, shade, saturation)
        colours.append(override["properties"][0]["value"]["fixedColor"] if override else shaded)
    return colours


def _override(panel: PanelJson, legend: str) -> Mapping[str, Any] | None:
    for override in panel["fieldConfig"]["overrides"]:
        if re.search(override["matcher"]["options"].strip("/"), legend):
            found: Mapping[str, Any] = override
            return found
    return None


def _is_dashed(panel: PanelJson, legend: str) -> bool:
    override = _override(panel, legend)
    return override is not None and len(override["properties"]) > 1


def _threshold_colour(steps: list[Mapping[str, Any]], value: float) -> str:
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return str(reached[-1]["color"])


def _peak(series: Series) -> float:
    return max((value for value in series.values if not math.isnan(value)), default=0.0)


def _at(series: Series, moment: float) -> float:
    """The value at a moment of the common grid; 0 where the series has none."""
    try:
        value = series.values[series.moments.index(moment)]
    except ValueError:
        return 0.0
    return 0.0 if math.isnan(value) else value


def days(seconds: float) -> float:
    """A moment as matplotlib's date axes count: in days since the epoch."""
    return seconds / 86400


def _time_axis(axes: Axes, source: Source) -> None:
    axes.set_xlim(days(source.begin_s), days(source.end_s))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=5))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))  # type: ignore[no-untyped-call]
    axes.tick_params(colors=FAINT, labelsize=7, length=0)
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)


def _legend(axes: Axes) -> None:
    """Two lines at most, as in Grafana; those that reach highest are named first."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(2, min(6, 80 // (5 + max(len(_short(name)) for name in names))))
    shown = list(zip(handles, [_short(name) for name in names], strict=True))
    more = len(shown) - 2 * columns
    if more > 0:
        shown = shown[: 2 * columns]
        shown[-1] = (shown[-1][0], f"{shown[-1][1]}, {more} more")
    axes.legend(
        [handle for handle, _ in shown],
        [name for _, name in shown],
        loc="upper left",
        bbox_to_anchor=(0, -0.11),
        ncols=columns,
        fontsize=6.5,
        frameon=False,
        labelcolor=TEXT,
        handlelength=1,
        columnspacing=1,
        borderaxespad=0,
        labelspacing=0.2,
    )


def _short(legend: str) -> str:
    return legend if len(legend) <= LEGEND_LENGTH else f"{legend[: LEGEND_LENGTH - 1]}…"


def _bare(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([])
    axes.set_yticks([])
