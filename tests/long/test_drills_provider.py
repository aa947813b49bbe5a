"""Drills with a fault of the provider, each on a real local stack until its verdict: all are HELD."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack.drilling import drilled
from tests.support.stack.running_stack import RunningStack, running_stack

pytestmark = pytest.mark.measures

# Each as short as its hypothesis allows; with a deadline in it, its five seconds must pass.
SHORTENED_S = {
    "payment-timeout": 12,
    "connection-error": 8,
    "charged-but-answer-lost": 5,
    "slow-drip": 12,
    "provider-429-500": 5,
    "half-open-stampede": 12,
    "long-outage": 20,
}


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("local_stack")) as local_stack:
        yield local_stack


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("payment-timeout", marks=pytest.mark.short),
        *(name for name in SHORTENED_S if name != "payment-timeout"),
    ],
)
def test_a_healthy_service_holds(local_stack: RunningStack, name: str):
    run = drilled(local_stack, name, fault_s=SHORTENED_S[name])

    assert run["verdict"] == "HELD", (run["summary"], run["expectations"], run["bite"])
    assert local_stack.metric("holdfast_drill_runs_total", drill=name, verdict="held") == 1
