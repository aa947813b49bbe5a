"""The drills as files: each one of ours is whole, and a bad one is named with what is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.lab.drills.plan import GAME_DAY, SIMULATIONS, Plan, read_catalogue, takes_s
from tests.support.stack.running_stack import ROOT

PLANS = read_catalogue()
DRILLS = [plan for plan in PLANS.values() if not plan.parts]

SOUND = """
title = "Ours"
hypothesis = "It holds."
[[faults]]
name = "away"
link = "provider"
mode = "refuse"
seconds = 2
[[bite]]
text = "It bit"
struck = true
min = 1
[[expect]]
text = "Nobody noticed"
callers = "5xx"
during = "away"
max = 0
"""


def test_the_catalogue_is_the_one_that_operations_promises():
    assert list(PLANS) == [
        *("payment-timeout", "connection-error", "pool-exhaustion", "charged-but-answer-lost"),
        *("slow-drip", "provider-429-500", "database-restart", "slow-database", "worker-kill"),
        *("webhook-disorder", "half-open-stampede", "long-outage", "lost-commits"),
        "game-day",
    ]
    assert PLANS[GAME_DAY].parts == tuple(plan.name for plan in DRILLS)


@pytest.mark.parametrize("plan", PLANS.values(), ids=lambda plan: plan.name)
def test_each_drill_names_a_runbook_that_is_there(plan: Plan):
    assert (ROOT / "docs" / "runbooks" / f"{plan.runbook}.md").exists()


@pytest.mark.parametrize("plan", DRILLS, ids=lambda plan: plan.name)
def test_each_drill_checks_money_and_callers_recovery(plan: Plan):
    measured = {check.measure for check in plan.expect}

    assert {"recovery", "settled"} <= measured


def test_the_incidents_three_errors_are_drills_with_its_text():
    assert all(PLANS[name].incident for name in SIMULATIONS)


def test_a_teams_own_drill_stands_beside_ours(tmp_path: Path):
    (tmp_path / "our-own.toml").write_text(SOUND)

    plans = read_catalogue(tmp_path)

    assert list(plans)[-1] == "our-own"
    assert plans["our-own"].fault_s == 2
    assert takes_s(plans["our-own"], plans) == 15


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("payment-timeout", SOUND, "a drill with that name exists already"),
        ("Our_Own", SOUND, "consists of a-z, 0-9 and single hyphens"),
        ("own", SOUND.replace('mode = "refuse"', 'mode = "melt"'), "'melt'"),
        ("own", SOUND.replace('mode = "refuse"', ""), "both link and mode"),
        ("own", SOUND.replace("seconds = 2", "seconds = 0"), "needs seconds"),
        ("own", SOUND.replace("seconds = 2", "seconds = 301"), "at most 300 s"),
        ("own", "load_per_s = 21\n" + SOUND, "1 to 20 payments a second"),
        ("own", "load_per_s = 0\n" + SOUND, "1 to 20 payments a second"),
        ("own", "baseline_s = 61\n" + SOUND, "baseline_s must be 0 to 60"),
        ("own", "baseline_s = -1\n" + SOUND, "baseline_s must be 0 to 60"),
        ("own", "recovery_max_s = 121\n" + SOUND, "recovery_max_s must be 0 to 120"),
        ("own", "recovery_max_s = nan\n" + SOUND, "recovery_max_s must be 0 to 120"),
        ("own", "settling_max_s = inf\n" + SOUND, "settling_max_s must be 0 to 300"),
        ("own", SOUND.replace("max = 0", ""), "min or max"),
        ("own", SOUND.replace("max = 0", "max = inf"), "min and max must be"),
        ("own", SOUND.replace('callers = "5xx"', ""), "exactly one of"),
        ("own", SOUND.replace("struck = true", 'struck = true\ndelta = "x"'), "exactly one of"),
        ("own", SOUND.replace('during = "away"', 'during = "lunch"'), "during must be one of"),
        ("own", SOUND.replace("title", "titel"), "titel"),
        ("own", SOUND.partition("[[expect]]")[0], "at least one expectation"),
        (
            "own",
            SOUND.replace("struck = true", 'delta = "payments_lost"'),
            "no counter payments_lost",
        ),
        (
            "own",
            SOUND.replace("struck = true", 'peak = "payments_total"'),
            "no gauge payments_total",
        ),
        (
            "own",
            SOUND.replace("struck = true", 'delta = "payments_total"\nlabels = { colour = "red" }'),
            "payments_total has no label colour",
        ),
        ("own", 'title = ""\nhypothesis = ""\nparts = ["nothing"]', "no such parts: nothing"),
        ("own", 'title = ""\nhypothesis = ""', "a drill needs faults, or parts"),
        (
            "own",
            SOUND.replace('link = "provider"\nmode = "refuse"', "lose_commits = 11"),
            "lose_commits must be at most 10",
        ),
        ("own", "title = ", "own.toml"),
    ],
)
def test_a_bad_drill_is_named_with_what_is_wrong(tmp_path: Path, name: str, text: str, why: str):
    (tmp_path / f"{name}.toml").write_text(text)

    with pytest.raises(ValueError, match=f"{name}.toml.*") as raised:
        read_catalogue(tmp_path)

    assert why in str(raised.value)


def test_shortened_fault_keeps_its_parts_proportions():
    plan = PLANS["connection-error"].lasting(5)

    assert [step.seconds for step in plan.steps] == [1.5, 1.5, 2.0]


def test_handbook_lists_each_drill_with_runbook_and_duration():
    handbook = (ROOT / "docs" / "drills.md").read_text()
    rows = {
        cells[1].strip(" `"): cells
        for line in handbook.splitlines()
        if line.startswith("| `") and len(cells := line.split("|")) == 8
    }

    assert list(rows) == list(PLANS)
    for plan in DRILLS:
        scopes = "both" if len(plan.scopes) == 2 else plan.scopes[0]
        told = [cell.strip() for cell in rows[plan.name][4:7]]
        assert told == [plan.runbook, scopes, f"{takes_s(plan, PLANS):.0f} s"]


def test_the_handbooks_own_drill_is_one(tmp_path: Path):
    handbook = (ROOT / "docs" / "drills.md").read_text()
    example = handbook.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "fridays.toml").write_text(example)

    plan = read_catalogue(tmp_path)["fridays"]

    assert [step.name for step in plan.steps] == ["slow", "", "", ""]
