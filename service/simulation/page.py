"""A run's report as a page to read, print and keep: charts drawn here, no script, nothing inline."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from service.simulation.report import bounds, shown

# Style only from our own file; SVG is coloured by classes.
PAGE_CSP = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
WIDTH, HEIGHT, MARGIN = 720, 180, 36


def render_page(document: dict[str, Any]) -> str:
    """HTML; every text of the document is escaped."""
    sides = "".join(_side(side, document) for side in document["sides"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(document["title"])}: {escape(str(document["verdict"]))}</title>
<link rel="stylesheet" href="/drills/static/report.css"></head><body>
<header><p>Holdfast {escape(document["kind"])} · {escape(document["id"])}</p>
<h1>{escape(document["title"])}</h1>
<p class="verdict {escape(str(document["verdict"]).lower())}">{escape(str(document["verdict"] or document["phase"]))}</p>
<p>{escape(document["summary"] or "It still runs.")}</p></header>
<main>
<dl>{_facts(document)}</dl>
<h2>Hypothesis</h2><p>{escape(document["hypothesis"])}</p>
{_checks("Proof that the fault bit", document["bite"])}
{_checks("Expectations", document["expectations"])}
{_books(document["invariants"])}
{_parts(document["parts"])}
{sides}
<h2>What happened</h2><ol class="steps">{_steps(document["progress"])}</ol>
</main></body></html>
"""


def _facts(document: dict[str, Any]) -> str:
    facts = {
        "Drill": document["name"],
        "Scope": document["scope"],
        "Began": document["started_at"],
        "Ended": document["ended_at"] or "it still runs",
        "Fault": f"{shown(document['ttl_s'])} s",
        "Load": f"{shown(document['load_rps'])} payments a second",
        "Asked for by": document["requested_by"],
        "Reason": document["reason"] or "none given",
        "Runbook": document["runbook"] or "none",
    }
    return "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())


def _checks(title: str, checks: list[dict[str, Any]]) -> str:
    if not checks:
        return ""
    rows = (
        (_mark(check), check["text"], shown(check["value"]), bounds(check), check["promql"])
        for check in checks
    )
    return f"<h2>{escape(title)}</h2>" + _table(
        ("", "What", "Measured", "Bound", "PromQL"), rows, code_last=True
    )


def _books(rules: list[dict[str, Any]]) -> str:
    rows = ((_mark(r), r["book"], r["rule"], str(r["violations"])) for r in rules)
    return "<h2>Both books</h2>" + _table(("", "Book", "Rule", "Violations"), rows)


def _parts(parts: list[dict[str, Any]]) -> str:
    if not parts:
        return ""
    rows = ((p["verdict"], p["name"], p["summary"]) for p in parts)
    return "<h2>Drills of the day</h2>" + _table(("Verdict", "Drill", "Why"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, code_last: bool = False) -> str:
    def cells(row: list[str]) -> str:
        shown_cells = [f"<td>{escape(cell)}</td>" for cell in row]
        if code_last:
            shown_cells[-1] = f"<td><code>{escape(row[-1])}</code></td>"
        return "".join(shown_cells)

    heads = "".join(f"<th>{escape(word)}</th>" for word in head)
    body = "".join(f"<tr>{cells(list(row))}</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{heads}</tr>{body}</table></div>"


def _mark(check: dict[str, Any]) -> str:
    return "kept" if check["ok"] else "BROKEN"


def _steps(progress: list[dict[str, Any]]) -> str:
    return "".join(
        f"<li><b>{step['at_s']:.1f} s</b> {escape(step['phase'])}: {escape(step['text'])}</li>"
        for step in progress
    )


def _side(side: dict[str, Any], document: dict[str, Any]) -> str:
    if not side:
        return ""
    name = side["name"]
    seconds = [point for point in document["timeline"] if name in point["sides"]]
    chains = "".join(
        "<pre>" + escape("\n".join(f"{'  ' * i}{e}" for i, e in enumerate(chain))) + "</pre>"
        for chain in side["exception_chains"]
    )
    statuses = ", ".join(f"{k}: {v}" for k, v in side["callers"]["by_status"].items())
    finals = ", ".join(f"{k}: {v}" for k, v in side["payments_by_status"].items())
    return f"""<section><h2>The {escape(name)}</h2>
<pre class="incident">{escape(side["incident"] or "No error of the incident.")}</pre>{chains}
<p>Callers got: {escape(statuses)}. The payments ended: {escape(finals)}.</p>
{_latency_chart(side["callers"]["samples"], seconds)}
{_lines_chart(seconds, name)}
</section>"""


def _latency_chart(samples: list[dict[str, Any]], seconds: list[dict[str, Any]]) -> str:
    """Each payment a dot: when it was sent, and how long its caller waited."""
    if not samples:
        return ""
    end_s = max(s["at_s"] for s in samples) + 1
    most_ms = max(100.0, *(s["ms"] for s in samples))
    dots = "".join(
        f'<circle class="{_dot_class(s)}" cx="{_x(s["at_s"], end_s):.1f}"'
        f' cy="{_y(s["ms"], most_ms):.1f}" r="3"><title>{s["ms"]:g} ms,'
        f" {escape(str(s['status']))}</title></circle>"
        for s in samples
    )
    return _chart(
        "Each payment: how long its caller waited (ms)", dots, seconds, end_s, f"{most_ms:.0f} ms"
    )


def _dot_class(sample: dict[str, Any]) -> str:
    if sample["status"] is None or sample["status"] >= 500:
        return "refused"
    return {"succeeded": "good", "pending": "queued", "unknown": "unknown"}.get(
        sample["outcome"] or "", "refused"
    )


def _lines_chart(seconds: list[dict[str, Any]], name: str) -> str:
    """The pool's connections in use and callers in line, second by second."""
    if not seconds:
        return ""
    end_s = seconds[-1]["at_s"] + 1
    values = {
        field: [(p["at_s"], p["sides"][name][field] or 0.0) for p in seconds]
        for field in ("pool_in_use", "pool_waiting", "succeeded")
    }
    most = max(4.0, *(v for points in values.values() for _, v in points))
    lines = "".join(
        f'<polyline class="{field}" points="'
        + " ".join(f"{_x(t, end_s):.1f},{_y(v, most):.1f}" for t, v in points)
        + '"/>'
        for field, points in values.items()
    )
    title = "Connections in use, callers waiting for one, payments succeeded a second"
    return _chart(title, lines, seconds, end_s, f"{most:.0f}")


def _chart(title: str, marks: str, seconds: list[dict[str, Any]], end_s: float, top: str) -> str:
    struck = [point["at_s"] for point in seconds if point["phase"] == "fault"]
    band = ""
    if struck:
        left, right = _x(struck[0] - 1, end_s), _x(struck[-1], end_s)
        band = (
            f'<rect class="fault" x="{left:.1f}" y="{MARGIN / 2}" width="{right - left:.1f}"'
            f' height="{HEIGHT - 1.5 * MARGIN}"/>'
        )
    base = HEIGHT - MARGIN
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' role="img" aria-label="{escape(title)}">{band}<line class="axis" x1="{MARGIN}"'
        f' y1="{base}" x2="{WIDTH}" y2="{base}"/>{marks}<text x="2" y="{MARGIN / 2 + 4}">'
        f'{escape(top)}</text><text x="{WIDTH - MARGIN}" y="{HEIGHT - 12}">{end_s:.0f} s</text>'
        "</svg></figure>"
    )


def _x(at_s: float, end_s: float) -> float:
    return MARGIN + max(0.0, at_s) / end_s * (WIDTH - MARGIN)


def _y(value: float, most: float) -> float:
    return HEIGHT - MARGIN - value / most * (HEIGHT - 1.5 * MARGIN)
