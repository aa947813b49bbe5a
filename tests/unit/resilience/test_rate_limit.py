"""A caller's rate: a burst, then the rate, counted by all processes of a host together."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.resilience import rate_limit
from service.resilience.rate_limit import RateLimit
from tests.support.stack.running_stack import ROOT


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, which a test moves."""
    now = [1000.0]
    monkeypatch.setattr(rate_limit, "monotonic", lambda: now[0])
    return now


def granted(limit: RateLimit, name: str, times: int) -> int:
    return sum(limit.take(name).is_granted for _ in range(times))


def test_after_a_burst_only_the_rate_passes(clock):
    limit = RateLimit(None, per_s=10, burst=5)

    assert granted(limit, "key", 20) == 5
    clock[0] += 0.3
    assert granted(limit, "key", 20) == 3
    clock[0] += 3600
    assert granted(limit, "key", 20) == 5


def test_who_keeps_to_the_rate_is_never_refused(clock):
    limit = RateLimit(None, per_s=10, burst=1)

    for _ in range(1000):
        assert limit.take("key").is_granted
        clock[0] += 0.1


def test_waiting_as_long_as_was_told_is_enough_and_less_is_not(clock):
    limit = RateLimit(None, per_s=4, burst=2)
    granted(limit, "key", 2)
    refused = limit.take("key")
    assert (refused.is_granted, refused.remaining, refused.retry_after_s) == (False, 0, 0.25)

    clock[0] += 0.2
    assert not limit.take("key").is_granted
    clock[0] += 0.05
    assert limit.take("key").is_granted


def test_processes_of_one_host_count_together(tmp_path: Path):
    path = tmp_path / "rate-limits"
    limit = RateLimit(path, per_s=0.001, burst=10)

    # One after the other: the same moment is the only thing that may let one more pass.
    theirs = [_elsewhere(path, 3), _elsewhere(path, 3)]

    assert (theirs, granted(limit, "key", 20)) == ([3, 3], 4)


def _elsewhere(path: Path, times: int) -> int:
    """The number of granted requests in a separate process."""
    program = (
        "from pathlib import Path; from service.resilience.rate_limit import RateLimit;"
        f"limit = RateLimit(Path({str(path)!r}), per_s=0.001, burst=10);"
        f"print(sum(limit.take('key').is_granted for _ in range({times})))"
    )
    return int(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT))


def test_a_page_from_before_a_reboot_refuses_nobody(clock, tmp_path: Path):
    granted(RateLimit(tmp_path / "page", per_s=1, burst=5), "key", 5)
    clock[0] = 3.0  # The monotonic clock begins again.

    assert RateLimit(tmp_path / "page", per_s=1, burst=5).take("key").is_granted


def test_more_callers_than_cells_are_still_served(clock):
    limit = RateLimit(None, per_s=1, burst=2)

    assert all(limit.take(f"key-{n}").is_granted for n in range(10_000))


@pytest.fixture
def _switching() -> Iterator[None]:
    """Threads take turns as often as the interpreter can, in the middle of a request too."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual_s)


@pytest.mark.usefixtures("_switching")
def test_many_threads_get_about_the_burst():
    # A rate at which nothing is paid off while the test runs.
    limit, threads_max = RateLimit(None, per_s=1e-6, burst=1000), 8
    passed: list[int] = []
    threads = [
        threading.Thread(target=lambda: passed.append(granted(limit, "key", 500)))
        for _ in range(threads_max)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # One that each thread was granted and had not counted yet; none within the burst is refused.
    assert 1000 <= sum(passed) <= 1000 + threads_max


class Interrupted:
    """A page's cells; after the first look at one, other threads run for a while."""

    def __init__(self, cells: memoryview, run_others: Callable[[], None]) -> None:
        self._cells = cells
        self._others = [run_others]

    def __getitem__(self, cell: int) -> float:
        found = self._cells[cell]
        if cell % 2 and self._others:
            self._others.pop()()
        return found

    def __setitem__(self, cell: int, value: float) -> None:
        self._cells[cell] = value


def test_who_stood_still_forgets_no_request_of_others(clock):
    limit = RateLimit(None, per_s=1, burst=10)
    meanwhile: list[int] = []
    assert limit.take("key").is_granted
    whole = limit._cells
    limit._cells = Interrupted(whole, lambda: meanwhile.append(granted(limit, "key", 5)))

    assert limit.take("key").is_granted

    assert (meanwhile, granted(limit, "key", 20)) == ([5], 3)


def test_where_the_file_cannot_be_had_the_process_counts_alone(tmp_path: Path, caplog):
    limit = RateLimit(tmp_path / "missing" / "page", per_s=0.001, burst=1)

    assert granted(limit, "key", 3) == 1
    assert caplog.messages == ["rate_limit.alone"]
