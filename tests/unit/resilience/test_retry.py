"""The retry: few, jittered, inside the deadline, and never more than a tenth of all calls."""

from __future__ import annotations

from time import monotonic

import pytest

from service.resilience.deadline import Deadline
from service.resilience.retry import Again, Retry, RetryBudget
from tests.support.providers.fakes import FakeClock

AGAIN = Again("not_executed")


def test_a_good_result_is_given_back_without_another_try():
    tries = _Tries("good")

    assert _rich_retry().run(tries, Deadline.after(60), _bad_is_again) == "good"
    assert tries.made == 1


def test_a_bad_result_is_tried_again_until_it_is_good():
    tries = _Tries("bad", "good")

    assert _rich_retry().run(tries, Deadline.after(60), _bad_is_again) == "good"
    assert tries.made == 2


def test_after_two_retries_the_last_result_stands():
    tries = _Tries("bad")

    assert _rich_retry().run(tries, Deadline.after(60), _bad_is_again) == "bad"
    assert tries.made == 3


def test_no_retry_when_the_deadline_leaves_no_time_for_a_call():
    tries = _Tries("bad")

    _rich_retry().run(tries, Deadline.after(0.4), _bad_is_again)

    assert tries.made == 1


def test_retry_after_is_waited_out():
    tries = _Tries("bad", "good")
    began_s = monotonic()

    _rich_retry().run(tries, Deadline.after(60), lambda last: _again(last, after_s=0.2))

    assert tries.made == 2
    assert monotonic() - began_s >= 0.2


def test_a_retry_after_beyond_the_deadline_is_not_waited_for():
    tries = _Tries("bad")
    began_s = monotonic()

    _rich_retry().run(tries, Deadline.after(60), lambda last: _again(last, after_s=60.0))

    assert tries.made == 1
    assert monotonic() - began_s < 30


def test_retries_add_at_most_a_tenth_of_the_calls():
    retry = Retry("fake", budget=RetryBudget(clock=FakeClock()))
    tries = _Tries("bad")

    for _ in range(200):
        retry.run(tries, Deadline.after(0.6), _bad_is_again)

    assert 200 < tries.made <= 200 * 1.1 + 1


def test_a_quiet_service_may_retry_now_and_then():
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    assert budget.withdraw()
    assert not budget.withdraw()

    clock.move(10)

    assert budget.withdraw()
    assert not budget.withdraw()


def test_pauses_are_spread_over_their_whole_range(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    retry = Retry("fake", budget=RetryBudget(tokens_max=1000, share=10))

    for _ in range(200):
        retry.run(_Tries("bad"), Deadline.after(60), _bad_is_again)

    first, second = pauses[0::2], pauses[1::2]
    assert min(first) < 0.02
    assert 0.08 < max(first) <= 0.1
    assert 0.16 < max(second) <= 0.2


class _Tries:
    def __init__(self, *results: str) -> None:
        self._results = list(results)
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        return self._results.pop(0) if len(self._results) > 1 else self._results[0]


def _rich_retry() -> Retry:
    budget = RetryBudget()
    for _ in range(100):
        budget.deposit()
    return Retry("fake", budget=budget)


def _bad_is_again(result: str) -> Again | None:
    return AGAIN if result == "bad" else None


def _again(result: str, *, after_s: float) -> Again | None:
    return Again("http_429", after_s) if result == "bad" else None
