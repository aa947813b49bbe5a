"""The load of drills: steady, bounded, and over when it says so."""

from __future__ import annotations

import threading

from service.lab.drills.callers import SteadyCallers


def test_every_turn_makes_each_call_with_its_number() -> None:
    seen: list[tuple[str, int]] = []
    callers = SteadyCallers(
        [lambda n: seen.append(("experiment", n)), lambda n: seen.append(("control", n))],
        per_s=1,
        most=8,
    )

    callers.take_turn()
    callers.take_turn()
    callers.stop(within_s=60)

    assert sorted(seen) == [("control", 1), ("control", 2), ("experiment", 1), ("experiment", 2)]
    callers.close()


def test_turn_is_skipped_while_too_many_calls_wait() -> None:
    free = threading.Event()
    callers = SteadyCallers([lambda n: free.wait(60)] * 2, per_s=1, most=3)

    callers.take_turn()
    callers.take_turn()
    assert callers.turns == 1
    free.set()
    callers.stop(within_s=60)
    callers.take_turn()

    assert callers.turns == 1
    callers.close()


def test_failed_call_frees_its_place() -> None:
    def fail(_number: int) -> None:
        raise OSError("refused")

    callers = SteadyCallers([fail], per_s=1000, most=1)

    callers.begin()
    reached = threading.Event()
    for _ in range(6000):
        if callers.turns >= 3 or reached.wait(0.01):
            break
    callers.stop(within_s=60)

    assert callers.turns >= 3
    callers.close()
