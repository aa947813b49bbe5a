"""The catalogue is a contract: names, labels, buckets and the number of series."""

import re
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from grafana.catalogue import PAGE, rendered
from service.database.pool.statements import FAMILIES
from service.observability.metrics import catalogue as metrics
from service.payments.charge.model import OPEN, Status
from service.payments.settling import invariants
from service.providers.base import OutcomeKind

CATALOGUE = Path(__file__).with_name("metrics_catalogue.txt")
# The series of a whole instance; `worker` multiplies by the processes.
SERIES_LIMIT = 2000
WORKERS = 4
# Sets that other modules define, with more members than today.
ROUTES, STATEMENTS, DRILLS, CURRENCIES, STATUSES, COMPONENTS = 44, 60, 13, 8, 4, 7
# A route answers to one method nearly always, a payment ends in a few outcomes.
METHODS = 1


def declared() -> dict[str, MetricWrapperBase]:
    return {
        name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)
    }


def is_of_family(statement: str) -> bool:
    return statement.partition("_")[0] in FAMILIES


def written() -> dict[str, tuple[str, ...]]:
    """The committed contract: a line is `name` or `name{label,label}`."""
    lines = CATALOGUE.read_text().split()
    pairs = (line.rstrip("}").partition("{") for line in lines)
    return {name: tuple(labels.split(",")) if labels else () for name, _, labels in pairs}


def test_code_and_catalogue_have_the_same_metrics_and_labels():
    in_code = {name: metric._labelnames for name, metric in declared().items()}

    assert in_code == written()


def test_metrics_page_matches_the_whole_catalogue():
    page = rendered()

    rows = re.findall(r"(?m)^\| `(holdfast_\w+)` \|", page)
    assert page == PAGE.read_text(), "Run `python -m grafana.catalogue`."
    assert sorted(rows) == sorted(f"holdfast_{name}" for name in declared())


@pytest.mark.parametrize("name", sorted(declared()))
def test_a_metric_is_exposed_under_its_own_name_with_the_prefix(name):
    metric = declared()[name]

    exposed = metric._name + ("_total" if isinstance(metric, Counter) else "")

    assert exposed == f"holdfast_{name}"
    assert metric._documentation.endswith(".")


def test_durations_have_edges_where_promises_are_made():
    histograms = [metric for metric in declared().values() if isinstance(metric, Histogram)]

    edges = {histogram._name: set(histogram._kwargs["buckets"]) for histogram in histograms}

    assert all({0.5, 1.0, 5.0, 10.0} <= of_one for of_one in edges.values())
    # Buckets separate values just below and just above the provider's deadline.
    assert {4.9, 5.1} <= edges["holdfast_provider_call_duration_seconds"]


def test_no_gauge_outlives_the_process_that_set_it():
    gauges = [metric for metric in declared().values() if isinstance(metric, Gauge)]

    modes = {gauge._multiprocess_mode for gauge in gauges}

    assert all(mode.startswith("live") for mode in modes)


def test_the_closed_sets_hold_the_words_the_code_uses():
    assert set(metrics.PAYMENT_OUTCOMES) == {status.value for status in Status}
    assert set(metrics.OPEN_STATUSES) == {status.value for status in OPEN}
    assert set(metrics.CALL_RESULTS) == {kind.value for kind in OutcomeKind} | {"refused"}


def test_alarm_companions_exist_before_the_first_event():
    for counter in (
        metrics.payments_good_total,
        metrics.payments_bad_total,
        metrics.payments_slow_total,
    ):
        assert counter._value.get() >= 0.0


def test_statement_count_is_within_the_budget_of_series():
    sources = Path(metrics.__file__).parents[2].rglob("*.py")
    named = re.compile(r"\bStatement\(\s*f?\"(\w+)")
    names = {name for path in sources for name in named.findall(path.read_text())}

    series = {name.partition("_")[0] if is_of_family(name) else name for name in names}

    assert 40 < len(series) <= STATEMENTS


def test_four_workers_stay_within_the_budget_of_series():
    sizes = {
        "provider": 1,
        "route": ROUTES,
        "method": METHODS,
        "status": STATUSES,
        "operation": len(metrics.OPERATIONS),
        "statement": STATEMENTS,
        "currency": CURRENCIES,
        "class": len(metrics.DB_ERROR_CLASSES),
        "version": 1,
        "component": COMPONENTS,
        "fault": len(metrics.FAULTS),
        "drill": DRILLS,
        "verdict": len(metrics.VERDICTS),
        "slo": len(metrics.SLO_TARGETS),
        "rule": len(invariants.RULES),
        "state": 3,
        "from_state": 3,
        "to_state": 2,
    }
    by_metric = {
        ("payment_duration_seconds", "outcome"): len(metrics.PAYMENT_OUTCOMES),
        ("payments_total", "outcome"): len(metrics.PAYMENT_OUTCOMES),
        ("reconcile_settled_total", "outcome"): len(metrics.PAYMENT_OUTCOMES),
        ("payments_open", "status"): len(metrics.OPEN_STATUSES),
        ("provider_calls_total", "result"): len(metrics.CALL_RESULTS),
        ("idempotent_requests_total", "result"): len(metrics.IDEMPOTENCY_RESULTS),
        ("webhooks_received_total", "result"): len(metrics.WEBHOOK_RESULTS),
        ("webhook_deliveries_total", "result"): len(metrics.DELIVERY_RESULTS),
        ("provider_timeouts_total", "kind"): len(metrics.TIMEOUT_KINDS),
        ("provider_connection_errors_total", "kind"): len(metrics.CONNECTION_ERROR_KINDS),
        ("requests_shed_total", "reason"): len(metrics.SHED_REASONS),
        ("provider_retries_total", "reason"): len(metrics.RETRY_REASONS),
        ("rows_removed_total", "table"): len(metrics.REMOVED_TABLES),
        ("db_pool_refusals_total", "reason"): len(metrics.POOL_REFUSAL_REASONS),
        ("db_pool_connections_discarded_total", "reason"): len(metrics.DISCARD_REASONS),
    }

    total = 0
    for name, metric in declared().items():
        series = 1
        for label in metric._labelnames:
            series *= by_metric.get((name, label)) or sizes[label]
        if isinstance(metric, Histogram):
            series *= len(metric._kwargs["buckets"]) + 3
        if isinstance(metric, Gauge) and metric._multiprocess_mode == "liveall":
            series *= WORKERS
        total += series

    assert total <= SERIES_LIMIT, total
