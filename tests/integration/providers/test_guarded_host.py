"""Several real processes on one host: one breaker, one probe, after any kill."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from service.resilience.breaker.breaker import Breaker, BreakerOpen
from tests.support.processes.breaker_process import BreakerProcess


@pytest.fixture
def page_path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def start(page_path: Path) -> Iterator[Callable[..., list[BreakerProcess]]]:
    """Starts that many processes on one shared page, side by side."""
    started: list[BreakerProcess] = []

    def start(count: int, *options: str) -> list[BreakerProcess]:
        fresh = [BreakerProcess(page_path, *options) for _ in range(count)]
        started.extend(fresh)
        for process in fresh:
            process.wait_until_ready()
        return fresh

    yield start
    for process in started:
        process.kill()


def test_what_one_process_finds_out_the_others_know_at_once(start):
    workers = start(3)

    workers[0].ask("fail 20")

    # Half open where this machine took longer than the pause to ask.
    assert {worker.ask("state") for worker in workers} <= {"open", "half_open"}


def test_the_failures_of_all_workers_are_added_up(start):
    workers = start(3)

    let_through = [int(worker.ask("fail 4")) for worker in workers]

    assert let_through == [4, 4, 2]


def test_one_probe_a_host_also_after_the_prober_was_killed(start, page_path: Path):
    first, second, third = start(3)
    first.ask("fail 20")
    _wait_until(lambda: first.ask("state") == "half_open")

    answers = [process.ask("probe") for process in (first, second, third)]
    assert answers == ["let through", "refused", "refused"]
    first.kill()

    assert [second.ask("probe"), third.ask("probe")] == ["refused", "refused"]
    _wait_until(lambda: second.ask("probe") == "let through")
    assert third.ask("probe") == "refused"
    assert second.ask("good") == "closed"
    assert third.ask("state") == "closed"


def test_however_many_knock_no_two_probes_of_a_host_overlap(start):
    workers = start(3, "hasty")
    workers[0].ask("fail 20")

    for worker in workers:
        worker.tell("storm 2.0")
    probes = sorted(tuple(probe) for worker in workers for probe in json.loads(worker.answer()))

    assert len(probes) >= 5
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(probes))


def test_breaker_state_is_shared_and_ends_with_all_processes(start, page_path: Path):
    (killed,) = start(1)
    killed.ask("fail 20")
    (late,) = start(1)
    assert late.ask("state") in ("open", "half_open")

    killed.kill()
    late.kill()
    fresh = Breaker("fake", page_path=page_path)

    assert fresh.closed
    fresh.close()


def test_a_killed_workers_slot_is_taken_over_with_nothing_in_it(start, page_path: Path):
    keeper, killed = start(2)
    killed.ask("fail 9")
    killed.kill()

    (heir,) = start(1)

    assert heir.ask("fail 9") == "9"
    assert keeper.ask("state") == "closed"


def test_a_hundred_short_lives_leave_room_for_the_next(page_path: Path):
    keeper = Breaker("fake", page_path=page_path)
    for _ in range(100):
        Breaker("fake", page_path=page_path).close()

    last = Breaker("fake", page_path=page_path)
    for _ in range(20):
        try:
            last.admit().record(failed=True)
        except BreakerOpen:
            break

    assert not keeper.closed
    keeper.close()
    last.close()


def _wait_until(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    until_s = monotonic() + within_s
    while not condition():
        assert monotonic() < until_s
        sleep(0.02)
