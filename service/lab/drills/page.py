"""A run's report as an HTML page: charts without script, no inline styles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from service.lab.drills.charts import (
    answers_chart,
    breaker_chart,
    gauge,
    pool_chart,
    timeline_of,
    waits_chart,
)
from service.lab.drills.report import RULES, bounds, shown, violations_of

# Styles come from our own file only; classes colour the SVG.
PAGE_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self'; frame-ancestors 'none';"
    " base-uri 'none'; form-action 'none'"
)
_STAMPS = {
    "HELD": "Every promise was kept.",
    "SHOWN": "The incident appeared, and no money was touched.",
    "BROKE": "A promise was not kept.",
    "NOT_SHOWN": "The incident did not appear.",
    "INCONCLUSIVE": "Nothing was proven.",
    "ABORTED": "The run was stopped before its end.",
    "REFUSED": "The run was not started.",
}

_ICONS = {
    **dict.fromkeys(("HELD", "SHOWN"), "safe"),
    **dict.fromkeys(("BROKE", "NOT_SHOWN"), "act"),
}


def render_page(document: dict[str, Any]) -> str:
    """HTML; every text of the document is escaped."""
    verdict = str(document["verdict"] or document["phase"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(verdict)}: {escape(document["title"])}</title>
<link rel="icon" type="image/svg+xml" href="/console/static/icon-{_ICONS.get(verdict, "watch")}.svg">
<link rel="stylesheet" href="/drills/static/report.css"></head><body>
<header class="{escape(verdict.lower())}">
<p class="kind">Holdfast · {escape(document["kind"])} · {escape(document["name"])}</p>
<h1>{escape(document["title"])}</h1>
<p class="verdict"><strong>{escape(verdict)}</strong> <span>{escape(_STAMPS.get(verdict, ""))}</span></p>
<p class="summary">{escape(document["summary"] or "Still running.")}</p>
{_glance(document)}</header>
<main>
<section><h2>Hypothesis</h2><blockquote>{escape(document["hypothesis"])}</blockquote></section>
{_parts(document["parts"])}
{"".join(_charts(side, document) for side in document["sides"])}
{_checks("Expectations", "The conditions that had to hold, with the plan's bounds.", document["expectations"])}
{_checks("Fault proof", "Without it the verdict would be INCONCLUSIVE.", document["bite"])}
{_books(document["invariants"])}
{"".join(_side(side) for side in document["sides"])}
{_steps(document)}
{_facts(document)}
</main></body></html>
"""


def _glance(document: dict[str, Any]) -> str:
    """The most important figures."""
    if not document["sides"]:
        return ""
    side, violated = (
        document["sides"][0],
        {r["rule"]: r["violations"] for r in document["invariants"]},
    )
    callers = side["callers"]
    figures = {
        "payments": str(callers["count"]),
        "charged twice": str(violated.get("charged_once", "?")),
        "charges missing in our books": str(violated.get("charge_is_recorded", "?")),
        "left in doubt": str(violated.get("nothing_left_in_doubt", "?")),
        "slowest answer": _seconds(callers["ms"]["max"]),
    }
    cells = "".join(
        f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>"
        for name, value in figures.items()
    )
    return f'<dl class="glance">{cells}</dl>'


def _seconds(ms: float | None) -> str:
    if ms is None:
        return "none"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def _charts(side: dict[str, Any], document: dict[str, Any]) -> str:
    """Four charts of the same seconds, one above the other."""
    timeline = timeline_of(document, side)
    if not timeline.seconds:
        return ""
    samples = side["callers"]["samples"]
    left_out = side["callers"]["count"] - len(samples)
    note = f'<p class="note">The first {len(samples)} payments are drawn.</p>' if left_out else ""
    faults = "".join(
        f"<li>{escape(fault['text'])} <span>{fault['from_s']:.0f} to"
        f" {fault['to_s'] or timeline.end_s:.0f} s</span></li>"
        for fault in timeline.faults
    )
    return f"""<section class="charts"><h2>{escape(_side_title(side, document))}</h2>
{f'<ol class="faults">{faults}</ol>' if faults else ""}
{answers_chart(timeline)}{waits_chart(timeline, samples)}{note}
{breaker_chart(timeline)}{pool_chart(timeline)}</section>"""


def _side_title(side: dict[str, Any], document: dict[str, Any]) -> str:
    if len(document["sides"]) == 1:
        return "What happened, second by second"
    behind = {"experiment": "behind the fault", "control": "without it"}
    return f"The {side['name']}, {behind.get(side['name'], '')}"


def _checks(title: str, told: str, checks: list[dict[str, Any]]) -> str:
    if not checks:
        return ""
    rows = "".join(
        f'<tr class="{_word(check)}"><td>{_mark(check)}</td><th scope="row">{escape(check["text"])}'
        f"{_promql(check)}</th><td>{escape(shown(check['value']))}"
        f"{gauge(check['value'], check['min'], check['max'])}</td>"
        f"<td>{escape(bounds(check))}</td><td>{escape(_without(check))}</td>"
        f"<td>{escape(_when(check))}</td></tr>"
        for check in checks
    )
    head = _head("Kept", "What", "Measured", "Bound", "Without the fault", "When")
    return (
        f"<section><h2>{escape(title)}</h2><p class='note'>{escape(told)}</p>"
        f"<div class='wide' tabindex='0'><table class='checks'>{head}{rows}</table></div></section>"
    )


def _promql(check: dict[str, Any]) -> str:
    return f"<code>{escape(check['promql'])}</code>" if check["promql"] else ""


def _without(check: dict[str, Any]) -> str:
    """The same number before the fault, or of the control."""
    reference = check.get("reference")
    return "" if reference is None else shown(reference)


def _when(check: dict[str, Any]) -> str:
    during = str(check.get("during", "all"))
    return {"all": "fault and after", "fault": "fault", "recovery": "after it"}.get(during, during)


def _books(rules: list[dict[str, Any]]) -> str:
    if not rules:
        return ""
    rows = "".join(
        f'<tr class="{_word(rule)}"><td>{_mark(rule)}</td>'
        f'<th scope="row">{escape(RULES.get(rule["rule"], rule["rule"]))}</th>'
        f"<td>{escape(_book(rule['book']))}</td><td>{violations_of(rule)}</td></tr>"
        for rule in rules
    )
    return (
        "<section><h2>Both books</h2><p class='note'>Ours by SQL, the provider's by its own"
        f" listing, compared payment by payment.</p><div class='wide' tabindex='0'><table class='checks'>"
        f"{_head('Kept', 'Promise', 'Read in', 'Broken by')}{rows}</table></div></section>"
    )


def _book(book: str) -> str:
    return {"both": "both books", "ours": "ours", "provider": "the provider's"}.get(book, book)


def _parts(parts: Sequence[dict[str, Any]]) -> str:
    if not parts:
        return ""
    cards = "".join(
        f'<li class="{escape(str(part["verdict"]).lower())}"><a'
        f' href="/drills/{escape(part["id"])}?format=html"><strong>{escape(str(part["verdict"]))}'
        f"</strong> {escape(part['title'])}</a><p>{escape(part['summary'] or '')}</p></li>"
        for part in parts
    )
    return f'<section><h2>The drills of the day</h2><ol class="parts">{cards}</ol></section>'


def _side(side: dict[str, Any]) -> str:
    """Evidence from the log and the callers."""
    callers = side["callers"]
    chains = "".join(
        "<pre>" + escape("\n".join(f"{'  ' * i}{e}" for i, e in enumerate(chain))) + "</pre>"
        for chain in side["exception_chains"]
    )
    incident = f'<pre class="incident">{escape(side["incident"])}</pre>' if side["incident"] else ""
    told = {
        "Status": callers["by_status"],
        "Outcome": callers["by_outcome"],
        "Refusals by code": callers["by_code"],
        "Payments in our books": side["payments_by_status"],
    }
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(_counted(counts))}</dd>"
        for name, counts in told.items()
        if counts
    )
    waits = ", ".join(f"{name} {_seconds(ms)}" for name, ms in callers["ms"].items())
    return f"""<section><h2>Evidence: the {escape(side["name"])}</h2>
<dl class="facts">{lines}<dt>Callers waited</dt><dd>{escape(waits)}</dd></dl>
{incident}{chains}</section>"""


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} x {word}" for word, count in counts.items())


def _steps(document: dict[str, Any]) -> str:
    steps = "".join(
        f"<li><b>{step['at_s']:.1f} s</b> <i>{escape(step['phase'])}</i> {escape(step['text'])}</li>"
        for step in document["progress"]
    )
    return f'<section><h2>Log of the run</h2><ol class="steps">{steps}</ol></section>'


def _facts(document: dict[str, Any]) -> str:
    facts = {
        "Run": document["id"],
        "Scope": document["scope"],
        "Began": document["started_at"],
        "Ended": document["ended_at"] or "still running",
        "Fault": f"{shown(document['ttl_s'])} s",
        "Load": f"{shown(document['load_rps'])} payments a second",
        "Requested by": document["requested_by"],
        "Reason": document["reason"] or "none given",
        "Runbook": document["runbook"] or "none",
    }
    lines = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    run = escape(document["id"])
    forms = " · ".join(
        f'<a href="/drills/{run}?format={form}">{name}</a>'
        for form, name in (("json", "JSON"), ("markdown", "Markdown"), ("junit", "JUnit"))
    )
    return (
        f'<section><h2>The run</h2><dl class="facts">{lines}</dl>'
        f'<p class="note">The same report as {forms}.</p></section>'
    )


def _head(*words: str) -> str:
    cells: Iterable[str] = (f"<th scope='col'>{escape(word)}</th>" for word in words)
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _word(check: dict[str, Any]) -> str:
    return "kept" if check["ok"] else "broken"


def _mark(check: dict[str, Any]) -> str:
    return "<b>kept</b>" if check["ok"] else "<b>BROKEN</b>"
