"""The house style: six kinds of panel, and colours with one meaning each.

Every panel takes its unit, a sentence that describes the good state, and the runbook to open
otherwise; no panel can be made without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.models import common as words
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import prometheus as prometheus_model

# The meaning of each colour, everywhere.
GOOD = "#56A64B"  # Good; money moved, or certainly did not.
WAIT = "#E0B400"  # Later: queued, waiting, half-open, degraded.
DOUBT = "#A352CC"  # We do not know yet whether money moved.
REFUSED = "#FF9830"  # Refused on purpose and truthfully; the same key again is safe.
BAD = "#E02F44"  # Broken.
VOLUME = "#3274D9"  # How much, how long: no judgement.
LIMIT = "#9A9A9A"  # Promises, sizes, limits; always dashed.

# The words that legends use, each in the colour of its meaning.
MEANING: Mapping[str, str] = {
    **dict.fromkeys(("succeeded", "closed", "delivered", "stored", "held", "good", "new"), GOOD),
    **dict.fromkeys(("settled", "canceled", "replayed", "duplicate", "200", "201"), GOOD),
    **dict.fromkeys(("accepted", "requires_capture", "requires_action", "202"), WAIT),
    **dict.fromkeys(("waiting", "half_open", "retried", "pending", "queued", "slow"), WAIT),
    **dict.fromkeys(("unknown", "sending", "needs_review", "became unknown"), DOUBT),
    **dict.fromkeys(("not_executed", "expired", "refused", "in_flight", "mismatch"), REFUSED),
    **dict.fromkeys(("bad_signature", "503", "429", "409"), REFUSED),
    **dict.fromkeys(("bad", "broke", "given_up", "500", "open", "timed out"), BAD),
    **dict.fromkeys(("declined", "in use", "402", "404"), VOLUME),
    **dict.fromkeys(("size", "limit", "promise", "deadline", "inconclusive", "aborted"), LIMIT),
    "p50": "#C0D8FF",
    "p95": "#8AB8FF",
    "p99": VOLUME,
}
SPOKEN_LABELS = ("outcome", "result", "state", "status", "verdict")
DASHED = ("size", "limit", "promise", "deadline")

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
# A constant of each dashboard; `python -m grafana.build --runbooks URL` sets where yours are.
RUNBOOKS = "https://runbooks.holdfast.example"

Query = tuple[str, str]
Steps = Sequence[tuple[float | None, str]]
Panel = timeseries.Panel | stat.Panel | statetimeline.Panel | heatmap.Panel | bargauge.Panel
P = TypeVar("P", timeseries.Panel, stat.Panel, statetimeline.Panel, heatmap.Panel, bargauge.Panel)

ZERO_IS_GOOD: Steps = ((None, GOOD), (1, BAD))


def lines(
    title: str,
    unit: str,
    good: str,
    runbook: str,
    *queries: Query,
    colour: str = VOLUME,
    stacked: bool = False,
    line_at: float | None = None,
    width: int = 8,
) -> timeseries.Panel:
    """Values over time. `line_at` draws the promise; `stacked` is for parts of one whole."""
    panel = _dressed(timeseries.Panel(), title, unit, good, runbook, queries, width, height=8)
    panel = (
        panel.line_width(2 if not stacked else 1)
        .fill_opacity(70 if stacked else 8)
        .show_points(words.VisibilityMode.NEVER)
        .line_interpolation(words.LineInterpolation.LINEAR)
        .min(0)
        .color_scheme(_shades(colour))
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(words.TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(words.StackingMode.NORMAL).group("A"))
    if line_at is not None:
        panel = panel.thresholds(_thresholds(((None, "transparent"), (line_at, BAD))))
        style = common.GraphThresholdsStyleConfig().mode(words.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    return _coloured(panel, queries)


def number(
    title: str,
    unit: str,
    good: str,
    runbook: str,
    *queries: Query,
    steps: Steps = ZERO_IS_GOOD,
    width: int = 4,
    decimals: int | None = None,
    empty: str = "no samples",
    is_name: bool = False,
) -> stat.Panel:
    """The current value, as a figure on the colour of its judgement; `is_name` shows the legend."""
    panel = _dressed(stat.Panel(), title, unit, good, runbook, queries, width, height=4)
    panel = (
        panel.thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .color_mode(words.BigValueColorMode.BACKGROUND_SOLID)
        .graph_mode(words.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value(empty)
    )
    if is_name:
        panel = panel.text_mode(words.BigValueTextMode.NAME)
    return panel if decimals is None else panel.decimals(decimals)


def states(
    title: str,
    good: str,
    runbook: str,
    *queries: Query,
    meaning: Mapping[str, tuple[str, str]],
    width: int = 8,
    height: int = 8,
) -> statetimeline.Panel:
    """A state over time; `meaning` maps each value to its word and colour."""
    panel = _dressed(
        statetimeline.Panel(), title, "short", good, runbook, queries, width, height=height
    )
    results = {
        value: model.ValueMappingResult(text=word, color=colour, index=index)
        for index, (value, (word, colour)) in enumerate(meaning.items())
    }
    return (
        panel.mappings([model.ValueMap(options=results)])
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds(((None, LIMIT),)))
        .merge_values(True)
        .show_value(words.VisibilityMode.NEVER)
        .row_height(0.8)
        .fill_opacity(85)
        .line_width(0)
        .legend(_legend())
    )


def heat(
    title: str, unit: str, good: str, runbook: str, buckets: str, *, width: int = 8
) -> heatmap.Panel:
    """A histogram's values over time; it shows two bands that percentiles merge."""
    query = _query((buckets, "{{le}}"), 0).format(prometheus_model.PromQueryFormat.HEATMAP)
    panel = _dressed(heatmap.Panel(), title, unit, good, runbook, (), width, height=8)
    colours = (
        heatmap.HeatmapColorOptions()
        .mode(heatmap_model.HeatmapColorMode.SCHEME)
        .scheme("Blues")
        .steps(32)
    )
    return (
        panel.with_target(query)
        .calculate(False)
        .color(colours)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .hide_legend()
    )


def bars(
    title: str, unit: str, good: str, runbook: str, *queries: Query, width: int = 8
) -> bargauge.Panel:
    """How many of each, over the whole range."""
    panel = _dressed(bargauge.Panel(), title, unit, good, runbook, queries, width, height=8)
    return _coloured(
        panel.orientation(words.VizOrientation.HORIZONTAL)
        .display_mode(words.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(_shades(VOLUME))
        .min(0)
        .no_value("none yet"),
        queries,
    )


def _dressed(
    panel: P,
    title: str,
    unit: str,
    good: str,
    runbook: str,
    queries: Sequence[Query],
    width: int,
    *,
    height: int,
) -> P:
    link = (
        dashboard.DashboardLink(f"Runbook: {runbook}")
        .type(model.DashboardLinkType.LINK)
        .url(f"${{runbooks}}/{runbook}.md")
        .target_blank(True)
    )
    instant = isinstance(panel, stat.Panel | bargauge.Panel)
    for index, query in enumerate(queries):
        target = _query(query, index)
        panel = panel.with_target(target.instant() if instant else target.range())
    return (
        panel.title(title)
        .unit(unit)
        .description(good)
        .datasource(SOURCE)
        .links([link])
        .span(width)
        .height(height)
    )


def _query(query: Query, index: int) -> prometheus.Dataquery:
    expr, legend = query
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id("ABCDEFGH"[index])


def _coloured(panel: P, queries: Sequence[Query]) -> P:
    """Give each word that this panel's legends may show the colour of its meaning."""
    for colour, several in _words_by_colour(queries).items():
        properties = [
            model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour}),
        ]
        if isinstance(panel, timeseries.Panel) and set(several) & set(DASHED):
            properties.append(
                model.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]})
            )
        # A legend may say more after its word ("open stripe"); the first word decides.
        panel = panel.override_by_regexp(f"/^({'|'.join(several)})( .*)?$/", properties)
    return panel


def _words_by_colour(queries: Sequence[Query]) -> dict[str, list[str]]:
    legends = [legend for _, legend in queries]
    # The values of these labels are known: the words of the catalogue's closed sets.
    is_open = any(f"{{{{{label}}}}}" in legend for label in SPOKEN_LABELS for legend in legends)
    by_colour: dict[str, list[str]] = {}
    for word, colour in MEANING.items():
        if is_open or any(legend == word or legend.startswith(f"{word} ") for legend in legends):
            by_colour.setdefault(colour, []).append(word)
    return by_colour


def _shades(colour: str) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(model.FieldColorModeId.SHADES).fixed_color(colour)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=colour) for value, colour in steps])
    )


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(words.LegendDisplayMode.LIST)
        .placement(words.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
