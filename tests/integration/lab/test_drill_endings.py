"""However a rehearsal ends, the next one can begin and the money was looked at: on a real database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg2
import pytest

from service.database.pool.pool import ConnectionPool
from service.errors import NotFound
from service.lab.drills.gameday import GameDay
from service.lab.drills.injector import Aborted, FaultInjector
from service.lab.drills.load import Load
from service.lab.drills.plan import Step, read_catalogue
from service.lab.drills.preflight import Preflight
from service.lab.drills.restart import DatabaseRestart
from service.lab.drills.run import DrillRequest, Run
from service.lab.drills.runner import DrillContext, Runner
from service.lab.drills.runs import DrillRuns
from service.lab.drills.store import DrillStore, new_run_id
from service.lab.drills.targets import CannotStart, Target
from service.lab.drills.watch import RunWatch
from service.lab.drills.webhooks import WebhookDisorder
from service.payments.merchants import KeyStore
from service.resilience.deadline import Deadline
from tests.support.processes.fault_server import fault_server
from tests.support.processes.slow_peers import hang
from tests.support.stack.pools import eventually, open_pool_of

PLAN = replace(read_catalogue()["payment-timeout"], load_per_s=1)


def a_request(scope: str, *, blind: bool = False) -> DrillRequest:
    return DrillRequest(
        name=PLAN.name, kind="drill", scope=scope, reason="", requested_by="key", blind=blind
    )


def test_a_day_goes_on_past_a_drill_that_no_database_lets_begin(
    silent_store, pool, tmp_path, monkeypatch
):
    monkeypatch.setattr("service.lab.drills.gameday.CALM_WITHIN_S", 0.0)
    plan = replace(PLAN, name="day", steps=(), parts=(PLAN.name,))
    run = Run(plan, a_request("pair"))
    context = drill_context(silent_store, pool, tmp_path)

    GameDay(run=run, context=context, plans=[PLAN, PLAN], kept=lambda part: None).play()

    day = run.report()
    assert [part.verdict for part in day.parts] == ["REFUSED", "REFUSED"]
    assert day.parts[0].summary.startswith("database: ")
    assert day.verdict == "INCONCLUSIVE"


def test_one_whose_report_cannot_be_written_lets_the_next_begin(pool, tmp_path):
    def cannot_start() -> AbstractContextManager[list[Target]]:
        raise CannotStart("said \0, which the database cannot store")

    context = drill_context(DrillStore(pool), pool, tmp_path, pair=cannot_start)
    drill_runs = DrillRuns(context, {PLAN.name: PLAN}, default_scope="pair")

    run = drill_runs.begin(a_request("pair"), Deadline.after(60))

    assert run.ended.wait(60)
    assert drill_runs.running is None
    assert DrillStore(pool).take_lease(new_run_id(), Deadline.after(60))


def test_one_that_lost_its_lease_to_another_stops(pool, tmp_path):
    store = DrillStore(pool)
    run = Run(PLAN, a_request("pair"))
    assert store.take_lease(new_run_id(), Deadline.after(60))
    watch = RunWatch(
        run,
        [],
        Load(run.id, {}, "key", per_s=1, began_s=run.began_s),
        store=store,
        preflight=preflight_on(store, off_file=tmp_path / "drills.off"),
        injections=lambda: 0,
    )

    watch.begin()
    is_stopped = run.stopping.wait(60)
    watch.end()

    assert is_stopped
    assert run.stop_reason == "Another drill took the lease."


def test_blind_drill_named_early_ends_like_any_other():
    run = Run(PLAN, a_request("pair", blind=True))
    run.answer(PLAN.name)

    run.finish("HELD", "All promises were kept.")

    assert run.report().summary == (
        "All promises were kept. Named before it began, 0 wrong answers."
    )


def test_harmed_live_payments_abort_without_a_database_too(silent_store, tmp_path):
    route = (("method", "POST"), ("route", "/v1/payments"), ("status", "503"))
    refused = {("holdfast_http_requests_total", route): 0.0}
    preflight = preflight_on(silent_store, off_file=tmp_path / "drills.off")
    run = Run(PLAN, a_request("pair"))
    watch = RunWatch(
        run,
        [Target(name="experiment", url="", read=dict, log=None)],
        Load(run.id, {"experiment": ""}, "key", per_s=1, began_s=run.began_s),
        store=silent_store,
        preflight=replace(preflight, read=lambda: dict(refused)),
        injections=lambda: 0,
    )
    run.enter("fault", "the database is away")

    watch.begin()
    refused = dict.fromkeys(refused, 30.0)
    is_stopped = run.stopping.wait(60)
    watch.end()

    assert is_stopped
    assert run.stop_reason == "Live traffic: 30 of 30 real payments were refused."


def test_of_each_second_it_keeps_only_what_its_checks_look_at(silent_store, tmp_path):
    plan = read_catalogue()["long-outage"]
    run = Run(plan, a_request("pair"))
    queued, other = ("holdfast_queued_payments", ()), ("holdfast_db_pool_size", ())
    target = Target(name="experiment", url="", read=lambda: {queued: 7.0, other: 4.0}, log=None)
    watch = RunWatch(
        run,
        [target],
        Load(run.id, {"experiment": ""}, "key", per_s=1, began_s=run.began_s),
        store=silent_store,
        preflight=preflight_on(silent_store, off_file=tmp_path / "drills.off"),
        injections=lambda: 0,
    )

    watch.turn("start")

    kept = watch.readings(target)
    assert [one.samples for one in kept.every_second] == [{queued: 7.0}]
    assert kept.fault_began.samples == {queued: 7.0, other: 4.0}


def test_a_database_that_is_not_of_this_run_is_not_restarted(pool, tmp_path, database_url):
    """Others live on it: a whole fleet is never struck at once."""
    with closing(psycopg2.connect(database_url)) as another:
        done = DatabaseRestart(DrillStore(pool), tmp_path).carry_out()

        with another.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]
    assert done is None


def test_drill_stopped_in_recovery_still_compares_the_books(pool, tmp_path):
    @contextmanager
    def nobody_answers() -> Iterator[list[Target]]:
        yield [Target(name="instance", url="http://127.0.0.1:1", read=dict, log=None)]

    plan = replace(
        PLAN, steps=(Step(seconds=0.1, burst=1),), baseline_s=0.1, fault_proof=(), expect=()
    )
    run = Run(plan, a_request("instance"))
    context = drill_context(DrillStore(pool), pool, tmp_path, instance=nobody_answers)
    runner = threading.Thread(target=Runner(run, context).carry_out)
    runner.start()
    assert eventually(lambda: run.phase == "recovery", within_s=90)

    run.stop("Stopped by key.")
    runner.join(60)

    report = run.report()
    assert (report.verdict, report.summary) == ("ABORTED", "Stopped by key.")
    assert "charged_once" in [rule.rule for rule in report.invariants]


def test_to_list_them_writes_nothing_where_none_was_lost(pool, tmp_path, database_url):
    run = Run(PLAN, a_request("pair"))
    store = DrillStore(pool)
    store.begin(run.whole(), Deadline.after(60))
    run.finish("HELD", "All promises were kept.")
    store.end(run.whole(), Deadline.after(60))
    read_only = f"{database_url}&options=-c%20default_transaction_read_only%3Don"

    with open_pool_of(1, read_only) as reader:
        context = drill_context(DrillStore(reader), reader, tmp_path)
        listed = DrillRuns(context, {}, default_scope="pair").recent(Deadline.after(60))

    assert [(one.id, one.verdict) for one in listed] == [(run.id, "HELD")]


def test_run_with_an_erased_report_hides_no_other(pool, tmp_path, database_url):
    store, context = DrillStore(pool), drill_context(DrillStore(pool), pool, tmp_path)
    erased, kept = (Run(PLAN, a_request("pair")) for _ in range(2))
    for run in (erased, kept):
        store.begin(run.whole(), Deadline.after(60))
        run.finish("HELD", "All promises were kept.")
        store.end(run.whole(), Deadline.after(60))
    with (
        closing(psycopg2.connect(database_url)) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        # As an erasure leaves it.
        cursor.execute(
            "UPDATE rehearsals SET report = '{}' WHERE rehearsal_id = %s", (erased.id[4:],)
        )
    drill_runs = DrillRuns(context, {}, default_scope="pair")

    assert [one.id for one in drill_runs.recent(Deadline.after(60))] == [kept.id]
    assert store.last_verdicts(Deadline.after(60)).keys() <= {PLAN.name}
    with pytest.raises(NotFound):
        drill_runs.find(erased.id, Deadline.after(60))


def test_one_whose_process_was_killed_is_listed_as_ended(pool, tmp_path):
    run = Run(PLAN, a_request("pair"))
    context = drill_context(DrillStore(pool), pool, tmp_path)
    context.store.begin(run.whole(), Deadline.after(60))

    listed = DrillRuns(context, {}, default_scope="pair").recent(Deadline.after(60))

    assert [(one.id, one.status, one.verdict) for one in listed] == [(run.id, "ended", "ABORTED")]


def test_webhooks_that_nobody_answers_are_over_with_their_fault(unanswered):
    began_s = monotonic()

    unanswered.carry_out(unanswered.run.plan.lasting(0.5))

    assert monotonic() - began_s < 20


def test_webhooks_that_nobody_answers_end_with_the_run(unanswered):
    threading.Timer(1.0, unanswered.run.stop, ["Stopped by key."]).start()
    began_s = monotonic()

    with pytest.raises(Aborted, match="Stopped by key"):
        unanswered.carry_out(unanswered.run.plan)

    assert monotonic() - began_s < 20


@pytest.fixture
def unanswered() -> Iterator[FaultInjector]:
    """The faults of a drill with webhooks to a data plane that hangs."""
    plan = replace(PLAN, steps=(Step(seconds=60, webhooks=True),))
    run = Run(plan, a_request("instance"))

    def wait(seconds: float) -> None:
        if run.stopping.wait(seconds):
            raise Aborted(str(run.stop_reason))

    with fault_server(hang, tls=False) as server:
        yield FaultInjector(
            run=run,
            target=Target(name="instance", url=server.url, read=dict, log=None),
            load=Load(run.id, {}, "key", per_s=1, began_s=run.began_s),
            sandbox=None,
            webhooks=WebhookDisorder("secret"),
            rows=list,
            wait=wait,
            turn=lambda name: None,
        )


def drill_context(
    store: DrillStore, pool: ConnectionPool, tmp_path: Path, **targets: Any
) -> DrillContext:
    return DrillContext(
        store=store,
        keys=KeyStore(pool),
        preflight=preflight_on(store, off_file=tmp_path / "drills.off"),
        targets=targets,
        list_charges=lambda since, deadline: iter(()),
        standing_rules=lambda deadline: [],
        sandbox=None,
        webhooks=WebhookDisorder(None),
    )


@pytest.fixture
def silent_store(pool: ConnectionPool) -> Iterator[DrillStore]:
    nowhere = ConnectionPool(
        "postgresql://127.0.0.1:1/none", size=1, wait_s=0.2, max_waiters=1, watchdog=pool.watchdog
    )
    yield DrillStore(nowhere)
    nowhere.close()


def preflight_on(store: DrillStore, *, off_file: Path) -> Preflight:
    return Preflight(
        store=store,
        read=dict,
        statistics=lambda: {"windows": {"5m": {"payments": {"total": 0, "truthful_ratio": None}}}},
        provider_key="sk_test_sandbox",
        has_sandbox=True,
        control_path=off_file.parent / "control",
        instance_allowed=True,
        off_file=off_file,
    )
