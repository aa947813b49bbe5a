"""The bulkhead: a limit on calls, no waiting, and a limit that follows the provider."""

from __future__ import annotations

import contextlib
import itertools
import threading

import pytest

from service.errors import BulkheadFull
from service.observability.metrics import catalogue as metrics
from service.resilience.bulkhead import Bulkhead
from tests.support.providers.fakes import FakeClock


def test_a_full_bulkhead_refuses_at_once():
    bulkhead = Bulkhead(limit_max=2)

    with bulkhead.enter(), bulkhead.enter(), pytest.raises(BulkheadFull):
        bulkhead.enter()

    assert bulkhead.in_use == 0


def test_never_more_than_the_limit_are_inside_at_once():
    bulkhead = Bulkhead(limit_max=4)
    most = 0
    counting = threading.Lock()
    together = threading.Barrier(16)

    def knock() -> None:
        nonlocal most
        together.wait()
        for _ in range(200):
            with contextlib.suppress(BulkheadFull), bulkhead.enter() as place:
                with counting:
                    most = max(most, bulkhead.in_use)
                place.failed = False

    threads = [threading.Thread(target=knock) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 0 < most <= 4
    assert bulkhead.in_use == 0


def test_concurrent_timeouts_halve_the_limit_once():
    clock = FakeClock()
    bulkhead = Bulkhead(limit_max=12, limit_min=2, clock=clock)

    _serve(bulkhead, clock, calls=12, took_s=5.0, failed=True)

    assert bulkhead.limit == 6


def test_the_limit_never_falls_below_its_floor():
    clock = FakeClock()
    bulkhead = Bulkhead(limit_max=12, limit_min=3, clock=clock)

    for _ in range(10):
        _serve(bulkhead, clock, calls=3, took_s=5.0, failed=True)

    assert bulkhead.limit == 3


def test_slow_successes_lower_the_limit_too():
    clock = FakeClock()
    bulkhead = Bulkhead(limit_max=8, slow_s=3.0, clock=clock)

    _serve(bulkhead, clock, calls=8, took_s=3.5, failed=False)

    assert bulkhead.limit == 4


def test_quick_calls_raise_the_limit_by_one_a_round():
    clock = FakeClock()
    bulkhead = Bulkhead(limit_max=8, limit_min=2, clock=clock)
    _serve(bulkhead, clock, calls=8, took_s=5.0, failed=True)

    limits = [bulkhead.limit]
    for _ in range(4):
        _serve(bulkhead, clock, calls=bulkhead.limit + 1, took_s=0.1, failed=False)
        limits.append(bulkhead.limit)

    assert limits[0] == 4
    assert limits == sorted(limits)
    assert 5 <= limits[-1] <= 8
    assert all(after - before <= 1 for before, after in itertools.pairwise(limits))


def test_a_limit_that_is_not_used_does_not_grow():
    clock = FakeClock()
    bulkhead = Bulkhead(limit_max=16, clock=clock)
    _serve(bulkhead, clock, calls=16, took_s=5.0, failed=True)

    for _ in range(200):
        _serve(bulkhead, clock, calls=1, took_s=0.1, failed=False)

    assert bulkhead.limit == 8


def test_calls_that_say_nothing_leave_the_limit_alone():
    clock = FakeClock()
    bulkhead = Bulkhead(limit_max=8, clock=clock)

    _serve(bulkhead, clock, calls=8, took_s=9.0, failed=None)

    assert bulkhead.limit == 8


def test_refusals_and_the_limit_are_shown():
    clock = FakeClock()
    refusals = metrics.bulkhead_refusals_total._value.get()
    bulkhead = Bulkhead(limit_max=2, limit_min=1, clock=clock)

    with bulkhead.enter(), bulkhead.enter(), pytest.raises(BulkheadFull):
        bulkhead.enter()
    _serve(bulkhead, clock, calls=2, took_s=5.0, failed=True)

    assert metrics.bulkhead_refusals_total._value.get() == refusals + 1
    assert metrics.bulkhead_limit._value.get() == 1
    assert metrics.bulkhead_in_use._value.get() == 0


def _serve(
    bulkhead: Bulkhead, clock: FakeClock, *, calls: int, took_s: float, failed: bool | None
) -> None:
    """`calls` calls side by side, as many as are let in, each of them `took_s` long."""
    with contextlib.ExitStack() as local_stack:
        for _ in range(calls):
            with contextlib.suppress(BulkheadFull):
                local_stack.enter_context(bulkhead.enter()).failed = failed
        clock.move(took_s)
