"""Safety of faults on a real local stack: permissions, scope, concurrency and the audit log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from service.database.pool.pool import ConnectionPool
from service.lab.drills.store import DrillStore, new_run_id
from service.lab.observe.traffic import Traffic
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.stack.drilling import (
    ask,
    begin,
    drilling_stack,
    ended,
    faults,
    rows,
    wait_until_struck,
)
from tests.support.stack.running_stack import ROOT, RunningStack, wait_for

WRITES = [
    ("POST", "/simulate/payment-timeout"),
    ("POST", "/simulate/connection-error"),
    ("POST", "/simulate/pool-exhaustion"),
    ("DELETE", "/simulate"),
    ("PUT", "/simulate/lever"),
    ("POST", "/drills"),
    ("DELETE", "/drills/run_0"),
    ("POST", "/drills/run_0/answer"),
]
# This route is on the same page, but not a drill's: it exists without simulation too.
CONSOLE_WRITES = [("POST", "/console/payments")]
READS = [("GET", "/simulate"), ("GET", "/drills"), ("GET", "/simulate/run_0")]


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    home = tmp_path_factory.mktemp("local_stack")
    with drilling_stack(home, HOLDFAST_OPS_HOSTS="console.example") as (local_stack, _):
        yield local_stack


@pytest.fixture(scope="module")
def others_key(local_stack) -> str:
    """A key of the same merchant for payments, without the scope `operator`."""
    made = local_stack.request("POST", "/v1/api_keys", json={"scopes": ["payments", "read"]})
    assert made.status_code == 201, made.text
    return str(made.json()["key"])


# --- Simulation off --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plane", ["data_plane import create_app", "ops_plane import create_ops_app"]
)
def test_simulation_is_off_and_not_imported_in_production(plane, database_url, tmp_path):
    program = f"""
import json, sys
from service.app.{plane} as create
from service.settings import Settings
app = create(Settings.from_environ())
ask = app.test_client().open
print(json.dumps({{
    "imported": [name for name in sys.modules if name.startswith("service.lab")],
    "statuses": [ask(path, method=method).status_code for method, path in {WRITES + READS!r}],
}}))
"""
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={
            **os.environ,
            "HOLDFAST_ENV": "production",
            "HOLDFAST_HOME": str(tmp_path),
            "DATABASE_URL": database_url,
            "STRIPE_API_BASE": "https://127.0.0.1:1",
            "STRIPE_API_KEY": "sk_test_x",
            "STRIPE_WEBHOOK_SECRET": "whsec_x",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout.splitlines()[-1])
    assert said["imported"] == []
    assert set(said["statuses"]) == {404}


# --- Permissions -----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), WRITES + CONSOLE_WRITES)
def test_a_write_needs_a_key_and_the_operators_scope(local_stack, others_key, method, path):
    nobody = requests.request(method, local_stack.ops_url + path, json={}, timeout=60)
    other = ask(
        local_stack, method, path, json={}, headers={"Authorization": f"Bearer {others_key}"}
    )

    assert (nobody.status_code, other.status_code) == (401, 403)
    assert other.json()["code"] == "forbidden"


@pytest.mark.parametrize(("method", "path"), WRITES + CONSOLE_WRITES + READS)
def test_a_name_that_is_not_ours_reaches_nothing(local_stack, method, path):
    """A page with a name that resolves to this machine sends that name in Host."""
    answer = ask(local_stack, method, path, json={}, headers={"Host": "rebound.example"})

    assert answer.status_code == 403


@pytest.mark.parametrize("name", ["localhost:8081", "127.0.0.1", "[::1]:8081", "console.example"])
def test_loopback_and_the_names_that_were_set_do(local_stack, name):
    assert ask(local_stack, "GET", "/simulate", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize(("method", "path"), WRITES + CONSOLE_WRITES)
def test_a_write_that_another_page_sends_is_refused(local_stack, method, path, headers):
    assert ask(local_stack, method, path, json={}, headers=headers).status_code == 403


def test_a_write_of_the_consoles_own_page_is_taken(local_stack):
    headers = {"Origin": local_stack.ops_url, "Sec-Fetch-Site": "same-origin"}

    assert ask(local_stack, "DELETE", "/simulate", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "body", [{"ttl_s": 301}, {"ttl_s": 0}, {"load_rps": 21}, {"scope": "fleet"}, {"speed": 1}]
)
def test_no_fault_is_longer_larger_or_wider_than_it_may_be(local_stack, body):
    answer = ask(local_stack, "POST", "/simulate/payment-timeout", json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


# --- One at a time, audited, and stopped by one call -----------------------------------------


def test_one_of_two_simultaneous_drills_starts_and_stops(local_stack):
    with ThreadPoolExecutor(2) as operators:
        begun, refused = sorted(
            operators.map(
                lambda reason: ask(
                    local_stack,
                    "POST",
                    "/simulate/payment-timeout",
                    json={"reason": reason, "ttl_s": 60},
                ),
                ("the first", "the second"),
            ),
            key=lambda answer: answer.status_code,
        )
    assert (begun.status_code, refused.status_code) == (202, 409)
    assert refused.json()["reasons"] == ["another_rehearsal: Another drill is running."]
    where = begun.headers["Location"]
    wait_until_struck(local_stack, where)

    stopped = ask(local_stack, "DELETE", "/simulate").json()["stopped"]

    # Long before the end of its minute.
    wait_for(lambda: not faults(local_stack), timeout_s=20)
    run = ended(local_stack, where)
    assert stopped == [run["id"]]
    assert (run["verdict"], run["summary"][:10]) == ("ABORTED", "Stopped by")
    assert {payment["status"] for payment in run["sides"][0]["payments"]} <= {"succeeded"}
    assert audited(local_stack, run["id"]) == ["started", "stopped", "ended"]
    assert told(local_stack, run["id"]) == [
        "rehearsal.started",
        "rehearsal.stopped",
        "rehearsal.ended",
    ]


def test_what_is_refused_is_written_down_with_its_reasons(local_stack):
    Path(local_stack.home, "drills.off").touch()
    try:
        refused = ask(local_stack, "POST", "/drills", json={"drill": "payment-timeout"})
    finally:
        Path(local_stack.home, "drills.off").unlink()

    reason = f"lever: Engaged: the file {local_stack.home}/drills.off exists"
    assert (refused.status_code, refused.json()["reasons"]) == (409, [reason])
    ((action, by, detail),) = rows(
        local_stack,
        "SELECT action, actor, detail FROM audit_log ORDER BY audit_id DESC LIMIT 1",
    )
    assert (action, detail["reasons"]) == ("drill.refused", [reason])
    assert by in local_stack.api_key
    events = [
        one for one in local_stack.log_events("ops-plane") if one["event"] == "rehearsal.refused"
    ]
    assert events[-1]["reasons"] == [reason]


def test_the_key_of_a_run_ends_with_it(local_stack):
    """A merchant may have fifty keys at once, and fifty short runs end before their keys expire."""
    where = begin(local_stack, "payment-timeout", ttl_s=1)
    live = "SELECT count(*) FROM api_keys WHERE label = 'drill' AND revoked_at IS NULL"
    wait_until_struck(local_stack, where)
    assert rows(local_stack, live) == [(1,)]

    ended(local_stack, where)

    assert rows(local_stack, live) == [(0,)]


def test_a_file_made_by_hand_stops_what_runs(local_stack):
    where = begin(local_stack, "payment-timeout", ttl_s=60)
    wait_until_struck(local_stack, where)

    Path(local_stack.home, "drills.off").touch()
    try:
        run = ended(local_stack, where)
    finally:
        Path(local_stack.home, "drills.off").unlink()

    assert (run["verdict"], run["summary"]) == ("ABORTED", "The kill switch was engaged.")
    assert faults(local_stack) == set()


def test_one_on_another_instance_keeps_this_one_from_beginning(local_stack):
    pool = ConnectionPool(
        local_stack.database_url, size=1, wait_s=1.0, max_waiters=1, watchdog=Watchdog()
    )
    elsewhere, run_id = DrillStore(pool), new_run_id()
    try:
        assert elsewhere.take_lease(run_id, Deadline.after(60))
        refused = ask(local_stack, "POST", "/simulate/payment-timeout", json={})
        elsewhere.end_lease(run_id, Deadline.after(60))
    finally:
        pool.close()

    assert refused.status_code == 409
    assert refused.json()["reasons"] == [
        "another_rehearsal: A drill is running on another instance."
    ]


# --- Beside real payments --------------------------------------------------------------------


def test_it_ends_as_soon_as_real_payments_suffer(local_stack):
    with Traffic(local_stack.url, local_stack.api_key, per_s=30):
        where = begin(local_stack, "pool-exhaustion", ttl_s=120, scope="instance", load_rps=1)
        run = ended(local_stack, where, timeout_s=100)

    assert run["verdict"] == "ABORTED", run["summary"]
    assert run["summary"].startswith("Live traffic: ")
    assert "real payments were refused" in run["summary"]
    # The guard ends it long before its time.
    struck = [point["at_s"] for point in run["timeline"] if point["phase"] == "fault"]
    assert struck[-1] - struck[0] < 60
    assert faults(local_stack) == set()


def audited(local_stack: RunningStack, run_id: str) -> list[str]:
    """The audit rows of a run, oldest first."""
    found = rows(
        local_stack, "SELECT action FROM audit_log WHERE target = %s ORDER BY audit_id", run_id
    )
    return [action.removeprefix("drill.") for (action,) in found]


def told(local_stack: RunningStack, run_id: str) -> list[str]:
    """The events about a run in the ops plane's log."""
    return [
        event["event"]
        for event in local_stack.log_events("ops-plane")
        if event.get("run_id") == run_id
    ]
