"""A drill fails with its guard off: each drill runs without the guard that its promise needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stack.drilling import begin_drill, ended
from tests.support.stack.running_stack import running_stack

pytestmark = pytest.mark.measures


@pytest.mark.parametrize(
    ("name", "fault_s", "guard_off", "told"),
    [
        pytest.param(
            *("payment-timeout", 12, {"HOLDFAST_BREAKER_ENABLED": "false"}, "The breaker opened"),
            marks=pytest.mark.short,
        ),
        # For a repeat in doubt, a provider that ignores keys charges again.
        (
            "charged-but-answer-lost",
            5,
            {"HOLDFAST_PROVIDER_FLOW": "one_shot"},
            "charged_once",
        ),
        ("slow-drip", 12, {"HOLDFAST_PROVIDER_TIMEOUT_MS": "20000"}, "callers waited less than"),
    ],
)
def test_with_its_guard_off_a_drill_breaks_and_says_at_what(
    tmp_path: Path, name: str, fault_s: int, guard_off: dict[str, str], told: str
):
    with running_stack(tmp_path / "local_stack", **guard_off) as local_stack:
        run = ended(local_stack, begin_drill(local_stack, name, fault_s=fault_s))

    assert run["verdict"] == "BROKE", run["summary"]
    assert told in run["summary"]
