"""The console's first view: never "safe" when it is not, and never a 0 for an unknown value."""

from __future__ import annotations

from typing import Any

import pytest

from service.observability.metrics.statistics import describe_now, summarize
from service.observability.metrics.window import Window
from service.web.ops.summary import budgets, glance

_WORKER = (("worker", "web-0"),)
WELL = {
    ("holdfast_needs_review", ()): 0.0,
    ("holdfast_payments_open", (("status", "unknown"),)): 0.0,
    ("holdfast_invariant_age_seconds", ()): 30.0,
    ("holdfast_db_pool_size", _WORKER): 8.0,
    ("holdfast_breaker_state", (("provider", "stripe"), ("state", "closed"))): 1.0,
}
HEALTHY = {"checks": {"database": [{"status": "pass", "time": "2026-01-31T12:00:00Z"}]}}


def look(health: dict[str, Any] = HEALTHY, **counted: float) -> dict[str, Any]:
    samples = {**WELL, **{(f"holdfast_{name}", ()): value for name, value in counted.items()}}
    return glance(
        describe_now(Window({}, samples, 0.0)),
        dict.fromkeys(("1m", "5m", "1h"), summarize(Window({}, samples, 60.0))),
        health,
    )


def test_money_is_safe_without_doubt_and_with_healthy_parts():
    said = look()

    assert (said["state"], said["reasons"]) == ("safe", [])


@pytest.mark.parametrize(
    ("counted", "runbook"),
    [
        ({"needs_review": 1.0}, "NeedsReview"),
        ({"unknown_oldest_age_seconds": 1000.0}, "UnknownTooOld"),
        ({"sweep_orphans_total": 1.0}, "OrphanCharge"),
        ({"sweep_age_seconds": 2000.0}, "SweepBehind"),
        ({"payments_bad_total": 1.0}, "InternalErrors"),
    ],
)
def test_what_threatens_money_calls_for_action(counted: dict[str, float], runbook: str):
    said = look(**counted)

    assert said["state"] == "act"
    assert said["reasons"][0]["runbook"] == runbook


@pytest.mark.parametrize("age_s", [None, 1000.0])
def test_an_unchecked_rule_is_not_known_to_be_kept(age_s: float | None):
    key = ("holdfast_invariant_age_seconds", ())
    samples = {**WELL, key: age_s} if age_s else {k: v for k, v in WELL.items() if k != key}
    windows = dict.fromkeys(("1m", "5m", "1h"), summarize(Window({}, samples, 60.0)))

    said = glance(describe_now(Window({}, samples, 0.0)), windows, HEALTHY)

    assert (said["state"], said["reasons"][0]["runbook"]) == ("not_known", "InvariantsNotChecked")


def test_a_fresh_unknown_outcome_is_watched_not_acted_on():
    samples = {**WELL, ("holdfast_payments_open", (("status", "unknown"),)): 2.0}
    windows = dict.fromkeys(("1m", "5m", "1h"), summarize(Window({}, samples, 60.0)))

    said = glance(describe_now(Window({}, samples, 0.0)), windows, HEALTHY)

    assert said["state"] == "watch"
    assert said["title"] == "Money in doubt is being settled"


def test_without_a_reconciler_nobody_says_that_money_is_safe():
    samples = {key: value for key, value in WELL.items() if key[0] != "holdfast_needs_review"}
    windows = dict.fromkeys(("1m", "5m", "1h"), summarize(Window({}, samples, 60.0)))

    said = glance(describe_now(Window({}, samples, 0.0)), windows, HEALTHY)

    assert said["state"] == "not_known"


def test_no_live_worker_calls_for_action():
    samples = {key: value for key, value in WELL.items() if key[0] != "holdfast_db_pool_size"}
    windows = dict.fromkeys(("1m", "5m", "1h"), summarize(Window({}, samples, 60.0)))

    said = glance(describe_now(Window({}, samples, 0.0)), windows, HEALTHY)

    assert said["reasons"][0]["text"] == "No worker takes payments."


@pytest.mark.parametrize(("critical", "state"), [(True, "act"), (False, "watch")])
def test_failing_part_needs_action_only_if_it_is_critical(critical, state):
    check = {"status": "fail", "time": "2026-01-31T12:00:00Z", "critical": critical}

    said = look({"checks": {"database": [{**check, "output": "refused"}]}})

    assert said["state"] == state


def test_the_budget_left_is_what_the_bad_answers_have_not_used():
    samples = {("holdfast_payments_good_total", ()): 9998.0, ("holdfast_payments_bad_total", ()): 2}
    windows = {"1h": summarize(Window({}, samples, 3600.0))}

    truthful = budgets(windows)[0]

    # Two in ten thousand; five are allowed.
    assert truthful["left"] == pytest.approx(0.6)


def test_a_budget_of_no_answers_is_not_known():
    truthful, quick = budgets({"1h": summarize(Window({}, {}, 3600.0))})

    assert (truthful["left"], quick["left"]) == (None, None)
