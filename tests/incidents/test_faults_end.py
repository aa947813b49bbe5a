"""A fault ends in time after a kill or a hang of the ops plane, the runner, the proxy or the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service.lab.drills.store import LEASE_S
from service.lab.faultproxy.client import FaultClient, ProxyGone
from tests.support.stack.rehearsing import (
    ask,
    begin,
    ended,
    ops_worker,
    rehearsing_house,
    wait_until_struck,
)
from tests.support.stack.running_house import ROOT, House, wait_for

# Much longer than any wait for the end of a fault in these tests.
TTL_S = 120


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with rehearsing_house(tmp_path_factory.mktemp("house")) as (house, _):
        yield house


@pytest.fixture
def house(there: House) -> Iterator[House]:
    """The shared local stack, without runs of earlier tests."""
    yield there
    ask(there, "DELETE", "/simulate")
    wait_for(lambda: ask(there, "GET", "/simulate").json()["running"] is None, timeout_s=60)


def modes(house: House) -> set[str | None]:
    """The faults on the links, read from the proxy itself: the ops plane may be down."""
    try:
        with FaultClient(house.fault_proxy_control) as onlooker:  # type: ignore[arg-type]
            return {link["mode"] for link in onlooker.describe().values()}
    except ProxyGone:
        return {"gone"}


def cleared_because(house: House) -> str:
    """The reason for the end of the last fault, from the proxy's log."""
    events = house.log_events("fault-proxy")
    return [event["why"] for event in events if event["event"] == "faultproxy.cleared"][-1]


def strike(house: House) -> str:
    where = begin(house, "payment-timeout", ttl_s=TTL_S, load_rps=1)
    wait_until_struck(house, where)
    wait_for(lambda: modes(house) == {"stall", None})
    return where


def test_when_the_ops_plane_is_killed_its_faults_end_at_once(house):
    where = strike(house)

    os.kill(ops_worker(house), signal.SIGKILL)

    wait_for(lambda: modes(house) == {None})
    # Its end closed the connection of the fault, without a wait for missed heartbeats.
    assert cleared_because(house) == "holder_gone"
    wait_for(lambda: house.pay().status_code == 201)
    lost = ended(house, where, timeout_s=LEASE_S + 20)
    assert lost["verdict"] == "ABORTED"
    assert "killed" in lost["summary"]


def test_three_missed_heartbeats_of_a_stuck_runner_end_faults(house):
    where = strike(house)
    worker = ops_worker(house)

    os.kill(worker, signal.SIGSTOP)
    try:
        wait_for(lambda: modes(house) == {None})
        assert cleared_because(house) == "heartbeats_missed"
    finally:
        os.kill(worker, signal.SIGCONT)

    # After it wakes, it continues without a fault, until the test ends it.
    assert modes(house) == {None}
    assert ask(house, "DELETE", "/simulate").json()["stopped"] == [where.rpartition("/")[2]]
    ended(house, where)


def test_killed_proxy_restarts_without_fault_and_ends_the_drill(house):
    where = strike(house)

    os.kill(house.pids["fault_proxy"], signal.SIGKILL)

    wait_for(lambda: modes(house) == {None})
    wait_for(lambda: house.pay().status_code == 201)
    run = ended(house, where)
    assert (run["verdict"], "fault proxy" in run["summary"]) == ("ABORTED", True)


def test_fault_of_a_killed_command_ends_at_its_own_time(house):
    command = subprocess.Popen(
        [sys.executable, "-m", "service", "drill", "payment-timeout", "--fault-s", "8"],
        cwd=ROOT,
        env={**os.environ, "HOLDFAST_OPS_URL": house.ops_url, "HOLDFAST_API_KEY": house.api_key},
        stdout=subprocess.DEVNULL,
    )
    running = wait_for(lambda: ask(house, "GET", "/drills").json()["running"], timeout_s=30)
    where = f"/drills/{running['id']}"
    wait_until_struck(house, where)

    command.kill()
    command.wait(60)

    run = ended(house, where)
    assert modes(house) == {None}
    assert run["verdict"] in ("HELD", "BROKE", "INCONCLUSIVE")
