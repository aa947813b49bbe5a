"""Judges a run's report: the verdict, and the sentence with its reason. Pure."""

from __future__ import annotations

from service.lab.drills.document import DrillCheckResult, DrillReport
from service.lab.drills.load import Call

# This many successful payments in a row, sent after the fault, prove recovery.
RECOVERED_AFTER = 3


def judge(report: DrillReport, *, payments_min: int) -> tuple[str, str]:
    """Check money first, then the proof of the fault, then the expectations."""
    rules = report.invariants
    unchecked = [rule.rule for rule in rules if rule.violations is None]
    broken = [rule.rule for rule in rules if not rule.ok and rule.rule not in unchecked]
    if broken:
        return "BROKE", "Broken: " + ", ".join(broken) + "."
    if unchecked:
        return "INCONCLUSIVE", "Rules that could not be checked: " + ", ".join(unchecked) + "."
    count = report.targets[0].callers.count
    if report.kind == "simulation":
        return _judge_simulation(report, count)
    unproven = [check.text for check in report.fault_proof if not check.ok]
    if unproven:
        return "INCONCLUSIVE", f"The fault is not proven: {unproven[0]}."
    if count < payments_min:
        return "INCONCLUSIVE", f"Only {count} payments were answered; {payments_min} are needed."
    failed = [check for check in report.expectations if not check.ok]
    unwell = next((check for check in report.expectations if _is_kept_by_nobody(check)), None)
    if unwell and all(_is_excused(check) for check in failed):
        return "INCONCLUSIVE", (
            f"Violated in the baseline too: {unwell.text}: {unwell.reference:g}."
        )
    if failed:
        return "BROKE", "Not kept: " + "; ".join(check.text for check in failed) + "."
    kept = len(report.expectations) + len(report.invariants)
    return "HELD", f"All {kept} promises were kept over {count} payments."


def _is_kept_by_nobody(check: DrillCheckResult) -> bool:
    """Whether the baseline violates the check too: the machine is too busy to prove anything."""
    reference, least, most = check.reference, check.min, check.max
    if check.ok or reference is None:
        return False
    return (most is not None and reference > most) or (least is not None and reference < least)


def _is_excused(check: DrillCheckResult) -> bool:
    """On such a machine: checks that the baseline violates, and checks without a baseline."""
    return _is_kept_by_nobody(check) or (check.is_of_time and check.reference is None)


def _judge_simulation(report: DrillReport, count: int) -> tuple[str, str]:
    target = report.targets[0]
    shown = target.incident is not None or all(check.ok for check in report.fault_proof)
    if not shown:
        return "NOT_SHOWN", "The incident's error did not appear."
    return "SHOWN", f"The incident's error appeared; {count} payments, none lost or charged twice."


def judge_day(verdicts: list[str], *, stopped: str | None) -> tuple[str, str]:
    """A game day's verdict, from those of its drills."""
    told = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
    if stopped:
        return "ABORTED", f"{stopped} Until then: {told or 'nothing'}."
    if "BROKE" in verdicts:
        return "BROKE", f"{told}."
    if verdicts and set(verdicts) == {"HELD"}:
        return "HELD", f"{told}."
    return "INCONCLUSIVE", f"{told or 'No drill could be run'}."


def recovery_s(calls: list[Call], target: str, fault_ended_s: float) -> float | None:
    """The time of the first answer in a long enough series of successes after the fault."""
    later = sorted(
        (call for call in calls if call.target == target and call.at_s >= fault_ended_s),
        key=lambda call: call.at_s,
    )
    row: list[Call] = []
    for call in later:
        row = [*row, call] if call.outcome == "succeeded" else []
        if len(row) == RECOVERED_AFTER:
            return round(max(0.0, row[0].at_s + row[0].ms / 1000 - fault_ended_s), 2)
    return None
