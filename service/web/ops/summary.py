"""The console's first answer: whether money is safe, in one word and its reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.observability.checks import (
    INVARIANTS_TOO_OLD_S,
    QUEUE_STANDS_S,
    RECONCILER_BEHIND_S,
    SWEEP_TOO_OLD_S,
    UNKNOWN_TOO_OLD_S,
)
from service.observability.metrics.catalogue import SLO_TARGETS

Level = Literal["act", "watch"]


@dataclass(frozen=True, slots=True)
class Reason:
    """A sentence for the person on call, and the runbook for it."""

    level: Level
    text: str
    runbook: str


def glance(
    now: Mapping[str, Any], windows: Mapping[str, Any], health: Mapping[str, Any]
) -> dict[str, Any]:
    """`state` is act, not_known, watch or safe; a missing value never counts as 0."""
    reasons = [*_money(now, windows), *_service(now, windows), *_components(health)]
    is_counted = now["queue"]["needs_review"] is not None
    # A payment in transit is at risk for a moment too; doubt begins with a missing answer.
    in_doubt = now["queue"]["open"].get("unknown")
    if any(reason.level == "act" for reason in reasons):
        state, title = "act", "Act now"
    elif (unchecked := _unchecked(now)) is not None and is_counted:
        state, title = "not_known", "Not known whether money is safe"
        reasons.insert(0, unchecked)
    elif not is_counted:
        state, title = "not_known", "Not known whether money is safe"
        reasons.insert(
            0, Reason("watch", "No reconciler has counted the open payments.", "ReconcilerSilent")
        )
    elif in_doubt:
        state, title = "watch", "Money in doubt is being settled"
    elif reasons:
        state, title = "watch", "Money is safe, the service needs watching"
    else:
        state, title = "safe", "Money is safe"
    reasons.sort(key=lambda reason: reason.level)
    return {
        "state": state,
        "title": title,
        "reasons": [
            {"level": reason.level, "text": reason.text, "runbook": reason.runbook}
            for reason in reasons
        ],
    }


def _unchecked(now: Mapping[str, Any]) -> Reason | None:
    """Why the rules about money are out of date; None if they were checked lately."""
    age_s = now["invariant_age_s"]
    if age_s is not None and age_s <= INVARIANTS_TOO_OLD_S:
        return None
    since = "yet" if age_s is None else f"since {age_s / 60:.0f} minutes ago"
    return Reason(
        "watch", f"The rules about money were not checked {since}.", "InvariantsNotChecked"
    )


def budgets(windows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each objective's remaining error budget in the last hour; None without any count."""
    hour = windows["1h"]
    payments = hour["payments"]
    slow = payments["slow_ratio"]
    ratios = {
        "truthful_answers": payments["truthful_ratio"],
        "quick_answers": None if slow is None else 1.0 - slow,
    }
    return [
        {
            "slo": slo,
            "target": SLO_TARGETS[slo],
            "ratio": ratio,
            "left": None
            if ratio is None
            else round(max(0.0, 1.0 - (1.0 - ratio) / (1.0 - SLO_TARGETS[slo])), 4),
            "covers_s": hour["covers_s"],
        }
        for slo, ratio in ratios.items()
    ]


def _money(now: Mapping[str, Any], windows: Mapping[str, Any]) -> Iterator[Reason]:
    for rule, violations in now["invariant_violations"].items():
        if violations:
            text = f"{violations:.0f} rows break the promise {rule}."
            yield Reason("act", text, "InvariantViolated")
    orphans = windows["1h"]["settling"]["orphans"]
    if orphans:
        text = f"{orphans:.0f} charges in the provider's books are not in ours."
        yield Reason("act", text, "OrphanCharge")
    if (now["sweep_age_s"] or 0.0) > SWEEP_TOO_OLD_S:
        text = f"The provider's books were last compared {now['sweep_age_s'] / 60:.0f} minutes ago."
        yield Reason("act", text, "SweepBehind")
    if now["disputes_open"]:
        text = f"{now['disputes_open']:.0f} disputes wait for an answer to the payer's bank."
        yield Reason("watch", text, "DisputeOpen")
    queue = now["queue"]
    if queue["needs_review"]:
        text = f"{_payments(queue['needs_review'])} can only be settled by a person."
        yield Reason("act", text, "NeedsReview")
    in_doubt, oldest_s = queue["open"].get("unknown", 0.0), queue["unknown_oldest_s"] or 0.0
    if oldest_s > UNKNOWN_TOO_OLD_S:
        text = f"An outcome has been unknown for {oldest_s / 60:.0f} minutes."
        yield Reason("act", text, "UnknownTooOld")
    elif in_doubt:
        text = f"{_payments(in_doubt)} with an unknown outcome; the reconciler is finding out."
        yield Reason("watch", text, "UnknownTooOld")
    if (queue["reconcile_behind_s"] or 0.0) > RECONCILER_BEHIND_S:
        text = f"The reconciler is {queue['reconcile_behind_s']:.0f} s behind."
        yield Reason("watch", text, "ReconcilerSilent")


def _service(now: Mapping[str, Any], windows: Mapping[str, Any]) -> Iterator[Reason]:
    if not any(worker.startswith("web-") for worker in now["pool"]["by_worker"]["size"]):
        yield Reason("act", "No worker takes payments.", "ComponentDown")
    truthful = windows["5m"]["payments"]["truthful_ratio"]
    if truthful is not None and truthful < 1.0:
        text = "Answers of the last 5 minutes broke their promise (500)."
        yield Reason("act", text, "InternalErrors")
    if now["breaker"] in ("open", "half_open"):
        queued = _payments(now["queue"]["queued"] or 0.0)
        text = f"The circuit breaker is {now['breaker'].replace('_', '-')}; {queued} queued."
        yield Reason("watch", text, "BreakerOpen")
    elif (now["queue"]["oldest_s"] or 0.0) > QUEUE_STANDS_S:
        text = f"{_payments(now['queue']['queued'])} queued, to be sent."
        yield Reason("watch", text, "BreakerOpen")
    if now["pool"]["waiting"]:
        text = f"{now['pool']['waiting']:.0f} callers wait for a database connection."
        yield Reason("watch", text, "PoolSaturated")


def _components(health: Mapping[str, Any]) -> Iterator[Reason]:
    for name, (check, *_) in health["checks"].items():
        # A missing check is no problem here; the state of the table shows it.
        if check["status"] == "pass" or check["time"] is None:
            continue
        is_down = check["status"] == "fail" and check["critical"]
        word = "fails" if check["status"] == "fail" else "is degraded"
        text = f"The check of the {name} {word}: {check.get('output') or 'no reason given'}."
        yield Reason("act" if is_down else "watch", text, "ComponentDown")


def _payments(count: float) -> str:
    return f"{count:.0f} payment" + ("" if count == 1 else "s")
