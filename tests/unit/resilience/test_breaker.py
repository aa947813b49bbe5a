"""The breaker in one process: when it opens, who may probe, and which results count."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from circuitbreaker import CircuitBreakerError

from service.observability.metrics import catalogue as metrics
from service.resilience.breaker.breaker import Breaker, BreakerOpen
from service.resilience.breaker.rules import BreakerRules
from tests.support.providers.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> Iterator[Breaker]:
    breaker = Breaker("fake", clock=clock)
    yield breaker
    breaker.close()


def test_it_stays_closed_below_the_minimum_of_calls(breaker: Breaker):
    _calls(breaker, failed=[True] * 9)

    assert breaker.closed


def test_few_calls_are_enough_when_all_of_them_hang(breaker: Breaker, clock: FakeClock):
    # A bulkhead at its floor: two calls of five seconds at a time.
    for _ in range(2):
        permits = [breaker.admit(), breaker.admit()]
        clock.now_s += 5.0
        assert breaker.closed
        for permit in permits:
            permit.record(failed=True)

    assert breaker.state == "open"


def test_slow_failures_beside_a_success_need_the_whole_minimum(breaker: Breaker, clock: FakeClock):
    permits = [breaker.admit() for _ in range(8)]
    _calls(breaker, failed=[False])
    clock.now_s += 5.0
    for permit in permits:
        permit.record(failed=True)

    assert breaker.closed


def test_it_opens_when_half_of_the_calls_fail(breaker: Breaker):
    _calls(breaker, failed=[False, True] * 5)

    assert breaker.state == "open"
    with pytest.raises(BreakerOpen):
        breaker.admit()


def test_a_fifth_of_failures_does_not_open_it(breaker: Breaker):
    _calls(breaker, failed=[False, False, False, False, True] * 20)

    assert breaker.closed


def test_successes_in_between_do_not_hide_a_failure_rate(breaker: Breaker):
    _calls(breaker, failed=[True, True, False] * 4)

    assert not breaker.closed


def test_slow_calls_open_it_though_they_succeed(breaker: Breaker, clock: FakeClock):
    permits = [breaker.admit() for _ in range(10)]
    clock.move(3.5)
    for permit in permits:
        permit.record(failed=False)

    assert breaker.state == "open"


def test_many_hung_calls_outweigh_earlier_successes(breaker: Breaker, clock: FakeClock):
    _calls(breaker, failed=[False] * 500)
    clock.move(1)
    hung = [breaker.admit() for _ in range(12)]
    clock.move(5)
    for permit in hung:
        permit.record(failed=True)

    assert not breaker.closed


def test_what_is_older_than_the_window_is_forgotten(breaker: Breaker, clock: FakeClock):
    _calls(breaker, failed=[True] * 9)
    clock.move(11)
    _calls(breaker, failed=[True] * 9)

    assert breaker.closed
    assert breaker.failure_count == 9


def test_a_call_that_says_nothing_is_not_counted(breaker: Breaker):
    _calls(breaker, failed=[None] * 50)
    _calls(breaker, failed=[True] * 9)

    assert breaker.closed


def test_no_call_goes_out_before_the_pause_is_over(breaker: Breaker, clock: FakeClock):
    _open(breaker)

    clock.move(0.5)

    with pytest.raises(BreakerOpen):
        breaker.admit(may_probe=True)


def test_after_the_pause_only_what_may_be_lost_is_let_through(breaker: Breaker, clock: FakeClock):
    _open(breaker)
    clock.move(1)
    assert breaker.state == "half_open"

    with pytest.raises(BreakerOpen):
        breaker.admit()
    assert breaker.admit(may_probe=True).is_probe


def test_of_32_threads_exactly_one_probes(breaker: Breaker, clock: FakeClock):
    _open(breaker)
    clock.move(1)
    together = threading.Barrier(32)
    let_through = []

    def knock() -> None:
        together.wait()
        with contextlib.suppress(BreakerOpen):
            let_through.append(breaker.admit(may_probe=True))

    threads = [threading.Thread(target=knock) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(let_through) == 1


def test_only_one_of_two_simultaneous_callers_probes(clock: FakeClock):
    together, seen = threading.Barrier(2), threading.local()

    def clock_that_gathers() -> float:
        if is_armed and not hasattr(seen, "before"):
            seen.before = True
            together.wait()
        return clock()

    is_armed = False
    breaker = Breaker("fake", clock=clock_that_gathers)
    _open(breaker)
    clock.move(1)
    is_armed = True
    let_through = []

    def knock() -> None:
        with contextlib.suppress(BreakerOpen):
            let_through.append(breaker.admit(may_probe=True))

    threads = [threading.Thread(target=knock) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(let_through) == 1
    breaker.close()


def test_one_good_probe_closes_it(breaker: Breaker, clock: FakeClock):
    _open(breaker)
    clock.move(1)

    breaker.admit(may_probe=True).record(failed=False)

    assert breaker.closed
    assert breaker.failure_count == 0
    breaker.admit()


@pytest.mark.parametrize("failed", [True, None])
def test_a_probe_that_is_not_good_opens_it_for_another_pause(
    breaker: Breaker, clock: FakeClock, failed: bool | None
):
    _open(breaker)
    clock.move(1)

    breaker.admit(may_probe=True).record(failed=failed)

    assert breaker.state == "open"
    clock.move(1)
    assert breaker.admit(may_probe=True).is_probe


def test_a_prober_that_never_reports_loses_its_lease(breaker: Breaker, clock: FakeClock):
    _open(breaker)
    clock.move(1)
    lost = breaker.admit(may_probe=True)
    with pytest.raises(BreakerOpen):
        breaker.admit(may_probe=True)

    clock.move(2)
    heir = breaker.admit(may_probe=True)
    lost.record(failed=False)

    assert not breaker.closed
    heir.record(failed=False)
    assert breaker.closed


def test_a_stragglers_success_does_not_close_it(breaker: Breaker):
    straggler = breaker.admit()
    _open(breaker)

    straggler.record(failed=False)

    assert breaker.state == "open"


def test_failures_from_before_an_outage_do_not_open_it_again(breaker: Breaker, clock: FakeClock):
    stragglers = [breaker.admit() for _ in range(20)]
    _open(breaker)
    clock.move(1)
    breaker.admit(may_probe=True).record(failed=False)

    for straggler in stragglers:
        straggler.record(failed=True)

    assert breaker.closed
    assert breaker.failure_count == 0


def test_a_straggler_does_not_wipe_out_what_was_counted_since(breaker: Breaker, clock: FakeClock):
    straggler = breaker.admit()
    _open(breaker)
    clock.move(1)
    breaker.admit(may_probe=True).record(failed=False)
    _calls(breaker, failed=[True] * 9)

    straggler.record(failed=True)

    assert breaker.failure_count == 9


def test_each_relapse_doubles_the_pause_up_to_its_end(breaker: Breaker, clock: FakeClock):
    pauses = []
    for _ in range(6):
        _open(breaker)
        pauses.append(breaker.open_remaining)
        clock.move(pauses[-1])
        breaker.admit(may_probe=True).record(failed=False)

    assert 0.6 <= pauses[0] <= 0.9
    assert 1.2 <= pauses[1] <= 1.8
    assert 2.4 <= pauses[2] <= 3.6
    assert all(3.2 <= pause <= 4.8 for pause in pauses[3:])


def test_a_failed_probe_does_not_lengthen_the_pause(breaker: Breaker, clock: FakeClock):
    _open(breaker)
    for _ in range(20):
        clock.move(breaker.open_remaining)
        breaker.admit(may_probe=True).record(failed=True)

    assert breaker.open_remaining <= 0.9


def test_one_call_cannot_report_twice(breaker: Breaker):
    permit = breaker.admit()

    for _ in range(20):
        permit.record(failed=True)

    assert breaker.failure_count == 1


def test_its_turns_are_counted_and_logged(
    breaker: Breaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    before = {turn: _turns(*turn) for turn in TURNS}
    open_s = metrics.breaker_open_seconds_total.labels(provider="fake")._value.get()

    _open(breaker)
    assert _shown("open") == 1
    assert _shown("closed") == 0
    clock.move(1)
    breaker.admit(may_probe=True).record(failed=True)
    clock.move(1)
    breaker.admit(may_probe=True).record(failed=False)

    assert {turn: _turns(*turn) - before[turn] for turn in TURNS} == TURNS
    assert _shown("closed") == 1
    assert metrics.breaker_open_seconds_total.labels(
        provider="fake"
    )._value.get() - open_s == pytest.approx(2)
    assert [record.message for record in caplog.records] == [
        "breaker.opened",
        "breaker.half_open",
        "breaker.probe_failed",
        "breaker.half_open",
        "breaker.closed",
    ]
    assert caplog.records[0].reason == "failure_rate"


def test_refusals_are_counted(breaker: Breaker):
    _open(breaker)
    refusals = metrics.breaker_refusals_total.labels(provider="fake")
    before = refusals._value.get()

    with pytest.raises(BreakerOpen):
        breaker.admit()

    assert refusals._value.get() == before + 1


# --- The interface of circuitbreaker


def test_decorator_refuses_with_circuitbreakers_own_error(breaker: Breaker, clock: FakeClock):
    @breaker
    def call(error: Exception | None = None) -> str:
        if error is not None:
            raise error
        return "ok"

    for _ in range(10):
        with pytest.raises(ZeroDivisionError):
            call(ZeroDivisionError())

    with pytest.raises(CircuitBreakerError, match='Circuit "fake" OPEN'):
        call()
    clock.move(1)
    assert call() == "ok"
    assert breaker.closed


def test_entering_an_open_breaker_neither_works_nor_closes_it(breaker: Breaker):
    _open(breaker)

    with pytest.raises(BreakerOpen), breaker:
        pytest.fail("entered")

    assert breaker.state == "open"


def test_it_can_be_closed_by_hand(breaker: Breaker):
    _open(breaker)

    breaker.reset()

    assert breaker.closed


# --- One host, in one process: two breakers on one shared page


def test_what_one_opens_is_open_for_the_other_at_once(tmp_path: Path, clock: FakeClock):
    one, other = _pair(tmp_path, clock)

    _open(one)

    assert other.state == "open"
    assert _shown("open") == 1
    one.close()
    other.close()


def test_their_failures_are_added_up(tmp_path: Path, clock: FakeClock):
    one, other = _pair(tmp_path, clock)

    _calls(one, failed=[True] * 5)
    _calls(other, failed=[True] * 5)

    assert one.state == other.state == "open"
    one.close()
    other.close()


def test_quiet_workers_successes_do_not_outvote_failures(tmp_path: Path, clock: FakeClock):
    busy, quiet = _pair(tmp_path, clock)
    _calls(quiet, failed=[False] * 20)

    _calls(busy, failed=[True] * 10)

    assert quiet.state == "open"
    busy.close()
    quiet.close()


def test_the_last_to_leave_takes_the_state_along(tmp_path: Path, clock: FakeClock):
    one, other = _pair(tmp_path, clock)
    _open(one)
    one.close()
    late = Breaker("fake", page_path=tmp_path / "state", clock=clock)
    assert late.state == "open"
    other.close()
    late.close()

    fresh = Breaker("fake", page_path=tmp_path / "state", clock=clock)

    assert fresh.closed
    fresh.close()


def test_moments_from_another_boot_do_not_keep_it_open(tmp_path: Path):
    before = Breaker("fake", page_path=tmp_path / "state", clock=FakeClock(1e7))
    _open(before)

    after = Breaker("fake", page_path=tmp_path / "state", clock=FakeClock(60))

    assert after.admit(may_probe=True).is_probe
    before.close()
    after.close()


@pytest.mark.parametrize("name", ["missing/state", "."])
def test_without_a_file_it_works_alone(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, name: str
):
    one = Breaker("fake", page_path=tmp_path / name, clock=clock)
    other = Breaker("fake", page_path=tmp_path / name, clock=clock)

    _open(one)

    assert one.state == "open"
    assert other.closed
    assert "breaker.alone" in caplog.messages
    one.close()
    other.close()


def test_only_the_owner_may_read_the_page(tmp_path: Path):
    Breaker("fake", page_path=tmp_path / "state").close()

    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600


def test_the_rules_can_be_by_count_alone(clock: FakeClock):
    breaker = Breaker(
        "fake",
        rules=BreakerRules(window_s=float("inf"), window_calls=10),
        clock=clock,
    )

    _calls(breaker, failed=[True] * 5)
    clock.move(86400)
    _calls(breaker, failed=[True] * 5)

    assert not breaker.closed
    breaker.close()


TURNS = {
    ("closed", "open"): 1,
    ("open", "half_open"): 2,
    ("half_open", "open"): 1,
    ("half_open", "closed"): 1,
}


def _turns(from_state: str, to_state: str) -> float:
    return metrics.breaker_transitions_total.labels(
        provider="fake", from_state=from_state, to_state=to_state
    )._value.get()


def _shown(state: str) -> float:
    return metrics.breaker_state.labels(provider="fake", state=state)._value.get()


def _calls(breaker: Breaker, *, failed: list[bool | None] | list[bool] | list[None]) -> None:
    for each in failed:
        try:
            breaker.admit().record(failed=each)
        except BreakerOpen:
            return


def _open(breaker: Breaker) -> None:
    _calls(breaker, failed=[True] * 40)
    assert not breaker.closed


def _pair(tmp_path: Path, clock: FakeClock) -> tuple[Breaker, Breaker]:
    path = tmp_path / "state"
    return (
        Breaker("fake", page_path=path, clock=clock),
        Breaker("fake", page_path=path, clock=clock),
    )
