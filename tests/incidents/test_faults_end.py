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
from tests.support.stack.drilling import (
    ask,
    begin,
    drilling_stack,
    ended,
    ops_worker,
    wait_until_struck,
)
from tests.support.stack.running_stack import ROOT, RunningStack, wait_for

# Much longer than any wait for the end of a fault in these tests.
TTL_S = 120


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with drilling_stack(tmp_path_factory.mktemp("local_stack")) as (local_stack, _):
        yield local_stack


@pytest.fixture
def local_stack(there: RunningStack) -> Iterator[RunningStack]:
    """The shared local stack, without runs of earlier tests."""
    yield there
    ask(there, "DELETE", "/simulate")
    wait_for(lambda: ask(there, "GET", "/simulate").json()["running"] is None, timeout_s=60)


def modes(local_stack: RunningStack) -> set[str | None]:
    """The faults on the links, read from the proxy itself: the ops plane may be down."""
    try:
        with FaultClient(local_stack.fault_proxy_control) as onlooker:  # type: ignore[arg-type]
            return {link["mode"] for link in onlooker.describe().values()}
    except ProxyGone:
        return {"gone"}


def cleared_because(local_stack: RunningStack) -> str:
    """The reason for the end of the last fault, from the proxy's log."""
    events = local_stack.log_events("fault-proxy")
    return [event["why"] for event in events if event["event"] == "faultproxy.cleared"][-1]


def strike(local_stack: RunningStack) -> str:
    where = begin(local_stack, "payment-timeout", ttl_s=TTL_S, load_rps=1)
    wait_until_struck(local_stack, where)
    wait_for(lambda: modes(local_stack) == {"stall", None})
    return where


def test_when_the_ops_plane_is_killed_its_faults_end_at_once(local_stack):
    where = strike(local_stack)

    os.kill(ops_worker(local_stack), signal.SIGKILL)

    wait_for(lambda: modes(local_stack) == {None})
    # Its end closed the connection of the fault, without a wait for missed heartbeats.
    assert cleared_because(local_stack) == "holder_gone"
    wait_for(lambda: local_stack.pay().status_code == 201)
    lost = ended(local_stack, where, timeout_s=LEASE_S + 20)
    assert lost["verdict"] == "ABORTED"
    assert "killed" in lost["summary"]


def test_three_missed_heartbeats_of_a_stuck_runner_end_faults(local_stack):
    where = strike(local_stack)
    worker = ops_worker(local_stack)

    os.kill(worker, signal.SIGSTOP)
    try:
        wait_for(lambda: modes(local_stack) == {None})
        assert cleared_because(local_stack) == "heartbeats_missed"
    finally:
        os.kill(worker, signal.SIGCONT)

    # After it wakes, it continues without a fault, until the test ends it.
    assert modes(local_stack) == {None}
    assert ask(local_stack, "DELETE", "/simulate").json()["stopped"] == [where.rpartition("/")[2]]
    ended(local_stack, where)


def test_killed_proxy_restarts_without_fault_and_ends_the_drill(local_stack):
    where = strike(local_stack)

    os.kill(local_stack.pids["fault_proxy"], signal.SIGKILL)

    wait_for(lambda: modes(local_stack) == {None})
    wait_for(lambda: local_stack.pay().status_code == 201)
    run = ended(local_stack, where)
    assert (run["verdict"], "fault proxy" in run["summary"]) == ("ABORTED", True)


def test_fault_of_a_killed_command_ends_at_its_own_time(local_stack):
    command = subprocess.Popen(
        [sys.executable, "-m", "service", "drill", "payment-timeout", "--fault-s", "8"],
        cwd=ROOT,
        env={
            **os.environ,
            "HOLDFAST_OPS_URL": local_stack.ops_url,
            "HOLDFAST_API_KEY": local_stack.api_key,
        },
        stdout=subprocess.DEVNULL,
    )
    running = wait_for(lambda: ask(local_stack, "GET", "/drills").json()["running"], timeout_s=30)
    where = f"/drills/{running['id']}"
    wait_until_struck(local_stack, where)

    command.kill()
    command.wait(60)

    run = ended(local_stack, where)
    assert modes(local_stack) == {None}
    assert run["verdict"] in ("HELD", "BROKE", "INCONCLUSIVE")
