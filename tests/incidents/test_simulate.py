"""The incident on demand, on a real local stack: its texts, its errors, its figures, and both books."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from service.lab.drills.load import AMOUNT_MINOR
from tests.support.stack.drilling import ask
from tests.support.stack.running_stack import RunningStack, running_stack, wait_for


@dataclass(frozen=True)
class Expected:
    """The required evidence of one simulation."""

    incident: str
    # A line of an exception chain, with the libraries' own text.
    error: str
    counter: str
    event: str
    # The allowed answers to callers.
    statuses: frozenset[str]


SIMULATIONS = {
    "payment-timeout": Expected(
        incident="[ERROR] Payment service connection failed - timeout after 5000ms",
        error=r"requests\.exceptions\.ReadTimeout: HTTPSConnectionPool\(host='127\.0\.0\.1', port=\d+\): "
        r"Read timed out\. \(read timeout=5\)",
        counter="holdfast_provider_timeouts_total",
        event="provider.timeout",
        statuses=frozenset({"201", "202"}),
    ),
    "connection-error": Expected(
        incident="... in process_payment: ConnectionError: HTTPSConnectionPool timeout",
        error=r"requests\.exceptions\.\w*Error: .*(Connection aborted|HTTPSConnectionPool\(host=)",
        counter="holdfast_provider_connection_errors_total",
        event="provider.connection_error",
        statuses=frozenset({"201", "202"}),
    ),
    "pool-exhaustion": Expected(
        incident="[ERROR] Database query failed: connection pool exhausted",
        error=r"psycopg2\.pool\.PoolError: connection pool exhausted",
        counter="holdfast_db_pool_timeouts_total",
        event="db.pool_exhausted",
        # 409: a repeat of the key while the result of a stalled commit is unknown.
        statuses=frozenset({"201", "202", "409", "503"}),
    ),
}
# Long enough for the provider's timeout of 5 s to be seen.
FAULT_S = 8


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("local_stack")) as local_stack:
        yield local_stack


@dataclass(frozen=True)
class Shown:
    """One simulation's run, and its expected evidence."""

    run: dict[str, Any]
    expected: Expected

    @property
    def side(self) -> dict[str, Any]:
        """The evidence of this instance."""
        side: dict[str, Any] = self.run["sides"][0]
        return side


@pytest.fixture(scope="module", params=list(SIMULATIONS))
def shown(local_stack: RunningStack, request: pytest.FixtureRequest) -> Shown:
    """Each simulation once, with its whole answer for `wait=1`."""
    answer = ask(local_stack, "POST", f"/simulate/{request.param}?wait=1", json={"ttl_s": FAULT_S})
    assert answer.status_code == 200, answer.text
    run = answer.json()
    assert run["verdict"] == "SHOWN", run["summary"]
    return Shown(run, SIMULATIONS[request.param])


def test_simulation_shows_the_incidents_text_as_logged(local_stack, shown):
    words = shown.expected.incident.removeprefix("[ERROR] ")

    assert shown.side["incident"] == shown.expected.incident
    logged = [one for one in local_stack.log_events() if one["event"] == shown.expected.event]
    assert any(words in (one.get("incident"), one.get("error")) for one in logged)
    assert {one["level"] for one in logged} == {"ERROR"}


def test_the_exception_chains_are_the_libraries_own(shown):
    lines = [line for chain in shown.side["exception_chains"] for line in chain]

    assert any(re.search(shown.expected.error, line) for line in lines), lines


def test_the_log_events_are_those_of_its_own_payments(shown):
    requests = {event["request_id"] for event in shown.side["log_events"] if "request_id" in event}

    assert shown.expected.event in {event["event"] for event in shown.side["log_events"]}
    assert requests
    assert all(request.startswith(shown.run["id"]) for request in requests)


def test_it_tells_what_callers_got_and_how_long_they_waited(shown):
    callers = shown.side["callers"]

    assert callers["count"] > 0
    assert sum(callers["by_status"].values()) == callers["count"]
    assert set(callers["by_status"]) <= shown.expected.statuses
    assert callers["ms"]["p50"] <= callers["ms"]["p99"] <= callers["ms"]["max"]


def test_it_tells_which_counters_moved_and_from_what_to_what(shown):
    moved = [one for one in shown.side["metrics"] if one["name"] == shown.expected.counter]

    assert moved
    assert all(one["delta"] == one["after"] - one["before"] > 0 for one in moved)


def test_every_payment_of_it_is_final_and_charged_once_at_most(shown):
    payments = shown.side["payments"]

    assert payments
    for payment in payments:
        assert (payment["status"], payment["charges"]) in {
            ("succeeded", 1),
            ("not_executed", 0),
            ("expired", 0),
        }
        assert payment["amount"] == AMOUNT_MINOR
    assert [rule for rule in shown.run["invariants"] if not rule["ok"]] == []


def test_it_can_be_read_again_and_the_service_pays(local_stack, shown):
    again = ask(local_stack, "GET", f"/simulate/{shown.run['id']}").json()
    overview = ask(local_stack, "GET", "/simulate").json()

    assert again == shown.run
    assert shown.run["id"] in [one["id"] for one in overview["recent"]]
    assert overview["running"] is None
    assert {link["mode"] for link in overview["links"].values()} == {None}
    assert local_stack.pay().status_code == 201


def test_who_does_not_wait_is_told_where_to_look(local_stack):
    begun = ask(
        local_stack, "POST", "/simulate/connection-error", json={"ttl_s": 5, "reason": "look"}
    )

    document = begun.json()
    assert (begun.status_code, begun.headers["Location"]) == (202, f"/simulate/{document['id']}")
    assert "Retry-After" in begun.headers
    assert (document["status"], document["scope"], document["reason"]) == (
        "running",
        "instance",
        "look",
    )
    running = ask(local_stack, "GET", "/simulate").json()["running"]
    assert running["id"] == document["id"]
    ended = wait_for(
        lambda: _if_ended(ask(local_stack, "GET", begun.headers["Location"]).json()), timeout_s=90
    )
    assert ended["id"] == document["id"]


def test_a_drill_ends_with_a_verdict_that_can_be_read_again(local_stack):
    begun = ask(local_stack, "POST", "/drills", json={"drill": "connection-error", "fault_s": 9})
    assert begun.status_code == 202, begun.text

    run = wait_for(
        lambda: _if_ended(ask(local_stack, "GET", begun.headers["Location"]).json()), timeout_s=90
    )

    assert run["verdict"] in ("HELD", "INCONCLUSIVE"), run["summary"]
    assert run["expectations"]
    report = ask(local_stack, "GET", begun.headers["Location"] + "?format=junit")
    assert report.text.startswith("<?xml")
    assert run["id"] in [one["id"] for one in ask(local_stack, "GET", "/drills").json()["recent"]]


def test_the_lever_stops_what_runs_and_blocks_what_would(local_stack):
    ask(local_stack, "POST", "/simulate/payment-timeout", json={"ttl_s": 60})
    try:
        ask(
            local_stack, "PUT", "/simulate/lever", json={"engaged": True, "reason": "release night"}
        )
        wait_for(
            lambda: ask(local_stack, "GET", "/simulate").json()["running"] is None, timeout_s=60
        )
        refused = ask(local_stack, "POST", "/simulate/payment-timeout", json={})
    finally:
        ask(local_stack, "PUT", "/simulate/lever", json={"engaged": False, "reason": "over"})

    assert refused.status_code == 409
    assert any("lever" in reason for reason in refused.json()["reasons"])


def test_where_simulation_is_off_its_addresses_are_not_there(tmp_path):
    with running_stack(tmp_path / "off", HOLDFAST_SIMULATION_ENABLED="off") as local_stack:
        for method, path in (("POST", "/simulate/payment-timeout"), ("GET", "/drills")):
            assert ask(local_stack, method, path).status_code == 404
        assert "fault_proxy" not in local_stack.pids


def _if_ended(run: dict[str, Any]) -> dict[str, Any] | None:
    return run if run["status"] == "ended" else None
