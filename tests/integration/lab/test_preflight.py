"""May a rehearsal begin? Each thing that speaks against it, in words, on a real database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from service.database.pool.pool import ConnectionPool
from service.lab.drills.losses import LocalDatabase
from service.lab.drills.pair import COPY_POOL_SIZE
from service.lab.drills.plan import read_catalogue
from service.lab.drills.preflight import (
    CONNECTIONS_SPARE,
    QUEUED_AGE_MAX_S,
    RECONCILE_BEHIND_MAX_S,
    UNKNOWN_AGE_MAX_S,
    Preflight,
    reasons,
)
from service.lab.drills.store import DrillStore, new_run_id
from service.resilience.deadline import Deadline

PLAN = read_catalogue()["payment-timeout"]


def answers(*, total: int, truthful_ratio: float | None) -> dict[str, Any]:
    payments = {"total": total, "truthful_ratio": truthful_ratio}
    return {"windows": {"5m": {"payments": payments}}}


def look(
    pool: ConnectionPool, tmp_path: Path, scope: str = "instance", **changed: Any
) -> list[str]:
    """The reasons against a drill when everything but the `changed` facts is in order."""
    samples = changed.pop("samples", {})
    plan = changed.pop("plan", PLAN)
    found = changed.pop("statistics", answers(total=1000, truthful_ratio=1.0))
    well: dict[str, Any] = {
        "store": DrillStore(pool),
        "provider_key": "sk_test_sandbox",
        "has_sandbox": True,
        "control_path": tmp_path / "control",
        "instance_allowed": True,
        "off_file": tmp_path / "drills.off",
    }
    preflight = Preflight(**{**well, **changed}, read=lambda: samples, statistics=lambda: found)
    return reasons(preflight.check(plan, scope, Deadline.after(60)))


@pytest.mark.parametrize("scope", ["instance", "pair"])
def test_where_all_is_well_nothing_speaks_against_it(pool, tmp_path, scope):
    assert look(pool, tmp_path, scope) == []


def test_commits_are_lost_in_a_local_database_only(pool, tmp_path):
    # The server is embedded, and no local run in this home has started it.
    elsewhere = LocalDatabase(DrillStore(pool), tmp_path)
    losing = read_catalogue()["lost-commits"]

    against = look(pool, tmp_path, plan=losing, is_local_database=elsewhere.is_ours)

    assert against == ["local_database: Only a local run's database can lose commits."]
    assert look(pool, tmp_path, plan=losing, is_local_database=lambda: True) == []


@pytest.mark.parametrize("key", ["sk_live_abc", "rk_live_abc"])
def test_a_live_provider_key_does(pool, tmp_path, key):
    against = look(pool, tmp_path, provider_key=key)

    assert against == ["provider_key: It is a live key: real cards."]


def test_a_service_level_that_burns_does(pool, tmp_path):
    # One in a hundred where five in ten thousand are allowed.
    against = look(pool, tmp_path, statistics=answers(total=1000, truthful_ratio=0.99))

    assert against == ["service_level: Burn rate 20.0 over 5 minutes."]


def test_a_handful_of_answers_burns_nothing(pool, tmp_path):
    assert look(pool, tmp_path, statistics=answers(total=5, truthful_ratio=0.2)) == []


@pytest.mark.parametrize(
    ("gauge", "most_s", "name"),
    [
        ("unknown_oldest_age_seconds", UNKNOWN_AGE_MAX_S, "unknown_payments"),
        ("queued_oldest_age_seconds", QUEUED_AGE_MAX_S, "queued_payments"),
        ("reconcile_due_oldest_age_seconds", RECONCILE_BEHIND_MAX_S, "reconciler"),
    ],
)
def test_an_old_backlog_does(pool, tmp_path, gauge, most_s, name):
    samples = {(f"holdfast_{gauge}", ()): most_s + 1}

    against = look(pool, tmp_path, samples=samples)

    assert against == [
        f"{name}: The oldest is {most_s + 1:.0f} s old; the limit is {most_s:.0f} s."
    ]


def test_an_engaged_lever_does_and_says_why(pool, tmp_path):
    store = DrillStore(pool)
    store.set_kill_switch(
        engaged=True, reason="release night", by="key", deadline=Deadline.after(60)
    )

    assert look(pool, tmp_path) == ["lever: Engaged: release night"]


def test_a_file_made_by_hand_does(pool, tmp_path):
    (tmp_path / "drills.off").touch()

    assert look(pool, tmp_path) == [f"lever: Engaged: the file {tmp_path}/drills.off exists"]


def test_production_does_not_strike_its_own_links_unless_set_to(pool, tmp_path):
    against = look(pool, tmp_path, instance_allowed=False)

    assert against == ["scope: Live links in production need an explicit setting."]
    assert look(pool, tmp_path, "pair", instance_allowed=False) == []


def test_links_that_nothing_stands_on_do(pool, tmp_path):
    against = look(pool, tmp_path, control_path=None)

    assert against == ["scope: This instance's links have no fault proxy."]


def test_little_headroom_in_the_database_does(pool, tmp_path, database_url):
    with held(database_url, leave=2 * COPY_POOL_SIZE + CONNECTIONS_SPARE - 1, pool=pool):
        (against,) = look(pool, tmp_path, "pair")
        # Two copies need more than none.
        assert look(pool, tmp_path, "instance") == []

    assert against.startswith("database_connections: ")
    assert against.endswith(f"{2 * COPY_POOL_SIZE + CONNECTIONS_SPARE} needed.")


def test_a_database_that_does_not_answer_does(pool, tmp_path):
    preflight_pool = ConnectionPool(
        "postgresql://127.0.0.1:1/none", size=1, wait_s=0.2, max_waiters=1, watchdog=pool.watchdog
    )
    try:
        store = DrillStore(preflight_pool)
        checks = Preflight(
            store=store,
            read=dict,
            statistics=lambda: answers(total=0, truthful_ratio=None),
            provider_key="sk_test_sandbox",
            has_sandbox=True,
            control_path=tmp_path / "control",
            instance_allowed=True,
            # Asked first, so that the database's silence is found by its own check.
            off_file=tmp_path,
        ).check(PLAN, "pair", Deadline.after(60))
    finally:
        preflight_pool.close()

    assert [check.ok for check in checks if check.name == "database_connections"] == [False]


def test_of_two_instances_one_may_rehearse_until_it_ends(pool):
    store, (first, second) = DrillStore(pool), (new_run_id(), new_run_id())
    deadline = Deadline.after(60)

    assert store.take_lease(first, deadline)
    assert not store.take_lease(second, deadline)
    # Renewed by who has it.
    assert store.take_lease(first, deadline)
    store.end_lease(first, deadline)
    assert store.take_lease(second, deadline)


@contextmanager
def held(url: str, *, leave: int, pool: ConnectionPool) -> Iterator[None]:
    """Connections, so that only `leave` are free for ordinary roles."""
    free = DrillStore(pool).connections_free(Deadline.after(60))
    with ExitStack() as stack:
        for _ in range(free - leave):
            stack.callback(psycopg2.connect(url).close)
        yield
