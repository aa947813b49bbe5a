"""Draws a picture of each dashboard from a live Prometheus, over the panels' own queries.

`python -m grafana.draw --prometheus http://127.0.0.1:9090 [--minutes 10] [DIRECTORY]`. It shows a
reader what the dashboards hold before Grafana is installed; it is not Grafana's rendering, and each
picture says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from grafana.build import DASHBOARDS
from grafana.series import Source
from grafana.sketch import FAINT, GRID, PAGE, PANEL, TEXT, days, draw

PICTURES = Path(__file__).parents[1] / "docs" / "dashboards"

# Inches: the page's width, one unit of Grafana's grid downwards, and the head and foot of the page.
WIDTH, UNIT, HEAD, FOOT = 16.0, 0.34, 0.75, 0.35
MARGIN, GAP, TITLE = 0.15, 0.09, 0.27


def picture(dashboard: Mapping[str, Any], source: Source) -> tuple[Figure, list[str]]:
    """The dashboard as a figure, and the titles of the panels that had no samples."""
    height = UNIT * max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
    figure = Figure(figsize=(WIDTH, HEAD + height + FOOT), facecolor=PAGE)
    page = _Page(figure, HEAD + height + FOOT)
    page.say(MARGIN, 0.32, dashboard["title"], size=17, weight="bold")
    page.say(MARGIN, 0.58, dashboard["description"], size=9, colour=FAINT)
    without_samples = []
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            top = HEAD + panel["gridPos"]["y"] * UNIT
            page.say(MARGIN, top + 0.24, panel["title"], size=11, weight="bold")
        elif not draw(page.place(panel), panel, source):
            without_samples.append(panel["title"])
    _mark_events(figure, dashboard, source)
    began, ended = (datetime.fromtimestamp(s, UTC) for s in (source.begin_s, source.end_s))
    foot = (
        f"Drawn by grafana/draw.py from a live Prometheus, {began:%Y-%m-%d %H:%M:%S} to "
        f"{ended:%H:%M:%S} UTC, over the panels' own queries. This is not Grafana's rendering."
    )
    page.say(MARGIN, HEAD + height + 0.22, foot, size=8, colour=FAINT)
    return figure, without_samples


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
        self.say(left + 0.1, top + 0.2, panel["title"], size=8.5, weight="bold")
        # Room for the values beside the lines, and for the legend below them.
        before, below, after = {
            "stat": (0.0, 0.0, 0.0),
            "state-timeline": (1.75 if grid["w"] < 12 else 2.1, 0.5, 0.12),
            "bargauge": (1.7, 0.1, 0.5),
        }.get(panel["type"], (0.55, 0.55, 0.12))
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
        moments = {m for one in source.over_time(annotation) for m in one.moments}
        for axes in figure.axes:
            if axes.get_gid() == "timeseries":
                for moment in moments:
                    begin, end = days(moment), days(moment + source.step_s)
                    axes.axvspan(begin, end, color=annotation["iconColor"], alpha=0.07, linewidth=0)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m grafana.draw")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--minutes", type=float, default=15, help="how far to look back")
    parser.add_argument("--window", type=int, default=60, help="seconds that a rate looks over")
    parser.add_argument("directory", nargs="?", type=Path, default=PICTURES)
    options = parser.parse_args(arguments)
    end_s = time.time()
    source = Source(options.prometheus, end_s - options.minutes * 60, end_s, options.window)
    options.directory.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["font.family"] = "DejaVu Sans"
    for path in sorted(DASHBOARDS.glob("*.json")):
        figure, without_samples = picture(json.loads(path.read_text(encoding="utf-8")), source)
        figure.savefig(options.directory / f"{path.stem}.png", dpi=90)
        if without_samples:
            sys.stderr.write(f"{path.stem}: no samples for {', '.join(without_samples)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
