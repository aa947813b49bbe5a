"""The incident on demand, on the real thing: its words, both books, a verdict, and who may cause it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.running_house import House, running_house, wait_for

WORDS = {
    "payment-timeout": "Payment service connection failed - timeout after 5000ms",
    "connection-error": "ConnectionError: HTTPSConnectionPool timeout",
    "pool-exhaustion": "Database query failed: connection pool exhausted",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(tmp_path_factory.mktemp("house")) as house:
        yield house


def ask(house: House, method: str, path: str, **options: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {house.api_key}", **options.pop("headers", {})}
    return requests.request(method, house.ops_url + path, headers=headers, timeout=120, **options)


@pytest.mark.parametrize("name", WORDS)
def test_a_simulation_shows_the_incidents_own_words_and_no_money_is_touched(house, name):
    answer = ask(house, "POST", f"/simulate/{name}?wait=1", json={"ttl_s": 7})

    run = answer.json()
    assert answer.status_code == 200
    assert run["verdict"] == "SHOWN", run["summary"]
    assert WORDS[name] in run["sides"][0]["incident"]
    assert run["sides"][0]["callers"]["count"] > 0
    assert [rule for rule in run["invariants"] if not rule["ok"]] == []
    assert house.pay().status_code == 201


def test_a_drill_ends_with_a_verdict_that_can_be_read_again(house):
    begun = ask(house, "POST", "/drills", json={"drill": "connection-error", "fault_s": 9})
    assert begun.status_code == 202, begun.text

    run = wait_for(
        lambda: _if_ended(ask(house, "GET", begun.headers["Location"]).json()), timeout_s=90
    )

    assert run["verdict"] in ("HELD", "INCONCLUSIVE"), run["summary"]
    assert run["expectations"]
    report = ask(house, "GET", begun.headers["Location"] + "?format=junit")
    assert report.text.startswith("<?xml")
    assert run["id"] in [one["id"] for one in ask(house, "GET", "/drills").json()["recent"]]


def test_the_lever_stops_what_runs_and_blocks_what_would(house):
    ask(house, "POST", "/simulate/payment-timeout", json={"ttl_s": 60})
    try:
        ask(house, "PUT", "/simulate/lever", json={"engaged": True, "reason": "release night"})
        wait_for(lambda: ask(house, "GET", "/simulate").json()["running"] is None, timeout_s=60)
        refused = ask(house, "POST", "/simulate/payment-timeout", json={})
    finally:
        ask(house, "PUT", "/simulate/lever", json={"engaged": False, "reason": "over"})

    assert refused.status_code == 409
    assert any("lever" in reason for reason in refused.json()["reasons"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer hf_test_nobody"}, 401),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
    ],
)
def test_nobody_else_may_cause_a_fault(house, headers, status):
    answer = ask(house, "POST", "/simulate/payment-timeout", json={}, headers=headers)

    assert answer.status_code == status


def test_where_simulation_is_off_its_addresses_are_not_there(tmp_path):
    with running_house(tmp_path / "off", HOLDFAST_SIMULATION_ENABLED="off") as house:
        for method, path in (("POST", "/simulate/payment-timeout"), ("GET", "/drills")):
            assert ask(house, method, path).status_code == 404
        assert "fault_proxy" not in house.pids


def _if_ended(run: dict[str, Any]) -> dict[str, Any] | None:
    return run if run["status"] == "ended" else None
