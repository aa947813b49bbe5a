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
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from grafana.series import Series, Source

PAGE, PANEL, GRID, TEXT, FAINT = "#111217", "#181b1f", "#2c3036", "#d8d9da", "#8e8e8e"
LEGEND_LENGTH = 34
# The interval of marks on the time axis in seconds, and the maximum number of marks.
TICKS_S = (2, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 7 * 86400, 365 * 86400)
TICKS_MAX = 5
# Letters of a legend on an inch.
LEGEND_LETTERS = 20

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
    # All of them are drawn; the legend names those that left 0, or a few when none did.
    loud = sum(_peak(one) > 0 for one in series) if len(panel["targets"]) == 1 else len(series)
    named = {id(one) for one in series[: max(loud, 3)]}
    colours = _colours(panel, series)
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    is_stacked = custom.get("stacking", {}).get("mode") == "normal"
    _time_axis(axes, source)
    if is_stacked and series:
        moments = sorted({moment for one in series for moment in one.moments})
        heights = [[_at(one, moment) for moment in moments] for one in series]
        axes.stackplot(
            [days(moment) for moment in moments], heights, colors=colours, alpha=0.75,
            labels=[one.legend if id(one) in named else "_" for one in series],
        )  # fmt: skip
    for one, colour in zip(series, colours, strict=True):
        if not is_stacked:
            style = "--" if _is_dashed(panel, one.legend) else "-"
            axes.plot([days(moment) for moment in one.moments], one.values, color=colour,
                      linewidth=1.4, linestyle=style,
                      label=one.legend if id(one) in named else "_")  # fmt: skip
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
        _legend(axes, quiet=len(series) - len(named))
    return bool(series)


def _number(axes: Axes, panel: PanelJson, source: Source) -> bool:
    series = [one for target in panel["targets"] for one in source.now(target)]
    _bare(axes)
    defaults = panel["fieldConfig"]["defaults"]
    for index, one in enumerate(series):
        left, width = index / len(series), 1 / len(series)
        colour = _threshold_colour(defaults["thresholds"]["steps"], one.values[-1])
        axes.axvspan(left, left + width, color=colour, alpha=0.9, linewidth=0)
        # A panel that shows names needs no value.
        is_name = panel["options"].get("textMode") == "name"
        text = one.legend if is_name else _stat_text(one.values[-1], defaults)
        middle = left + width / 2
        size = 17 if len(series) < 3 else 13
        axes.text(middle, 0.55, text, color="white", fontsize=size, weight="bold",
                  ha="center", va="center")  # fmt: skip
        if len(series) > 1 and not is_name:
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
    for row, one in enumerate(reversed(series)):
        for start_s, end_s, value in _runs(one, source.step_s):
            result = known.get(value) or known[max(known)]
            axes.broken_barh([(days(start_s), days(end_s - start_s))], (row + 0.12, 0.76),
                             facecolors=result["color"], linewidth=0)  # fmt: skip
    axes.set_ylim(0, max(1, len(series)))
    axes.set_yticks([])
    for row, one in enumerate(reversed(series)):
        # On the bar itself: names are long, and panels are not.
        axes.text(0.03, row + 0.5, _short(one.legend), transform=axes.get_yaxis_transform(),
                  color="white", fontsize=7, weight="bold", va="center", zorder=4,
                  path_effects=[withStroke(linewidth=2, foreground=PANEL)])  # fmt: skip
    for result in options.values():
        axes.plot([], [], color=result["color"], linewidth=5, label=result["text"])
    _legend(axes)
    return bool(series)


def _runs(series: Series, step_s: float) -> list[tuple[float, float, float]]:
    """The spans of each value: neighbours with the same value are merged."""
    runs: list[tuple[float, float, float]] = []
    for moment, value in zip(series.moments, series.values, strict=True):
        end_s = moment + step_s
        if runs and runs[-1][2] == value and moment - runs[-1][1] < step_s / 2:
            runs[-1] = (runs[-1][0], end_s, value)
        else:
            runs.append((moment, end_s, value))
    return runs


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
        shade = min(0.88, max(0.35, lightness + 0.17 * ((index + 1) // 2) * (-1) ** (index + 1)))
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
    every_s = next(s for s in TICKS_S if (source.end_s - source.begin_s) / s <= TICKS_MAX)
    first = math.ceil(source.begin_s / every_s)
    last = math.floor(source.end_s / every_s)
    axes.set_xticks([days(tick * every_s) for tick in range(first, last + 1)])
    clock = "%H:%M" if every_s >= 60 else "%H:%M:%S"
    axes.xaxis.set_major_formatter(dates.DateFormatter(clock))  # type: ignore[no-untyped-call]
    axes.tick_params(colors=FAINT, labelsize=7, length=0)
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)


def _legend(axes: Axes, quiet: int = 0) -> None:
    """Two lines at most; `quiet` is how many more there are that stayed at 0."""
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    letters = axes.get_position().width * axes.figure.get_figwidth() * LEGEND_LETTERS
    longest = 5 + max(len(_short(name)) for name in names)
    columns = max(1, min(5, int((letters - 8 * bool(quiet)) / longest)))
    shown = list(zip(handles, [_short(name) for name in names], strict=True))
    more = len(shown) - 2 * columns
    if more > 0:
        shown = shown[: 2 * columns]
        shown[-1] = (shown[-1][0], f"{shown[-1][1]}, {more} more")
    elif quiet:
        shown[-1] = (shown[-1][0], f"{shown[-1][1]}  (+ {quiet} at 0)")
    axes.legend(
        [handle for handle, _ in shown],
        [name for _, name in shown],
        loc="upper left",
        bbox_to_anchor=(0, -0.13),
        ncols=columns,
        fontsize=7,
        frameon=False,
        labelcolor=TEXT,
        handlelength=1,
        handletextpad=0.4,
        columnspacing=0.9,
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
