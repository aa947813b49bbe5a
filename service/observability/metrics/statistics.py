"""Statistics of the last minute, five minutes and hour, computed from the registry alone."""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from service.observability.metrics.registry import SampleKey
from service.observability.metrics.window import Window

WINDOWS_S = {"1m": 60.0, "5m": 300.0, "1h": 3600.0}
CACHED_FOR_S = 1.0
# Two series of readings, a fine one for the short windows: an hour takes 132 readings.
FINE_S, FINE_KEPT = 5.0, 66
COARSE_S, COARSE_KEPT = 60.0, 66

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_MONEY_MOVED = ("succeeded", "requires_capture")


class _Readings:
    """Earlier readings of the registry, each a row of numbers under shared keys."""

    def __init__(self) -> None:
        self._places: dict[SampleKey, int] = {}
        self._fine: deque[tuple[float, array[float]]] = deque(maxlen=FINE_KEPT)
        self._coarse: deque[tuple[float, array[float]]] = deque(maxlen=COARSE_KEPT)

    def add(self, at_s: float, samples: Mapping[SampleKey, float]) -> None:
        for key in samples:
            self._places.setdefault(key, len(self._places))
        row = array("d", bytes(8 * len(self._places)))
        for key, number in samples.items():
            row[self._places[key]] = number
        self._fine.append((at_s, row))
        if not self._coarse or at_s - self._coarse[-1][0] >= COARSE_S:
            self._coarse.append((at_s, row))

    def nearest(self, at_s: float) -> tuple[float, dict[SampleKey, float]] | None:
        """The reading closest to that moment, or the oldest reading if all are younger."""
        rows = [*self._fine, *self._coarse]
        if not rows:
            return None
        found_s, row = min(rows, key=lambda one: abs(one[0] - at_s))
        return found_s, dict(zip(self._places, row, strict=False))


class Statistics:
    """Answers from its readings of the registry, one every FINE_S. Thread-safe."""

    def __init__(self, read: Callable[[], Mapping[SampleKey, float]]) -> None:
        self._read = read
        self._readings = _Readings()
        self._lock = threading.Lock()
        self._cached: dict[str, Any] = {}
        self._cached_at_s = float("-inf")

    def take_reading(self) -> None:
        samples = self._read()
        with self._lock:
            self._readings.add(monotonic(), samples)

    def report(self) -> dict[str, Any]:
        """Rates, response times, errors, pool, breaker and queue, at most two seconds old."""
        with self._lock:
            if monotonic() - self._cached_at_s >= CACHED_FOR_S:
                self._cached = self._compute()
                self._cached_at_s = monotonic()
            return self._cached

    def _compute(self) -> dict[str, Any]:
        samples, now_s = self._read(), monotonic()
        windows = {}
        for name, length_s in WINDOWS_S.items():
            # Before the first reading no window has a known count.
            before_s, before = self._readings.nearest(now_s - length_s) or (now_s, samples)
            windows[name] = summarize(Window(before, samples, now_s - before_s))
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "windows": windows,
            "now": describe_now(Window({}, samples, 0.0)),
        }


def summarize(window: Window) -> dict[str, Any]:
    """The counts of a window. A ratio or a time without events is None, never 0."""
    return {
        # Shorter than its name until the process has run that long.
        "covers_s": round(window.seconds, 1),
        "payments": _payments(window),
        "http": _http(window),
        "provider": {
            "total": window.delta("provider_calls_total"),
            "by_result": window.by("result", "provider_calls_total"),
            "retries": window.by("reason", "provider_retries_total"),
            "response_ms": _times(window, "provider_call_duration_seconds"),
        },
        "errors": _errors(window),
        "pool": {
            "wait_ms": _times(window, "db_pool_wait_seconds"),
            "hold_ms": _times(window, "db_pool_hold_seconds"),
            "opened": window.delta("db_pool_connections_opened_total"),
            "discarded": window.by("reason", "db_pool_connections_discarded_total"),
            "leaks": window.delta("db_pool_leaks_total"),
        },
        "breaker": {
            "transitions": window.by("to_state", "breaker_transitions_total"),
            "open_s": round(window.delta("breaker_open_seconds_total"), 1),
        },
        "settling": {
            "settled": window.by("outcome", "reconcile_settled_total"),
            "webhooks": window.by("result", "webhooks_received_total"),
            "orphans": window.delta("sweep_orphans_total"),
        },
    }


def _payments(window: Window) -> dict[str, Any]:
    outcomes = window.by("outcome", "payments_total")
    good, bad = window.delta("payments_good_total"), window.delta("payments_bad_total")
    moved = sum(outcomes.get(outcome, 0.0) for outcome in _MONEY_MOVED)
    return {
        "total": sum(outcomes.values()),
        "per_s": round(window.rate("payments_total"), 3),
        "by_outcome": outcomes,
        "success_ratio": _ratio(moved, sum(outcomes.values())),
        "truthful_ratio": _ratio(good, good + bad),
        "slow_ratio": _ratio(window.delta("payments_slow_total"), good + bad),
        "response_ms": _times(window, "payment_duration_seconds"),
    }


def _http(window: Window) -> dict[str, Any]:
    statuses = window.by("status", "http_requests_total")
    requests = sum(statuses.values())
    failed = sum(count for status, count in statuses.items() if status >= "500")
    return {
        "total": requests,
        "per_s": round(window.rate("http_requests_total"), 3),
        "by_status": statuses,
        "server_error_ratio": _ratio(failed, requests),
        "response_ms": _times(window, "http_request_duration_seconds"),
    }


def _errors(window: Window) -> dict[str, Any]:
    return {
        "provider_timeouts": window.by("kind", "provider_timeouts_total"),
        "provider_connection": window.by("kind", "provider_connection_errors_total"),
        "db_pool_timeouts": window.delta("db_pool_timeouts_total"),
        "db_pool_refusals": window.by("reason", "db_pool_refusals_total"),
        "database": window.by("class", "db_errors_total"),
        "breaker_refusals": window.delta("breaker_refusals_total"),
        "bulkhead_refusals": window.delta("bulkhead_refusals_total"),
        "shed": window.by("reason", "requests_shed_total"),
    }


def describe_now(window: Window) -> dict[str, Any]:
    """The current gauges. None: no process has set the value."""
    states = window.values_by("state", "breaker_state")
    workers = {
        name: window.values_by("worker", f"db_pool_{name}")
        for name in ("size", "in_use", "waiting")
    }
    return {
        "pool": {
            **{name: sum(by_worker.values()) for name, by_worker in workers.items()},
            "by_worker": workers,
        },
        "bulkhead": {
            "limit": window.value("bulkhead_limit"),
            "in_use": window.value("bulkhead_in_use"),
        },
        # The worst state of any worker: the most important one for people.
        "breaker": next((state for state in _WORST_FIRST if states.get(state)), None),
        "threads_busy": window.values_by("worker", "worker_threads_busy"),
        "requests_in_flight": window.value("http_requests_in_flight"),
        "queue": {
            "queued": window.value("queued_payments"),
            "oldest_s": window.value("queued_oldest_age_seconds"),
            "open": window.values_by("status", "payments_open"),
            "unknown_oldest_s": window.value("unknown_oldest_age_seconds"),
            "needs_review": window.value("needs_review"),
            "reconcile_behind_s": window.value("reconcile_due_oldest_age_seconds"),
        },
        "money_at_risk_minor": window.values_by("currency", "money_at_risk_minor"),
        "invariant_violations": window.values_by("rule", "invariant_violations"),
        # None: never counted, which is not 0.
        "invariant_age_s": window.value("invariant_age_seconds"),
        "sweep_age_s": window.value("sweep_age_seconds"),
        "disputes_open": window.value("disputes_open"),
    }


_WORST_FIRST = ("open", "half_open", "closed")


def _times(window: Window, name: str) -> dict[str, float | None]:
    """Mean and percentiles of a histogram in milliseconds."""
    seconds = {"mean": window.mean(name)}
    seconds |= {word: window.quantile(q, name) for word, q in _QUANTILES.items()}
    return {word: None if s is None else round(s * 1000, 2) for word, s in seconds.items()}


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 5) if whole else None
