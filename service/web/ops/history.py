"""The last ten minutes for the console's charts: a row every two seconds, from the registry."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from time import monotonic, time
from typing import Any

from service.observability.metrics.registry import SampleKey
from service.observability.metrics.sampler import Sampler
from service.observability.metrics.window import Window

# A reading costs about 6 ms of a core: 0.3 % while a page is open, 0.06 % otherwise.
WATCHED_EVERY_S = 2.0
UNWATCHED_EVERY_S = 10.0
# A page polls every other second; a hidden one every 15 s.
WATCHED_FOR_S = 30.0
ROWS_KEPT = 300
# Percentiles of a single reading would jump with every payment.
_LATENCY_READINGS = 5

_PAY = {"route": "/v1/payments", "method": "POST"}
_ANSWERED = {
    "succeeded": ("succeeded", "requires_capture", "requires_action"),
    "declined": ("declined", "not_executed", "canceled", "expired"),
    "queued": ("accepted",),
    "unknown": ("unknown", "sending", "needs_review"),
}
_BREAKER = {"closed": 0, "half_open": 1, "open": 2}
_IN_DOUBT = ("sending", "unknown")
# The columns of a row, before each worker's connections in use and callers waiting.
COLUMNS = (
    *("at_s", *_ANSWERED, "refused", "p50_ms", "p95_ms", "p99_ms", "breaker", "breaker_opened"),
    *("queued_now", "in_doubt_now", "needs_review_now"),
)


class History:
    """Rows from readings of the registry, more often while a page polls. Thread-safe."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._lock = threading.Lock()
        self._readings: deque[tuple[float, Mapping[SampleKey, float]]] = deque(
            maxlen=_LATENCY_READINGS + 1
        )
        self._rows: deque[tuple[list[Any], dict[str, tuple[float, float]]]] = deque(
            maxlen=ROWS_KEPT
        )
        self._watched_at_s = float("-inf")

    def watch(self) -> Mapping[SampleKey, float]:
        """Record that a page polls, and return the newest reading."""
        with self._lock:
            was_watched = self._is_watched()
            self._watched_at_s = monotonic()
            newest = self._readings[-1] if self._readings else None
        if newest is None:
            return self.take_reading()
        if not was_watched:
            self._sampler.ask_again()
        return newest[1]

    def after(self, at_s: float) -> dict[str, Any]:
        """The rows later than `at_s`, with the names of their columns and of the workers."""
        with self._lock:
            rows = [row for row in self._rows if row[0][0] > at_s]
        workers = sorted({worker for _, pools in rows for worker in pools})
        return {
            "columns": COLUMNS,
            "workers": workers,
            "rows": [
                [*cells, *(number for worker in workers for number in pools.get(worker, _GONE))]
                for cells, pools in rows
            ],
        }

    def take_reading(self) -> Mapping[SampleKey, float]:
        """Read now; each new reading adds a row, from the second on."""
        now_s, samples = self._sampler.reading()
        with self._lock:
            if self._readings:
                before_s, before = self._readings[-1]
                if now_s <= before_s:
                    return samples
                oldest_s, oldest = self._readings[0]
                self._rows.append(
                    _row(
                        Window(before, samples, now_s - before_s),
                        Window(oldest, samples, now_s - oldest_s),
                    )
                )
            self._readings.append((now_s, samples))
        return samples

    def every_s(self) -> float:
        """The time from one reading to the next: shorter while a page polls."""
        return WATCHED_EVERY_S if self._is_watched() else UNWATCHED_EVERY_S

    def _is_watched(self) -> bool:
        return monotonic() - self._watched_at_s < WATCHED_FOR_S


_GONE = (None, None)


def _row(last: Window, recent: Window) -> tuple[list[Any], dict[str, tuple[float, float]]]:
    """The counts since the last reading, recent durations, and the current gauges."""
    answered = last.by("outcome", "payments_total")
    refused = last.by("status", "http_requests_total", **_PAY)
    refusals = sum(count for status, count in refused.items() if status == "429" or status >= "5")
    states = last.values_by("state", "breaker_state")
    open_now = last.values_by("status", "payments_open")
    is_counted = bool(open_now)
    cells = [
        round(time(), 1),
        *(
            _per_s(sum(answered.get(outcome, 0.0) for outcome in outcomes), last.seconds)
            for outcomes in _ANSWERED.values()
        ),
        _per_s(refusals, last.seconds),
        *(_ms(recent.quantile(q, "payment_duration_seconds")) for q in (0.5, 0.95, 0.99)),
        max((_BREAKER[state] for state, is_it in states.items() if is_it), default=None),
        last.delta("breaker_transitions_total", to_state="open"),
        last.value("queued_payments"),
        sum(open_now.get(status, 0.0) for status in _IN_DOUBT) if is_counted else None,
        last.value("needs_review"),
    ]
    in_use = last.values_by("worker", "db_pool_in_use")
    waiting = last.values_by("worker", "db_pool_waiting")
    pools = {
        worker: (number, waiting.get(worker, 0.0))
        for worker, number in in_use.items()
        if worker.startswith("web-")
    }
    return cells, pools


def _per_s(count: float, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
