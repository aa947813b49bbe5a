"""A managed process ends with its parent, with all its descendants; its log stays small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest

from service.process import manager
from service.process.managed import ManagedProcess
from tests.support.processes.process_family import runs

ROOT = Path(__file__).parents[3]
# Prints its own process id and its child's, in one piece, then both sleep and ignore polite requests to end.
FAMILY = (
    "import os, signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = os.fork()\n"
    "if child: os.write(1, f'{os.getpid()} {child}\\n'.encode())\n"
    "time.sleep(60)\n"
)


def test_ended_program_reports_its_status_and_output(tmp_path):
    process = ManagedProcess(
        [sys.executable, "-c", "print('out of luck'); raise SystemExit(3)"],
        log_path=tmp_path / "log",
    )

    status = process.wait(60)
    process.release()

    assert status == 3
    assert process.lines() == ["out of luck"]


def test_only_this_start_is_quoted(tmp_path):
    (tmp_path / "log").write_text("yesterday\n")

    process = ManagedProcess([sys.executable, "-c", "print('today')"], log_path=tmp_path / "log")
    process.wait(60)
    process.release()

    assert process.lines() == ["today"]


def test_a_program_that_cannot_be_started_says_so(tmp_path):
    process = ManagedProcess([tmp_path / "missing"], log_path=tmp_path / "log")

    status = process.wait(60)
    process.release()

    assert status == 127
    assert "No such file" in process.lines()[-1]


def test_stop_ends_a_stubborn_program_and_its_children(tmp_path):
    process = ManagedProcess([sys.executable, "-c", FAMILY], log_path=tmp_path / "log", grace_s=0.1)
    family = _family_of(process)

    status = process.stop()

    assert status == 128 + signal.SIGKILL
    assert not any(map(runs, family))


def test_what_a_killed_program_leaves_behind_is_ended(tmp_path):
    polite = FAMILY.replace("SIG_IGN", "SIG_DFL")
    process = ManagedProcess([sys.executable, "-c", polite], log_path=tmp_path / "log")
    family = _family_of(process)

    os.kill(process.pid, signal.SIGKILL)
    status = process.wait(60)
    process.release()

    assert status == 128 + signal.SIGKILL
    assert not any(map(runs, family))


def test_a_killed_starter_takes_the_program_with_it(tmp_path):
    starter, pids = _start_starter(tmp_path)

    starter.kill()
    starter.wait()

    _wait_until(lambda: not any(map(runs, pids)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
def test_killed_manager_ends_the_program(tmp_path):
    polite = FAMILY.replace("SIG_IGN", "SIG_DFL").replace("child = os.fork()", "child = 1")
    process = ManagedProcess([sys.executable, "-c", polite], log_path=tmp_path / "log")
    program_pid, _ = _family_of(process)

    os.kill(process.manager_pid, signal.SIGKILL)
    process.wait(60)
    process.release()

    _wait_until(lambda: not runs(program_pid))


def test_program_outlives_its_dependent_even_after_a_kill(tmp_path):
    # The one that needs it takes half a second to end, as gunicorn does with a payment.
    slow = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(0.5)\n"
        "    print('foundation', 'runs' if __import__('os').path.exists(f'/proc/{base}') else 'gone')\n"
        "    sys.exit()\n"
        "base = int(sys.argv[1])\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "sys.stdout.write('ready\\n')\n"
        "sys.stdout.flush()\n"
        "time.sleep(60)\n"
    )
    script = (
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from service.process.managed import ManagedProcess\n"
        "base = ManagedProcess(['sleep', '60'], log_path=Path('base.log').absolute())\n"
        f"top = ManagedProcess([sys.executable, '-c', {slow!r}, str(base.pid)],\n"
        "    log_path=Path('top.log').absolute(), outlived_by=[base])\n"
        "while top.lines() != ['ready']: pass\n"
        "print(json.dumps([base.pid, top.pid]), flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    starter, pids = _run_starter(script, tmp_path)

    starter.kill()
    starter.wait()

    _wait_until(lambda: not any(map(runs, pids)))
    assert (tmp_path / "top.log").read_text().splitlines()[-1] == "foundation runs"


def test_the_log_of_a_talkative_program_is_bounded(tmp_path):
    megabytes = manager.LOG_BYTES_MAX * 3 // 1_000_000
    talk = f"import sys\nfor _ in range({megabytes}): sys.stdout.write('x' * 999_999 + '\\n')"

    process = ManagedProcess([sys.executable, "-c", talk], log_path=tmp_path / "log")
    status = process.wait(60)
    process.release()

    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert status == 0
    assert len(sizes) == 2
    assert max(sizes) < manager.LOG_BYTES_MAX + 1_100_000


def _start_starter(tmp_path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from service.process.managed import ManagedProcess\n"
        f"process = ManagedProcess([sys.executable, '-c', {FAMILY!r}], grace_s=0.1,\n"
        "    log_path=Path('log').absolute())\n"
        "while not process.lines(): pass\n"
        "print(json.dumps([int(word) for word in process.lines()[0].split()]), flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    return _run_starter(script, tmp_path)


def _run_starter(script: str, tmp_path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that keeps programs, and their process ids."""
    starter = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert starter.stdout
    pids = json.loads(starter.stdout.readline())
    starter.stdout.close()
    return starter, pids


def _family_of(process: ManagedProcess) -> list[int]:
    # A line can be seen before all of it is written.
    _wait_until(lambda: len(" ".join(process.lines()[:1]).split()) == 2)
    return [int(word) for word in process.lines()[0].split()]


def _wait_until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    give_up_at_s = monotonic() + within_s
    while not condition():
        assert monotonic() < give_up_at_s, "it did not happen in time"
        sleep(0.01)
