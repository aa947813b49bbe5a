"""The guard of live traffic: separates live failures from the drill's own calls."""

from __future__ import annotations

import pytest

from service.lab.drills.guards import abort_reason
from service.lab.drills.load import Call


def reading(*, answered: int = 0, refused: int = 0, unknown: int = 0, violations: int = 0):
    route = ("route", "/v1/payments")
    return {
        ("holdfast_http_requests_total", (("method", "POST"), route, ("status", "201"))): answered,
        ("holdfast_http_requests_total", (("method", "POST"), route, ("status", "503"))): refused,
        (
            "holdfast_payments_total",
            (("outcome", "unknown"), ("provider", "stripe")),
        ): unknown,
        ("holdfast_invariant_violations", (("rule", "charged_once"),)): violations,
    }


def calls(status: int, outcome: str | None, count: int) -> list[Call]:
    return [Call("instance", n, 0.0, 1.0, status, None, outcome, f"pay_{n}") for n in range(count)]


def test_real_payments_that_are_refused_end_it():
    said = abort_reason(reading(), reading(answered=50, refused=10), [])

    assert said == "10 of 60 real payments were refused."


def test_real_payments_that_are_left_in_doubt_end_it():
    said = abort_reason(reading(), reading(answered=50, unknown=10), [])

    assert said == "10 of 50 real payments were left in doubt."


@pytest.mark.parametrize(
    ("now", "ours"),
    [
        (reading(answered=30, refused=20), calls(503, None, 20)),
        (reading(answered=50, unknown=20), calls(202, "unknown", 20)),
    ],
)
def test_the_rehearsals_own_payments_may_suffer(now, ours):
    assert abort_reason(reading(), now, ours) is None


def test_a_few_real_payments_prove_nothing():
    assert abort_reason(reading(), reading(answered=9, refused=10), []) is None


def test_what_was_before_the_rehearsal_is_not_its_doing():
    before = reading(answered=10, refused=500)

    assert abort_reason(before, reading(answered=100, refused=500), []) is None


def test_a_broken_promise_ends_it_whoever_pays():
    assert abort_reason(reading(), reading(violations=1), []) == "A promise about money is broken."
