"""The ops plane reports the metrics, health and statistics of all workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from service.app.parts import web_app
from service.database.pool.pool import ConnectionPool
from service.observability.checks import CheckResult, ServiceCheck
from service.observability.health.periodic import HealthChecks
from service.observability.metrics.registry import SharedRegistry, read_samples
from service.observability.metrics.sampler import Sampler
from service.observability.metrics.statistics import Statistics
from service.payments.charge.store import PaymentStore
from service.payments.merchants import KeyStore
from service.resilience.watchdog import Watchdog
from service.web.http.auth import Authenticator
from service.web.http.parts import put_parts
from service.web.ops import diagnostics
from service.web.ops.history import History
from service.web.ops.plane import Instance, OpsPlane, WindowFigures

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
PASS, FAIL = CheckResult("pass"), CheckResult("fail", "refused")


def run_worker(directory: Path, code: str) -> None:
    """One life of a worker that counts and ends."""
    program = f"from service.observability.metrics import catalogue as metrics, slots\nslots.claim('web')\n{code}"
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    subprocess.run([sys.executable, "-c", program], env=environ, check=True, timeout=60)


@pytest.fixture
def seen() -> dict[str, CheckResult]:
    """The input of the checks; a test changes it."""
    return {"database": PASS, "provider": PASS}


@pytest.fixture
def health(seen: dict[str, CheckResult]) -> HealthChecks:
    return HealthChecks(
        [
            ServiceCheck("database", "datastore", lambda: seen["database"], is_critical=True),
            ServiceCheck("provider", "component", lambda: seen["provider"]),
        ],
        version="1.2.3",
        instance="box-1",
    )


@pytest.fixture
def statistics(tmp_path: Path) -> Statistics:
    return Statistics(lambda: read_samples(SharedRegistry(tmp_path)))


@pytest.fixture
def client(tmp_path: Path, health: HealthChecks, statistics: Statistics) -> FlaskClient:
    # Nothing listens there, and none of these calls needs a database.
    pool = ConnectionPool(
        "postgresql://x@127.0.0.1:1/x", size=1, wait_s=0.1, max_waiters=1, watchdog=Watchdog()
    )
    instance = Instance(
        name="box-1",
        version="1.2.3",
        environment="test",
        payments_host="127.0.0.1",
        payments_port=1,
        has_rehearsals=False,
        test_payment_method="pm_card_visa",
    )
    app = web_app(5.0)
    put_parts(
        app,
        OpsPlane(
            authenticate=Authenticator(KeyStore(pool)),
            instance=instance,
            registry=SharedRegistry(tmp_path),
            health=health,
            statistics=statistics,
            figures=WindowFigures(statistics),
            history=History(Sampler(dict)),
            store=PaymentStore(pool, lease_s=0.0, queue_expires_s=60.0),
        ),
    )
    app.register_blueprint(diagnostics.blueprint)
    return app.test_client()


def test_metrics_are_added_over_workers_that_live_and_died(tmp_path, client):
    for _ in range(2):
        run_worker(tmp_path, "metrics.payments_total.labels('stripe', 'succeeded').inc(2)")

    answer = client.get("/metrics")

    assert answer.content_type.startswith("text/plain")
    line = 'holdfast_payments_total{outcome="succeeded",provider="stripe"} 4.0'
    assert line in answer.text.splitlines()


def test_exemplars_are_shown_to_who_asks_for_open_metrics(tmp_path, client):
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    run_worker(tmp_path, f"metrics.db_pool_wait_seconds.observe(0.3, {{'trace_id': '{trace_id}'}})")

    plain = client.get("/metrics")
    open_metrics = client.get("/metrics", headers={"Accept": OPEN_METRICS})

    assert trace_id not in plain.text
    assert f'# {{trace_id="{trace_id}"}} 0.3' in open_metrics.text
    assert open_metrics.text.endswith("# EOF\n")
    assert open_metrics.content_type.startswith("application/openmetrics-text")


@pytest.mark.parametrize(
    ("failing", "code", "status"),
    [([], 200, "pass"), (["provider"], 200, "warn"), (["database"], 503, "fail")],
)
def test_health_is_served_while_degraded_and_refused_when_down(
    client, health, seen, failing, code, status
):
    seen.update(dict.fromkeys(failing, FAIL))
    health.check_now()

    answer = client.get("/diagnostics/health")

    assert (answer.status_code, answer.get_json(force=True)["status"]) == (code, status)
    assert answer.content_type == "application/health+json"
    assert answer.headers["Cache-Control"] == "no-store"


def test_each_component_reports_its_state_and_last_error(client, health, seen):
    seen["provider"] = FAIL
    health.check_now()

    (check,) = client.get("/diagnostics/health").get_json(force=True)["checks"]["provider"]

    assert check["status"] == "fail"
    assert check["output"] == check["last_error"] == "refused"
    assert check["since"] == check["last_error_at"] == check["time"]
    assert check["latency_ms"] >= 0


def test_a_caller_without_a_key_causes_no_checks(client, health):
    answer = client.get("/diagnostics/health?fresh=1")

    assert answer.status_code == 401
    assert health.report()["checks"]["database"][0]["output"] == "not checked yet"


def test_statistics_tell_what_happened_since_over_all_workers(tmp_path, client, statistics):
    run_worker(tmp_path, "metrics.payments_total.labels('stripe', 'succeeded').inc(100)")
    statistics.take_reading()
    payments = (
        "for outcome, count in (('succeeded', 3), ('unknown', 1)):\n"
        "    metrics.payments_total.labels('stripe', outcome).inc(count)\n"
        "    metrics.payment_duration_seconds.labels('stripe', outcome).observe(0.2)\n"
        "metrics.db_pool_timeouts_total.inc()\n"
        "metrics.provider_timeouts_total.labels('stripe', 'confirm', 'timeout').inc()\n"
        "metrics.http_requests_total.labels('/v1/payments', 'POST', '503').inc()\n"
    )
    for _ in range(2):
        run_worker(tmp_path, payments)

    report = client.get("/diagnostics/statistics").get_json()

    for window in report["windows"].values():
        assert window["payments"]["by_outcome"] == {"succeeded": 6, "unknown": 2}
        assert window["payments"]["success_ratio"] == 0.75
        assert 100 <= window["payments"]["response_ms"]["p95"] <= 250
        assert window["errors"]["provider_timeouts"] == {"timeout": 2}
        assert window["errors"]["db_pool_timeouts"] == 2
        assert window["http"]["server_error_ratio"] == 1


def test_statistics_show_the_gauges_of_living_processes(tmp_path, client):
    program = (
        "import sys\n"
        "from service.observability.metrics import catalogue as metrics, slots\n"
        "slots.claim('web')\n"
        "metrics.db_pool_in_use.set(8); metrics.db_pool_waiting.set(3)\n"
        "metrics.queued_payments.set(5)\n"
        "for state in metrics.BREAKER_STATES:\n"
        "    metrics.breaker_state.labels('stripe', state).set(state == 'open')\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
    ) as worker:
        worker.stdout.readline()
        now = client.get("/diagnostics/statistics").get_json()["now"]
        worker.stdin.close()

    assert (now["pool"]["in_use"], now["pool"]["waiting"]) == (8, 3)
    assert now["pool"]["by_worker"]["in_use"] == {"web-0": 8}
    assert now["breaker"] == "open"
    assert now["queue"]["queued"] == 5
    # Unknown, which is not 0.
    assert now["queue"]["unknown_oldest_s"] is None


def test_a_scrape_is_answered_while_a_worker_writes(tmp_path, client):
    program = (
        "from service.observability.metrics import catalogue as metrics, slots\n"
        "slots.claim('web')\n"
        "for number in range(20000):\n"
        "    metrics.db_statement_duration_seconds.labels(f's{number % 200}').observe(0.1)\n"
    )
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    codes = set()
    with subprocess.Popen([sys.executable, "-c", program], env=environ) as worker:
        while worker.poll() is None:
            codes.add(client.get("/metrics").status_code)

    count = read_samples(SharedRegistry(tmp_path))
    total = sum(
        value for key, value in count.items() if key[0].endswith("statement_duration_seconds_count")
    )
    assert codes == {200}
    assert total == 20000


def test_payment_answers_are_counted_good_or_bad_for_alarms(tmp_path, client):
    run_worker(
        tmp_path,
        "from service.web.http.request_scope import count_answer\n"
        "for status in ('201', '402', '503', '500'):\n"
        "    count_answer('/v1/payments', 'POST', status, 0.1)\n"
        "    count_answer('/v1/payments', 'GET', status, 0.1)\n",
    )

    lines = client.get("/metrics").text.splitlines()

    assert "holdfast_payments_good_total 3.0" in lines
    assert "holdfast_payments_bad_total 1.0" in lines
    # Made at 0: an alarm on what is not there never rings.
    assert "holdfast_payments_slow_total 0.0" in lines
