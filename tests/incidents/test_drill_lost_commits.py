"""The drill that loses the newest commits: once with the repair, and only where it is allowed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack.drilling import ask, drilled, rows
from tests.support.stack.running_stack import RunningStack, running_stack

OF_ITS_OWN = ("charged_once_after_loss", "refunded_once_after_loss", "captured_once_after_loss")


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("local_stack")) as local_stack:
        yield local_stack


def test_lost_commits_move_no_money_twice(local_stack: RunningStack):
    run = drilled(local_stack, "lost-commits")

    broken = [rule for rule in run["invariants"] if not rule["ok"]]
    assert run["verdict"] == "HELD", (run["summary"], broken, run["expectations"], run["bite"])
    assert {rule["rule"] for rule in run["invariants"]} >= {*OF_ITS_OWN, "known_again"}


def test_only_the_drills_own_tenant_loses_rows(local_stack: RunningStack):
    paid = local_stack.pay().json()
    before = rows(
        local_stack, "SELECT * FROM payments WHERE payment_id::text = %s", uuid_of(paid["id"])
    )

    drilled(local_stack, "lost-commits")

    after = rows(
        local_stack, "SELECT * FROM payments WHERE payment_id::text = %s", uuid_of(paid["id"])
    )
    assert after == before


def test_a_copy_beside_the_instance_loses_nothing(local_stack: RunningStack):
    body = {"drill": "lost-commits", "scope": "pair"}

    refused = ask(local_stack, "POST", "/drills", json=body)

    assert refused.status_code == 409, refused.text
    assert "scope" in " ".join(refused.json()["reasons"])


def uuid_of(payment_id: str) -> str:
    digits = payment_id.removeprefix("pay_")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
