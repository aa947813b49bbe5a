"""A deadline shortens, never extends, and remembers what it was given."""

from __future__ import annotations

import pytest

from service.errors import DeadlineExceeded
from service.resilience.deadline import Deadline


def test_a_step_may_shorten_the_deadline():
    whole = Deadline.after(10)

    step = whole.within(1)

    assert step.at_s < whole.at_s
    assert step.budget_s == 1


def test_a_step_may_not_extend_the_deadline():
    whole = Deadline.after(1)

    assert whole.within(10) is whole


def test_the_budget_stays_while_the_time_goes():
    deadline = Deadline.after(5)

    assert deadline.remaining_s() < 5
    assert deadline.budget_s == 5


def test_a_spent_deadline_has_nothing_left_and_refuses_work():
    spent = Deadline.after(-1)

    assert spent.expired
    assert spent.remaining_s() == 0
    with pytest.raises(DeadlineExceeded):
        spent.require()


def test_a_deadline_with_time_left_lets_work_begin():
    Deadline.after(10).require()
