"""A run's report as Markdown for people and as JUnit XML for a build. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from service.lab.drills.document import DrillCheckResult, DrillReport, RuleResult, TargetEvidence

# The promises about money in plain English; some of them are rules in SQL too.
RULES = {
    "charged_once": "No payment was charged twice",
    "succeeded_is_charged": "Each payment that we call succeeded is charged at the provider",
    "charge_is_recorded": "Each charge at the provider is a succeeded payment in our books",
    "answered_succeeded_is_charged": "Each payment answered as succeeded is charged",
    "charged_what_was_asked": "The amount charged is the amount requested",
    "accepted_is_kept": "Each accepted payment is in our books",
    "one_payment_a_key": "One idempotency key, one payment",
    "nothing_left_in_doubt": "No payment is left in doubt",
    "one_payment_a_reference": "One charge belongs to one payment",
    "captured_within_authorised": "Nothing was captured beyond what was authorised",
    "refunded_within_captured": "No refund exceeds the captured amount",
    "refunds_add_up": "The refunds of a payment add up to its refunded amount",
    "captured_once": "No payment was captured twice",
    "payment_has_events": "Each payment has its events",
    "terminal_stays": "A final state never changes",
    "charge_has_payment": "Each charge has its payment",
    "readable": "The provider's books can be read",
}
_WRONG = {"BROKE", "NOT_SHOWN"}
_SKIPPED = {"INCONCLUSIVE", "ABORTED", "REFUSED"}


def markdown(report: DrillReport) -> str:
    """The report as text for a ticket."""
    lines = [
        f"# {report.title}: {report.verdict or report.phase}",
        "",
        report.summary or "Still running.",
        "",
        f"- Run `{report.id}`, {report.kind} `{report.name}`, scope {report.scope}",
        f"- {report.started_at} to {report.ended_at or 'now'},"
        f" {shown(report.load_rps)} payments a second, fault of {shown(report.ttl_s)} s",
        f"- Requested by key {report.requested_by}: {report.reason or 'no reason given'}",
        "",
        f"**Hypothesis.** {report.hypothesis}",
        *_checks("Fault proof", report.fault_proof),
        *_checks("Expectations", report.expectations),
        *_invariants(report.invariants),
    ]
    for target in report.targets:
        lines += _target(target)
    lines += ["", "## What happened", ""]
    lines += [f"- {step.at_s:6.1f} s · {step.phase} · {step.text}" for step in report.progress]
    for part in report.parts:
        lines.append(f"- {part.name}: {part.verdict}. {part.summary}")
    return "\n".join(lines) + "\n"


def _checks(title: str, checks: Sequence[DrillCheckResult]) -> list[str]:
    if not checks:
        return []
    rows = [
        f"| {_mark(check)} | {check.text} | {shown(check.value)} | {bounds(check)}"
        f" | `{check.promql.replace('|', chr(92) + '|')}` |"
        for check in checks
    ]
    return ["", f"## {title}", "", "| | what | measured | bound | PromQL |", "|-|-|-|-|-|", *rows]


def _invariants(rules: Sequence[RuleResult]) -> list[str]:
    rows = [
        f"| {_mark(rule)} | {rule.book} | {rule.rule} | {violations_of(rule)} |" for rule in rules
    ]
    return ["", "## Books", "", "| | book | rule | violations |", "|-|-|-|-|", *rows]


def violations_of(rule: RuleResult) -> str:
    """The number of rows that break a rule, or a text where it could not be counted."""
    return "not checked" if rule.violations is None else str(rule.violations)


def _target(target: TargetEvidence) -> list[str]:
    callers = target.callers
    lines = [
        "",
        f"## Evidence of the {target.name}",
        "",
        f"    {target.incident or 'no error of the incident'}",
        "",
        f"- Callers: {callers.count} answers, by status {callers.by_status};"
        f" p50 {shown(callers.ms['p50'])} ms, p99 {shown(callers.ms['p99'])} ms",
        f"- Payments: {target.payments_by_status}",
    ]
    for chain in target.exception_chains:
        lines += ["", *(f"    {'  ' * depth}{error}" for depth, error in enumerate(chain))]
    return lines


def _mark(check: DrillCheckResult | RuleResult) -> str:
    return "kept" if check.ok else "**BROKEN**"


def shown(value: float | None) -> str:
    """A number for people."""
    return "nothing" if value is None else f"{value:g}"


def bounds(check: DrillCheckResult) -> str:
    """The bounds of a check as text."""
    words = []
    if check.min is not None:
        words.append(f"at least {check.min:g}")
    if check.max is not None:
        words.append(f"at most {check.max:g}")
    return ", ".join(words)


def junit(report: DrillReport) -> str:
    """One test case for each promise, so that a build shows the broken one."""
    promises = [
        *((check.text, check.ok, _measured(check)) for check in report.expectations),
        *(
            (f"{rule.book}: {rule.rule}", rule.ok, f"{violations_of(rule)} violations")
            for rule in report.invariants
        ),
        *(
            (part.name, part.verdict == "HELD", f"{part.verdict}: {part.summary}")
            for part in report.parts
        ),
    ]
    verdict, summary = str(report.verdict), str(report.summary)
    suite = ElementTree.Element(
        "testsuite",
        name=f"holdfast drill {report.name}",
        tests=str(len(promises) + 1),
        failures=str(sum(not ok for _, ok, _ in promises) + (verdict in _WRONG)),
        skipped=str(int(verdict in _SKIPPED)),
        time=f"{report.elapsed_s:.3f}",
        timestamp=str(report.started_at),
    )
    for name, ok, told in promises:
        case = ElementTree.SubElement(suite, "testcase", name=name, classname=report.name)
        if not ok:
            ElementTree.SubElement(case, "failure", message=told)
    case = ElementTree.SubElement(suite, "testcase", name="verdict", classname=report.name)
    if verdict in _WRONG:
        ElementTree.SubElement(case, "failure", message=f"{verdict}: {summary}")
    elif verdict in _SKIPPED:
        ElementTree.SubElement(case, "skipped", message=f"{verdict}: {summary}")
    ElementTree.SubElement(suite, "system-out").text = markdown(report)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _measured(check: DrillCheckResult) -> str:
    return f"measured {shown(check.value)}, {bounds(check)}; {check.promql}"
