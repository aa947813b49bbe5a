"""Scope `pair`: the incident on copies; the serving workers, their links and their figures are unaffected."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.lab.drills.load import AMOUNT_MINOR
from service.lab.drills.pair import COPY_GRACE_S, Pair
from service.lab.drills.store import LEASE_S
from service.lab.drills.targets import CannotStart
from service.lab.observe.traffic import Traffic
from tests.support.stack.drilling import (
    TemporaryFiles,
    begin,
    come_to_rest,
    drilling_stack,
    ended,
    faults,
    ops_worker,
    rows,
    wait_until_struck,
)
from tests.support.stack.running_stack import ROOT, RunningStack, wait_for

# Longer than the provider's timeout, so that callers reach it.
FAULT_S = 8
# A wait that the fault outlasts, and that a busy machine does not reach without it.
PATIENT = {"HOLDFAST_DB_POOL_WAIT_MS": "3000"}
# A copy's grace period, the period of its orphan check, and a busy machine.
GONE_WITHIN_S = COPY_GRACE_S + 55.0


@pytest.fixture(scope="module")
def there(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningStack, TemporaryFiles]]:
    with drilling_stack(tmp_path_factory.mktemp("local_stack"), **PATIENT) as there:
        yield there


@pytest.fixture(scope="module")
def local_stack(there) -> RunningStack:
    return there[0]


@pytest.fixture(scope="module")
def temporary(there) -> TemporaryFiles:
    return there[1]


@pytest.fixture(autouse=True)
def _at_rest(local_stack) -> Iterator[None]:
    """Lend out the one instance without a drill and without doubt, however the last test ended."""
    yield
    come_to_rest(local_stack)


@dataclass
class Seen:
    """One drill on a pair: its document, and the serving workers' figures before and after."""

    run: dict[str, Any]
    faults_meanwhile: set[str]
    marked_meanwhile: float
    paid_meanwhile: int
    before: dict[str, float]
    after: dict[str, float]

    @property
    def experiment(self) -> dict[str, Any]:
        return self.run["sides"][0]

    @property
    def control(self) -> dict[str, Any]:
        return self.run["sides"][1]


@pytest.fixture(scope="module")
def seen(local_stack, temporary) -> Seen:
    # What earlier tests left would move the figures too.
    come_to_rest(local_stack)
    before = serving_figures(local_stack)
    where = begin(local_stack, "payment-timeout", scope="pair", ttl_s=FAULT_S)
    wait_until_struck(local_stack, where)
    meanwhile = faults(local_stack), local_stack.metric("holdfast_simulation_active")
    paid = local_stack.pay().status_code
    run = ended(local_stack, where)
    assert run["verdict"] == "SHOWN", run["summary"]
    return Seen(run, *meanwhile, paid, before, serving_figures(local_stack))


def serving_figures(local_stack: RunningStack) -> dict[str, float]:
    """The serving workers' figures that a drill's payments would change if they reached these workers."""
    return {
        name: local_stack.metric(f"holdfast_{name}", **labels)
        for name, labels in {
            "http_requests_total": {"route": "/v1/payments"},
            "payments_total": {},
            "payments_good_total": {},
            "payments_bad_total": {},
            "provider_timeouts_total": {},
            "breaker_transitions_total": {},
        }.items()
    }


def test_only_the_experiment_shows_the_incident(seen):
    assert [side["name"] for side in seen.run["sides"]] == ["experiment", "control"]
    assert "timeout after 5000ms" in seen.experiment["incident"]
    assert seen.control["incident"] is None


def test_the_control_stays_healthy_while_the_experiment_suffers(seen):
    count = seen.control["callers"]["count"]

    well, ill = seen.control["callers"], seen.experiment["callers"]
    assert ill["count"] == count
    assert well["by_outcome"].get("succeeded", 0) > ill["by_outcome"].get("succeeded", 0)
    assert well["ms"]["p50"] < 5000 <= ill["ms"]["max"]


def test_the_experiment_recovers_though_no_reconciler_is_its_own(seen):
    steps = [step["text"] for step in seen.run["progress"] if step["phase"] == "recovery"]

    assert any("succeed again" in text for text in steps), steps


def test_serving_workers_figures_count_only_real_payments(seen):
    moved = {name: seen.after[name] - value for name, value in seen.before.items()}

    # The one payment made during the drill.
    assert seen.paid_meanwhile == 201
    assert moved == {
        "http_requests_total": 1,
        "payments_total": 1,
        "payments_good_total": 1,
        "payments_bad_total": 0,
        "provider_timeouts_total": 0,
        "breaker_transitions_total": 0,
    }


def test_the_links_of_the_serving_workers_are_not_struck(seen):
    assert seen.faults_meanwhile == set()
    assert seen.marked_meanwhile == 0


def test_drill_payments_are_minimal_and_of_the_drill_tenant(local_stack, seen):
    paid = rows(
        local_stack,
        "SELECT DISTINCT m.name, p.amount, p.metadata ->> 'drill', p.metadata ->> 'side'"
        " FROM payments p JOIN merchants m USING (merchant_id) WHERE p.metadata ->> 'drill' = %s"
        " ORDER BY 4",
        run_id := seen.run["id"],
    )

    assert paid == [
        ("drill", AMOUNT_MINOR, run_id, "control"),
        ("drill", AMOUNT_MINOR, run_id, "experiment"),
    ]


def test_its_key_is_a_test_key_that_ends(local_stack, seen):
    keys = rows(
        local_stack,
        "SELECT DISTINCT k.mode, k.scopes, k.expires_at < now() + interval '21 minutes'"
        " FROM api_keys k JOIN merchants m USING (merchant_id) WHERE m.name = 'drill'",
    )

    assert keys == [("test", ["payments", "refunds", "read"], True)]


def test_every_payment_of_it_ends_and_both_books_agree(seen):
    assert [rule for rule in seen.run["invariants"] if not rule["ok"]] == []
    for side in seen.run["sides"]:
        assert {payment["status"] for payment in side["payments"]} == {"succeeded"}
        assert {payment["charges"] for payment in side["payments"]} == {1}


def test_afterwards_nothing_of_it_is_left(seen, temporary):
    assert temporary.processes() == []
    assert temporary.pairs() == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("connection-error", "ConnectionError: HTTPSConnectionPool timeout"),
        ("pool-exhaustion", "connection pool exhausted"),
    ],
)
def test_the_other_two_show_themselves_on_a_pair_as_well(local_stack, name, words):
    run = ended(local_stack, begin(local_stack, name, scope="pair", ttl_s=FAULT_S))

    experiment, control = run["sides"]
    assert run["verdict"] == "SHOWN", run["summary"]
    assert words in experiment["incident"]
    assert control["incident"] is None
    # The fault refused no caller of the baseline; a busy machine may be too slow for a burst.
    assert set(control["callers"]["by_code"]) <= {"deadline_exceeded"}


@pytest.mark.long
def test_it_ends_as_soon_as_real_payments_suffer_beside_it(local_stack):
    where = begin(local_stack, "connection-error", scope="pair", ttl_s=120)
    wait_until_struck(local_stack, where)
    try:
        with Traffic(local_stack.url, local_stack.api_key, per_s=15):
            # The provider loses the answers of all callers, not only the experiment's; too few to open
            # the breaker, which would end the harm before the guard has counted enough of it.
            local_stack.control({"reset": 1, "ok": 3}, operations=["confirm"])
            run = ended(local_stack, where)
    finally:
        local_stack.control({"ok": 1})

    assert run["verdict"] == "ABORTED", run["summary"]
    assert run["summary"].startswith("Live traffic: ")


def test_killed_ops_plane_ends_its_copies_and_their_files(local_stack, temporary):
    where = begin(local_stack, "payment-timeout", scope="pair", ttl_s=60)
    wait_until_struck(local_stack, where)
    assert temporary.processes()
    assert len(temporary.pairs()) == 1

    os.kill(ops_worker(local_stack), signal.SIGKILL)

    wait_for(lambda: not temporary.processes(), timeout_s=GONE_WITHIN_S)
    wait_for(lambda: not temporary.pairs(), timeout_s=GONE_WITHIN_S)
    # The restarted ops plane reports the run's end as soon as its lease has expired.
    lost = ended(local_stack, where, timeout_s=LEASE_S + 20)
    assert (lost["verdict"], "killed" in lost["summary"]) == ("ABORTED", True)
    assert local_stack.pay().status_code == 201


def test_failed_start_of_a_copy_leaves_no_files_or_processes(tmp_path, sandbox, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pair = Pair(
        provider_url=sandbox.url,
        # The server does not exist: the copies end before they serve.
        database_url="postgresql://holdfast@127.0.0.1:1/nowhere",
        environ=dict(os.environ),
        root=ROOT,
    )

    with pytest.raises(CannotStart, match="did not start"), pair.targets():
        pytest.fail("it started")

    left = TemporaryFiles(Path(tmp_path))
    assert (left.processes(), left.pairs()) == ([], [])
