"""The charts' rows: rates, times and pools between readings, bounded, with gaps for unknown values."""

from __future__ import annotations

from time import monotonic, sleep
from typing import Any

import pytest

from service.observability.metrics.sampler import Sampler
from service.web.ops.history import COLUMNS, ROWS_KEPT, History


def rows_of(*readings: dict[Any, float]) -> list[dict[str, Any]]:
    left = list(readings)
    history = History(Sampler(lambda: left.pop(0), keep_s=0.0))
    for _ in readings:
        history.take_reading()
    told = history.after(0.0)
    names = [
        *COLUMNS,
        *(f"{name} {what}" for name in told["workers"] for what in ("in_use", "waiting")),
    ]
    return [dict(zip(names, row, strict=True)) for row in told["rows"]]


def test_a_row_tells_what_was_counted_since_the_last_reading():
    paid = ("holdfast_payments_total", (("outcome", "succeeded"), ("provider", "stripe")))
    unknown = ("holdfast_payments_total", (("outcome", "unknown"), ("provider", "stripe")))

    (row,) = rows_of({paid: 5.0, unknown: 0.0}, {paid: 5.0, unknown: 3.0})

    assert row["succeeded"] == 0.0
    assert row["unknown"] > 0.0


def test_reading_of_another_process_counts_at_its_own_time():
    paid = ("holdfast_payments_total", (("outcome", "succeeded"), ("provider", "stripe")))
    # A constant rate of a hundred a second.
    recent = Sampler(lambda: {paid: 100 * monotonic()}, keep_s=0.2)
    history = History(recent)
    history.take_reading()
    sleep(0.25)
    recent.reading()
    sleep(0.15)
    history.take_reading()

    (row,) = history.after(0.0)["rows"]

    assert dict(zip(COLUMNS, row, strict=False))["succeeded"] == pytest.approx(100, rel=0.02)


def test_what_nobody_counted_is_a_gap_not_a_zero():
    (row,) = rows_of({}, {})

    assert (row["p50_ms"], row["breaker"], row["in_doubt_now"]) == (None, None, None)


def test_an_opening_shorter_than_a_reading_is_seen():
    turns = (
        "holdfast_breaker_transitions_total",
        (("from_state", "closed"), ("provider", "stripe"), ("to_state", "open")),
    )
    closed = ("holdfast_breaker_state", (("provider", "stripe"), ("state", "closed")))

    (row,) = rows_of({turns: 0.0, closed: 1.0}, {turns: 1.0, closed: 1.0})

    assert (row["breaker"], row["breaker_opened"]) == (0, 1.0)


def test_dead_worker_leaves_a_gap_and_the_new_one_its_own_line():
    first = ("holdfast_db_pool_in_use", (("worker", "web-0"),))
    second = ("holdfast_db_pool_in_use", (("worker", "web-1"),))

    before, after = rows_of({first: 1.0}, {first: 1.0}, {second: 2.0})

    assert (before["web-0 in_use"], before["web-1 in_use"]) == (1.0, None)
    assert (after["web-0 in_use"], after["web-1 in_use"]) == (None, 2.0)


def test_rows_never_grow_beyond_their_number():
    rows = rows_of(*({} for _ in range(ROWS_KEPT + 20)))

    assert len(rows) == ROWS_KEPT
