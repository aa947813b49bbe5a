"""Numbers between two readings of the registry are those that Prometheus would give."""

import pytest

from service.observability.metrics.statistics import FINE_S, Statistics, _Readings, summarize
from service.observability.metrics.window import Window


def key(name, **labels):
    return f"holdfast_{name}", tuple(sorted(labels.items()))


def histogram(name, counts_by_edge, total_s, **labels):
    samples = {key(f"{name}_bucket", le=edge, **labels): n for edge, n in counts_by_edge.items()}
    samples[key(f"{name}_count", **labels)] = counts_by_edge["+Inf"]
    samples[key(f"{name}_sum", **labels)] = total_s
    return samples


def test_a_counter_that_was_started_anew_counts_from_nothing():
    before = {key("payments_good_total"): 100.0}
    after = {key("payments_good_total"): 7.0}

    window = Window(before, after, 2.0)

    assert window.delta("payments_good_total") == 7
    assert window.rate("payments_good_total") == 3.5


def test_growth_is_added_over_the_labels_that_are_not_given():
    name = "provider_timeouts_total"
    after = {
        key(name, provider="stripe", operation="confirm", kind="timeout"): 3.0,
        key(name, provider="stripe", operation="look_up", kind="timeout"): 2.0,
        key(name, provider="stripe", operation="confirm", kind="deadline"): 1.0,
        key(name, provider="stripe", operation="refund", kind="deadline"): 0.0,
    }

    window = Window({}, after, 60.0)

    assert window.delta(name) == 6
    assert window.delta(name, operation="confirm") == 4
    assert window.by("kind", name) == {"deadline": 1, "timeout": 5}
    assert "refund" not in window.by("operation", name)


@pytest.mark.parametrize(
    ("q", "expected_s"), [(0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (0.9, 1.0), (0.99, 1.0)]
)
def test_percentile_is_linear_and_never_above_the_last_edge(q, expected_s):
    before = histogram("db_pool_wait_seconds", {"0.5": 10, "1.0": 10, "+Inf": 10}, 1.0)
    after = histogram("db_pool_wait_seconds", {"0.5": 50, "1.0": 90, "+Inf": 90}, 31.0)
    late = histogram("db_pool_wait_seconds", {"0.5": 50, "1.0": 82, "+Inf": 90}, 31.0)

    window = Window(before, late if q >= 0.9 else after, 60.0)

    assert window.quantile(q, "db_pool_wait_seconds") == pytest.approx(expected_s)
    assert window.mean("db_pool_wait_seconds") == pytest.approx(30 / 80)


def test_of_nothing_there_is_no_ratio_and_no_time():
    summary = summarize(Window({}, {}, 60.0))

    assert summary["payments"]["success_ratio"] is None
    assert summary["http"]["server_error_ratio"] is None
    assert summary["pool"]["wait_ms"] == {"mean": None, "p50": None, "p95": None, "p99": None}


def test_windows_cover_their_time_and_memory_stays_bounded():
    readings = _Readings()
    counter = key("payments_good_total")
    day_s = 86_400
    for at_s in range(0, day_s, int(FINE_S)):
        readings.add(float(at_s), {counter: float(at_s)})

    minute_s, minute = readings.nearest(day_s - 60.0)
    hour_s, hour = readings.nearest(day_s - 3600.0)

    assert (minute_s, minute[counter]) == (day_s - 60, day_s - 60)
    assert abs(hour_s - (day_s - 3600)) <= 60
    assert hour[counter] == hour_s
    assert len(readings._fine) + len(readings._coarse) <= 132


def test_a_series_that_appears_later_was_nothing_before():
    readings = _Readings()
    readings.add(0.0, {key("payments_good_total"): 1.0})
    readings.add(5.0, {key("payments_good_total"): 2.0, key("payments_bad_total"): 4.0})

    _, first = readings.nearest(0.0)
    window = Window(first, readings.nearest(5.0)[1], 5.0)

    assert window.delta("payments_bad_total") == 4
    assert window.delta("payments_good_total") == 1


def test_many_askers_at_once_cost_one_reading():
    readings = []
    statistics = Statistics(lambda: readings.append(1) or {})

    reports = [statistics.report() for _ in range(50)]

    assert len(readings) == 1
    assert all(report is reports[0] for report in reports)
