"""Health reports each fault, its start, and whether payments can still be accepted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.observability.checks import CheckResult, ServiceCheck
from service.observability.health import components
from service.observability.health.periodic import HealthChecks


def checks_of(*checks: ServiceCheck, **limits: float) -> HealthChecks:
    return HealthChecks(checks, version="1.2.3", instance="box-1", **limits)


def component(name: str, finding: CheckResult, *, is_critical: bool = False) -> ServiceCheck:
    return ServiceCheck(name, "component", lambda: finding, is_critical)


def workers_saw(
    *, breaker: str | None = "closed", timeouts: float = 0.0, refusals: float = 0.0
) -> Callable[[], Mapping[str, Any]]:
    errors = {"db_pool_timeouts": timeouts, "db_pool_refusals": {"waiters_full": refusals}}
    return lambda: {"windows": {"1m": {"errors": errors}}, "now": {"breaker": breaker}}


PASS, WARN, FAIL = CheckResult("pass"), CheckResult("warn", "slow"), CheckResult("fail", "down")


@pytest.mark.parametrize(
    ("critical", "other", "overall"),
    [
        (PASS, PASS, "pass"),
        (PASS, WARN, "warn"),
        # Degraded is not down: payments are still accepted and sent later.
        (PASS, FAIL, "warn"),
        (WARN, PASS, "warn"),
        (FAIL, PASS, "fail"),
    ],
)
def test_only_a_critical_component_makes_the_whole_fail(critical, other, overall):
    checks = checks_of(
        component("database", critical, is_critical=True), component("provider", other)
    )

    checks.check_now()

    assert checks.report()["status"] == overall


def test_what_was_not_checked_is_not_known_to_be_well():
    report = checks_of(component("database", PASS)).report()

    assert report["status"] == "warn"
    assert report["checks"]["database"][0]["output"] == "not checked yet"


def test_a_failing_check_reports_its_start_and_last_error(monkeypatch):
    monkeypatch.setattr("service.observability.health.periodic.FRESH_FOR_S", 0.0)
    answers = iter([None, ConnectionError("no route to postgres://app:hunter2@db/x"), None])

    def ping() -> None:
        answer = next(answers)
        if answer:
            raise answer

    checks = checks_of(components.database(ping, workers_saw()))
    seen = []
    for _ in range(3):
        checks.check_now()
        seen.append(checks.report()["checks"]["database"][0])

    well, ill, recovered = seen
    assert [check["status"] for check in seen] == ["pass", "fail", "pass"]
    assert well["last_error"] is None
    assert ill["output"] == "ConnectionError: no route to postgres://app:[redacted]@db/x"
    assert recovered["last_error"] == ill["output"]
    assert recovered["last_error_at"] == ill["time"]
    assert [change["status"] for change in recovered["changes"]] == ["pass", "fail", "pass"]
    assert recovered["since"] == recovered["time"]


@pytest.mark.parametrize(
    ("seen", "status", "told"),
    [
        (workers_saw(), "pass", ""),
        (workers_saw(timeouts=2, refusals=1), "warn", "no connection for 3 callers"),
    ],
)
def test_database_that_answers_only_the_ops_plane_is_degraded(seen, status, told):
    finding = components.database(lambda: None, seen).probe()

    assert finding.status == status
    assert told in finding.output


@pytest.mark.parametrize(
    ("breaker", "status"),
    [(None, "pass"), ("closed", "pass"), ("open", "warn"), ("half_open", "warn")],
)
def test_provider_that_answers_but_takes_no_payment_is_degraded(breaker, status):
    finding = components.provider(lambda: None, workers_saw(breaker=breaker)).probe()

    assert finding.status == status


def test_a_check_that_hangs_fails_alone_and_is_not_started_again():
    release, started = threading.Event(), []

    def hang() -> CheckResult:
        started.append(1)
        release.wait(60)
        return PASS

    hanging = ServiceCheck("provider", "component", hang)
    checks = checks_of(hanging, component("database", PASS), check_limit_s=1.0)
    checks.check_now()
    report = checks.report()["checks"]

    checks._round_at_s = float("-inf")
    checks.check_now()
    release.set()

    assert report["database"][0]["status"] == "pass"
    assert report["provider"][0]["status"] == "fail"
    assert report["provider"][0]["output"].startswith("no answer after")
    assert started == [1]


def test_who_asks_at_the_same_time_shares_one_round():
    rounds = []
    checks = checks_of(ServiceCheck("database", "datastore", lambda: rounds.append(1) or PASS))
    threads = [threading.Thread(target=checks.check_now) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert rounds == [1]


def test_checks_run_periodically_until_they_are_stopped():
    checked = threading.Event()
    checks = checks_of(ServiceCheck("database", "datastore", lambda: checked.set() or PASS))

    checks.start()
    is_checked = checked.wait(60)
    checks.stop()

    assert is_checked
    assert not any(thread.name == "health-checks" for thread in threading.enumerate())


def nothing_waits() -> None:
    """No recovery holds the queue."""


def test_reconciler_that_recovers_says_what_waits():
    beat = datetime.now(UTC)

    finding = components.reconciler(lambda: beat, lambda: "the queue waits").probe()

    assert (finding.status, finding.output) == ("warn", "the queue waits")


@pytest.mark.parametrize(("age_s", "status"), [(1, "pass"), (20, "warn"), (120, "fail")])
def test_a_silent_reconciler_is_noticed(age_s, status):
    beat = datetime.now(UTC) - timedelta(seconds=age_s)

    finding = components.reconciler(lambda: beat, nothing_waits, first_beat_within_s=0.0).probe()

    assert finding.status == status


def test_a_reconciler_that_never_ran_fails():
    never = components.reconciler(lambda: None, nothing_waits, first_beat_within_s=0.0)

    assert never.probe().status == "fail"


@pytest.mark.parametrize("beat", [None, datetime.now(UTC) - timedelta(days=1)])
def test_reconciler_gets_time_for_its_first_heartbeat(beat):
    finding = components.reconciler(lambda: beat, nothing_waits).probe()

    assert (finding.status, finding.output) == ("warn", "its first beat is awaited")


@pytest.mark.parametrize(
    ("skew_s", "status"), [(0, "pass"), (-10, "warn"), (10, "warn"), (90, "fail")]
)
def test_a_wrong_clock_is_noticed(skew_s, status):
    skew = timedelta(seconds=skew_s)

    finding = components.clock(lambda: datetime.now(UTC) + skew).probe()

    assert finding.status == status


def test_without_a_database_the_clock_is_not_said_to_be_wrong():
    def no_database() -> datetime:
        raise ConnectionError

    assert components.clock(no_database).probe().status == "warn"


def test_the_disk_is_measured_where_we_write(tmp_path):
    finding = components.disk(tmp_path).probe()

    assert finding.unit == "ratio"
    assert 0 <= finding.observed <= 1
