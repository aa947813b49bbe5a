"""Drills with a fault on our own side: the database, the workers, and false webhooks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack.drilling import drilled
from tests.support.stack.running_stack import RunningStack, running_stack

pytestmark = pytest.mark.measures

SHORTENED_S = {
    "pool-exhaustion": 5,
    "slow-database": 5,
    "worker-kill": 8,
    "webhook-disorder": 5,
}


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("local_stack")) as local_stack:
        yield local_stack


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pool-exhaustion", marks=pytest.mark.short),
        *(name for name in SHORTENED_S if name != "pool-exhaustion"),
    ],
)
def test_a_healthy_service_holds(local_stack: RunningStack, name: str):
    run = drilled(local_stack, name, fault_s=SHORTENED_S[name])

    assert run["verdict"] == "HELD", (run["summary"], run["expectations"], run["bite"])


def test_the_database_of_a_local_run_really_restarts(local_stack: RunningStack):
    run = drilled(local_stack, "database-restart", fault_s=6)

    assert run["verdict"] == "HELD", (run["summary"], run["expectations"], run["bite"])
    told = " ".join(step["text"] for step in run["progress"])
    assert "PostgreSQL crashed and was back" in told
    assert local_stack.pay().status_code == 201
