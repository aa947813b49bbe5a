"""Draws a picture of each dashboard from a live Prometheus, over the panels' own queries.

`python -m grafana.draw` stages the incident for it and takes five minutes; `python -m grafana.draw
--prometheus http://127.0.0.1:9090 [--minutes 15]` draws your own. It shows a reader what the
dashboards hold before Grafana is installed; it is not Grafana's rendering, and each picture says so.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from grafana.build import DASHBOARDS
from grafana.figures import told
from grafana.series import Series, Source
from grafana.sketch import FAINT, GRID, PAGE, PANEL, TEXT, days, draw
from grafana.staged import Span, staged

PICTURES = Path(__file__).parents[1] / "docs" / "dashboards"

# Inches: the page's width, one unit of Grafana's grid downwards, and the head and foot of the page.
# So narrow that its words can be read where a page shows it 800 pixels wide.
WIDTH, UNIT, HEAD, FOOT = 10.4, 0.27, 0.86, 0.3
MARGIN, GAP, TITLE = 0.12, 0.07, 0.26
DPI = 144
# The pictures are shown small; more colours would only add bytes.
COLOURS = 96
# Staged faults are marked on every time axis, in a colour that no panel uses for a line.
STAGED = "#5E6470"


def picture(
    dashboard: Mapping[str, Any], source: Source, spans: Sequence[Span] = ()
) -> tuple[Figure, list[str]]:
    """The dashboard as a figure, and the titles of the panels that had no samples."""
    height = UNIT * max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
    figure = Figure(figsize=(WIDTH, HEAD + height + FOOT), facecolor=PAGE)
    page = _Page(figure, HEAD + height + FOOT)
    page.say(MARGIN, 0.33, dashboard["title"], size=15, weight="bold")
    page.say(MARGIN, 0.56, dashboard["description"], size=8, colour=FAINT)
    page.say(MARGIN, 0.77, _happened(source, spans), size=8, colour=FAINT)
    without_samples = []
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            top = HEAD + panel["gridPos"]["y"] * UNIT
            page.say(MARGIN, top + 0.2, panel["title"], size=10, weight="bold")
        elif not draw(page.place(panel), panel, source):
            without_samples.append(panel["title"])
    _mark_events(figure, dashboard, source)
    _mark_spans(figure, spans)
    foot = (
        "Drawn by grafana/draw.py from a real Prometheus over the panels' own queries. "
        "This is not Grafana's rendering."
    )
    page.say(MARGIN, HEAD + height + 0.19, foot, size=7.5, colour=FAINT)
    return figure, without_samples


def png(figure: Figure) -> bytes:
    """The figure with as many colours as it needs."""
    drawn, saved = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(saved, "PNG", optimize=True)
    return saved.getvalue()


def _happened(source: Source, spans: Sequence[Span]) -> str:
    began, ended = (datetime.fromtimestamp(s, UTC) for s in (source.begin_s, source.end_s))
    when = f"{began:%Y-%m-%d %H:%M:%S} to {ended:%H:%M:%S} UTC"
    return "   ·   ".join([when, *(f"[{span.mark}] {span.name}" for span in spans)])


class _Page:
    """Places things in inches from the top left, as Grafana's grid counts."""

    def __init__(self, figure: Figure, height: float) -> None:
        self._figure = figure
        self._height = height

    def say(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        colour: str = TEXT,
        weight: str = "normal",
    ) -> None:
        self._figure.text(
            x / WIDTH, 1 - y / self._height, text, color=colour, fontsize=size, weight=weight
        )

    def place(self, panel: Mapping[str, Any]) -> Axes:
        """The frame and title of a panel, and the axes inside."""
        grid = panel["gridPos"]
        column = (WIDTH - 2 * MARGIN) / 24
        left = MARGIN + grid["x"] * column + GAP / 2
        top = HEAD + grid["y"] * UNIT + GAP / 2
        width, height = grid["w"] * column - GAP, grid["h"] * UNIT - GAP
        frame = FancyBboxPatch(
            (left / WIDTH, 1 - (top + height) / self._height),
            width / WIDTH,
            height / self._height,
            boxstyle="square,pad=0",
            facecolor=PANEL,
            edgecolor=GRID,
            linewidth=0.8,
            transform=self._figure.transFigure,
            # Behind the axes, which the figure draws at 0.
            zorder=-1,
        )
        self._figure.add_artist(frame)
        # A narrow panel's title is set smaller rather than cut.
        size = min(8.0, (width - 0.15) * 72 / (0.68 * len(panel["title"])))
        self.say(left + 0.09, top + 0.18, panel["title"], size=size, weight="bold")
        # Room for the values beside the lines, and for the legend below them.
        before, below, after = {
            "stat": (0.0, 0.0, 0.0),
            "state-timeline": (0.1, 0.5, 0.1),
            "bargauge": (1.6, 0.08, 0.4),
        }.get(panel["type"], (0.5, 0.5, 0.1))
        axes = self._figure.add_axes(
            (
                (left + before) / WIDTH,
                1 - (top + height - below) / self._height,
                (width - before - after) / WIDTH,
                (height - below - TITLE - 0.05) / self._height,
            ),
            facecolor=PANEL,
        )
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_gid(panel["type"])
        return axes


def _mark_events(figure: Figure, dashboard: Mapping[str, Any], source: Source) -> None:
    """Draw the annotations over every panel of lines: when the breaker moved, deploys, drills."""
    for annotation in dashboard["annotations"]["list"]:
        begun = {begin for one in source.over_time(annotation) for begin in _begins(one, source)}
        for axes in figure.axes:
            if axes.get_gid() == "timeseries":
                for moment in begun:
                    colour = annotation["iconColor"]
                    axes.axvline(
                        days(moment), color=colour, alpha=0.6, linewidth=0.7, dashes=(2, 2)
                    )


def _begins(series: Series, source: Source) -> list[float]:
    """When an annotation began: it goes on for as long as its query has samples."""
    before = [float("-inf"), *series.moments]
    return [
        moment
        for moment, last in zip(series.moments, before, strict=False)
        if moment - last > 1.5 * source.step_s
    ]


def _mark_spans(figure: Figure, spans: Sequence[Span]) -> None:
    """Shade when something was staged, with its mark above, wherever time runs from left to right."""
    for axes in figure.axes:
        if axes.get_gid() not in ("timeseries", "state-timeline", "heatmap"):
            continue
        for span in spans:
            begin, end = days(span.begin_s), days(span.end_s)
            axes.axvspan(begin, end, color=STAGED, alpha=0.22, linewidth=0, zorder=0.5)
            axes.text(
                (begin + end) / 2, 1.0, span.mark, transform=axes.get_xaxis_transform(),
                color=TEXT, fontsize=6.5, weight="bold", ha="center", va="bottom", alpha=0.8,
            )  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m grafana.draw")
    parser.add_argument("--prometheus", help="its address; without it the incident is staged")
    parser.add_argument("--minutes", type=float, default=15, help="how far to look back (15)")
    parser.add_argument(
        "--window", type=int, default=60, help="seconds that a rate looks over (60)"
    )
    parser.add_argument("directory", nargs="?", type=Path, default=PICTURES)
    options = parser.parse_args(arguments)
    if options.prometheus:
        end_s = time.time()
        source = Source(options.prometheus, end_s - options.minutes * 60, end_s, options.window)
        draw_all(source, options.directory)
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-") as home:
        # PostgreSQL runs as another user where we are root.
        Path(home).chmod(0o711)
        with staged(Path(home) / "home") as (source, spans):
            draw_all(source, options.directory, spans)


def draw_all(source: Source, directory: Path, spans: Sequence[Span] = ()) -> None:
    """Write a picture of each dashboard, and print the panels without samples."""
    directory.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["font.family"] = "DejaVu Sans"
    for path in sorted(DASHBOARDS.glob("*.json")):
        figure, without_samples = picture(
            json.loads(path.read_text(encoding="utf-8")), source, spans
        )
        drawn = png(figure)
        (directory / f"{path.stem}.png").write_bytes(drawn)
        sys.stderr.write(f"{path.stem}.png  {len(drawn) // 1024} kB\n")
        if without_samples:
            sys.stderr.write(f"  no samples for {', '.join(without_samples)}\n")
    for line in told(source):
        sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
