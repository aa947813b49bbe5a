"""A budget of calls: a burst at once, and then so many a second."""

from __future__ import annotations

from service.resilience.call_budget import CallBudget


def test_burst_is_all_that_is_left_at_once() -> None:
    budget = CallBudget(per_s=0.0, burst=8)

    budget.spend(5)

    assert budget.left() == 3
    budget.spend(3)
    assert budget.left() == 0


def test_calls_come_back_and_never_exceed_the_burst() -> None:
    budget = CallBudget(per_s=1e9, burst=8)
    budget.spend(8)

    assert budget.left() == 8
