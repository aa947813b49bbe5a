"""The sampler: one reading for all who ask, and a turn for each follower."""

from __future__ import annotations

import threading

from service.observability.metrics import sampler as sampler_module
from service.observability.metrics.sampler import Sampler


def test_readings_within_the_time_are_shared():
    reads = []
    sampler = Sampler(lambda: reads.append(1) or {}, keep_s=60.0)

    moments = {sampler.reading()[0] for _ in range(50)}

    assert (len(reads), len(moments)) == (1, 1)


def test_follower_that_fails_takes_no_turn_from_another(caplog):
    turns, is_enough = [], threading.Event()

    def fail() -> None:
        raise OSError("the file is gone")

    def count() -> None:
        turns.append(1)
        if len(turns) == 3:
            is_enough.set()

    sampler = Sampler(dict)
    sampler.follow(fail, every_s=lambda: 0.001, failure_event="charts.reading_failed")
    sampler.follow(count, every_s=lambda: 0.001, failure_event="other.reading_failed")
    sampler.start()
    seen = is_enough.wait(60)
    sampler.stop()

    assert seen
    told = {each.message for each in caplog.records if each.name == sampler_module.__name__}
    assert told == {"charts.reading_failed"}


def test_shorter_period_counts_at_once():
    period_s, turns, second = [3600.0], [], threading.Event()

    def count() -> None:
        turns.append(1)
        if len(turns) == 2:
            second.set()

    first = threading.Event()
    sampler = Sampler(dict)
    sampler.follow(count, every_s=lambda: period_s[0], failure_event="reading_failed")
    sampler.follow(first.set, every_s=lambda: 3600.0, failure_event="reading_failed")
    sampler.start()
    assert first.wait(60)
    period_s[0] = 0.0
    sampler.ask_again()
    seen = second.wait(60)
    period_s[0] = 3600.0
    sampler.stop()

    assert seen
