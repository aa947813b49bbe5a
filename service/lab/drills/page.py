"""A run's report as an HTML page: charts without script, no inline styles, ready for paper.

The console's charts are canvases that a script draws; a report is read years later, printed and
attached to a ticket, so its charts are SVG in the page itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from service.lab.drills import charts
from service.lab.drills.document import DrillCheckResult, DrillReport, TargetEvidence
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
_BOOKS = {"both": "both books", "ours": "ours", "provider": "the provider's"}
_PERIODS = {"all": "fault and after", "fault": "fault", "recovery": "after it"}
_FORMS = (("json", "JSON"), ("markdown", "Markdown"), ("junit", "JUnit"))


def render_page(report: DrillReport) -> str:
    """HTML; the template escapes every text of the report."""
    verdict = str(report.verdict or report.phase)
    return _TEMPLATES.get_template("report.html").render(
        run=report,
        verdict=verdict,
        stamp=_STAMPS.get(verdict, ""),
        icon=_ICONS.get(verdict, "watch"),
        glance=_glance(report),
        drawings=[_target(target, report) for target in report.targets],
        promises=RULES,
        books=_BOOKS,
        run_facts=_run_facts(report),
        forms=_FORMS,
    )


def _glance(report: DrillReport) -> dict[str, str]:
    """The most important figures."""
    if not report.targets:
        return {}
    callers = report.targets[0].callers
    violated = {rule.rule: rule.violations for rule in report.invariants}
    return {
        "payments": str(callers.count),
        "charged twice": str(violated.get("charged_once", "?")),
        "charges missing in our books": str(violated.get("charge_is_recorded", "?")),
        "left in doubt": str(violated.get("nothing_left_in_doubt", "?")),
        "slowest answer": _wait(callers.ms["max"]),
    }


def _target(target: TargetEvidence, report: DrillReport) -> dict[str, Any]:
    """The charts of one target, one above the other, and the faults in their period."""
    timeline = charts.timeline_of(report, target)
    if not timeline.seconds:
        return {"charts": []}
    return {
        "title": _target_title(target, report),
        "faults": [
            {
                "text": fault.text,
                "period": f"{fault.from_s:.0f} to {fault.to_s or timeline.end_s:.0f} s",
            }
            for fault in timeline.faults
        ],
        "charts": charts.drawn(timeline, target.callers),
    }


def _target_title(target: TargetEvidence, report: DrillReport) -> str:
    if len(report.targets) == 1:
        return "What happened, second by second"
    behind = {"experiment": "behind the fault", "control": "without it"}
    return f"The {target.name}, {behind.get(target.name, '')}"


def _evidence(target: TargetEvidence) -> list[tuple[str, str]]:
    """Figures of the callers and of our books."""
    callers = target.callers
    counts = {
        "Status": callers.by_status,
        "Outcome": callers.by_outcome,
        "Refusals by code": callers.by_code,
        "Payments in our books": target.payments_by_status,
    }
    return [
        *((name, _counted(counted)) for name, counted in counts.items() if counted),
        ("Callers waited", ", ".join(f"{name} {_wait(ms)}" for name, ms in callers.ms.items())),
    ]


def _run_facts(report: DrillReport) -> list[tuple[str, str | None]]:
    return [
        ("Run", report.id),
        ("Scope", report.scope),
        ("Began", report.started_at),
        ("Ended", report.ended_at or "still running"),
        ("Fault", f"{shown(report.ttl_s)} s"),
        ("Load", f"{shown(report.load_rps)} payments a second"),
        ("Requested by", report.requested_by),
        ("Reason", report.reason or "none given"),
        ("Runbook", report.runbook or "none"),
    ]


def _period(check: DrillCheckResult) -> str:
    return _PERIODS.get(check.during, check.during)


def _wait(ms: float | None) -> str:
    if ms is None:
        return "none"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {word}" for word, count in counts.items())


_TEMPLATES = Environment(
    loader=PackageLoader("service.lab.drills"),
    autoescape=True,
    trim_blocks=False,
    undefined=StrictUndefined,
)
_TEMPLATES.filters |= {
    "shown": shown,
    "bounds": bounds,
    "violations": violations_of,
    "gauge": charts.gauge,
    "period": _period,
    "evidence": _evidence,
}
