"""Inconclusive drills, blind game days that reveal no fault in advance, and game days in parts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.stack.drilling import ask, begin_drill, ended, wait_until_struck
from tests.support.stack.running_stack import ROOT, RunningStack, running_stack, wait_for

SHORT_DRILL = """
title = "{name}"
hypothesis = "It holds."
[[faults]]
link = "database"
mode = "latency"
pause_ms = {pause_ms}
seconds = 2
[[bite]]
text = "Answers came later"
struck = true
min = 1
[[expect]]
text = "Nobody noticed"
callers = "5xx"
max = 0
"""
OWN_DAY = """
title = "Our own day"
hypothesis = "Two of ours in a row."
parts = ["a-little-slow", "slower"]
blind_fault_s = 12
"""


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    own = tmp_path_factory.mktemp("drills")
    for name, pause_ms in (("a-little-slow", 20), ("slower", 60)):
        (own / f"{name}.toml").write_text(SHORT_DRILL.format(name=name, pause_ms=pause_ms))
    (own / "our-day.toml").write_text(OWN_DAY)
    with running_stack(
        tmp_path_factory.mktemp("local_stack"), HOLDFAST_DRILLS_DIR=str(own)
    ) as local_stack:
        yield local_stack


def test_a_fault_that_nobody_felt_proves_nothing(local_stack: RunningStack):
    # A stall that ends before the deadline is no timeout.
    run = ended(local_stack, begin_drill(local_stack, "payment-timeout", fault_s=1))

    assert run["verdict"] == "INCONCLUSIVE"
    assert "Calls to the provider timed out" in run["summary"]


def test_stopped_drill_ends_its_fault_and_settles_its_payments(local_stack: RunningStack):
    where = begin_drill(local_stack, "payment-timeout", fault_s=60)
    wait_until_struck(local_stack, where)

    ask(local_stack, "DELETE", where)
    run = ended(local_stack, where)

    assert (run["verdict"], run["fault_ended_at"] is not None) == ("ABORTED", True)
    assert run["invariants"]
    assert [rule for rule in run["invariants"] if not rule["ok"]] == []


def test_a_game_day_plays_every_part_and_keeps_each_report(local_stack: RunningStack):
    run = ended(local_stack, begin_drill(local_stack, "our-day"))

    assert run["verdict"] == "HELD", run["summary"]
    assert [part["name"] for part in run["parts"]] == ["a-little-slow", "slower"]
    kept = [ask(local_stack, "GET", f"/drills/{part['id']}").json() for part in run["parts"]]
    assert [part["reason"] for part in kept] == [f"our-day {run['id']}"] * 2
    page = ask(local_stack, "GET", f"/drills/{run['id']}?format=html").text
    assert all(f"/drills/{part['id']}?format=html" in page for part in run["parts"])


def test_a_blind_day_tells_nobody_until_somebody_names_it(local_stack: RunningStack):
    where = begin_drill(local_stack, "our-day", blind=True)
    wait_until_struck(local_stack, where)
    hidden = ask(local_stack, "GET", where)
    links = ask(local_stack, "GET", "/simulate").json()["links"]

    wrong = name_it(local_stack, where, "payment-timeout")
    right = next(
        answer
        for name in ("a-little-slow", "slower")
        if (answer := name_it(local_stack, where, name))["right"]
    )
    run = ended(local_stack, where)

    assert "latency" not in hidden.text
    assert "slow" not in hidden.text
    assert links is None
    assert not wrong["right"]
    assert run["name"] == right["name"]
    assert run["answers"][0] == wrong
    assert run["answers"][-1] == right
    assert f"Named {right['after_s']:g} s after it began" in run["summary"]
    assert run["verdict"] == "HELD"


def name_it(local_stack: RunningStack, where: str, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = ask(local_stack, "POST", f"{where}/answer", json={"name": name}).json()
    return answer


def test_a_blind_day_is_played_from_the_command_line(local_stack: RunningStack):
    player = start(local_stack, "our-day", "--blind")
    answer = wait_for(lambda: _answered(local_stack, "slower"), timeout_s=60)
    said, _ = player.communicate(timeout=90)

    assert answer.split()[0] in ("Right:", "Wrong:")
    assert "python -m service drill --answer NAME" in said
    assert "HELD" in said
    assert player.returncode == 0


def test_a_blind_day_that_is_only_looked_at_announces_nothing(local_stack: RunningStack):
    said, _ = start(local_stack, "our-day", "--blind", "--dry-run").communicate(timeout=60)

    assert json.loads(said)["would_begin"]


def _answered(local_stack: RunningStack, name: str) -> str | None:
    """The command's output for a guess, as soon as a fault can be named."""
    done = start(local_stack, "--answer", name)
    said, _ = done.communicate(timeout=60)
    return said if done.returncode in (0, 1) else None


def start(local_stack: RunningStack, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service", "drill", *words],
        cwd=ROOT,
        env={"HOLDFAST_HOME": local_stack.home, "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
