"""The measurements of a drill, from hand-made readings; and the same query in PromQL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.lab.drills.document import (
    DrillCheckResult,
    DrillReport,
    TargetEvidence,
    rule_result,
)
from service.lab.drills.evidence import caller_evidence, log_evidence, payment_evidence
from service.lab.drills.expectations import Reading, Readings, Samples, before, evaluate
from service.lab.drills.load import Call
from service.lab.drills.plan import Check, read_catalogue
from service.lab.drills.run import DrillRequest, Run
from service.lab.drills.verdict import judge, judge_day, recovery_s
from service.observability.metrics.catalogue import NAMESPACE


def samples(name: str, **series: float) -> Samples:
    """One metric with the label `word`; the keyword is its value."""
    return {(f"{NAMESPACE}_{name}", (("word", word),)): value for word, value in series.items()}


def call(at_s: float, outcome: str | None = "succeeded", **more: Any) -> Call:
    given = {"target": "instance", "n": 1, "ms": 100.0, "status": 201, "code": None}
    return Call(**{**given, "at_s": at_s, "outcome": outcome, "payment_id": "pay_1", **more})


def check(measure: str, **more: Any) -> Check:
    return Check(
        **{"text": "a sentence", "measure": measure, "labels": {}, "per_labels": {}, **more}
    )


def readings(began: Samples, ended: Samples, **more: Any) -> Readings:
    first, last = Reading(10.0, began), Reading(20.0, ended)
    return Readings(fault_began=first, fault_ended=last, ended=last, **more)


BEFORE = samples("calls_total", good=10, bad=1, refused=5)
AFTER = samples("calls_total", good=16, bad=3, refused=95)


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (check("delta", metric="calls_total", max=0), 98.0),
        (check("delta", metric="calls_total", labels={"word": "bad"}, max=0), 2.0),
        (check("delta", metric="calls_total", labels={"word": "!refused"}, max=0), 8.0),
        (check("rate", metric="calls_total", labels={"word": "!refused"}, max=0), 0.8),
        (
            check(
                "delta",
                metric="calls_total",
                labels={"word": "bad"},
                per="calls_total",
                per_labels={"word": "good"},
                max=0,
            ),
            0.3333,
        ),
        (check("delta", metric="calls_total", during="never-came", max=0), None),
    ],
)
def test_a_counter_is_measured_over_the_labels_that_are_meant(wanted: Check, value: float | None):
    assert evaluate(wanted, readings(BEFORE, AFTER)).value == value


def test_a_number_that_cannot_be_had_is_a_promise_not_kept():
    nothing = evaluate(check("recovery", max=5), readings({}, {}))

    assert (nothing.value, nothing.ok) == (None, False)


def test_callers_are_measured_within_the_fault_that_is_meant():
    calls = [call(9), call(11, status=503, outcome=None), call(12, status=None, outcome=None)]
    read = readings({}, {}, calls=calls)

    assert evaluate(check("callers", word="5xx", max=0, during="fault"), read).value == 0.5
    assert evaluate(check("callers", word="no_answer", max=0), read).value == 0.5
    assert evaluate(check("callers", word="succeeded", max=0), read).value == 0.0


def test_what_callers_waited_is_a_quantile_of_their_own_seconds():
    calls = [call(11, ms=ms) for ms in range(100, 1100, 100)]

    assert evaluate(check("waited", at=0.5, max=1), readings({}, {}, calls=calls)).value == 0.5
    assert evaluate(check("waited", at=0.99, max=1), readings({}, {}, calls=calls)).value == 1.0


def test_call_in_flight_at_the_fault_is_not_in_the_baseline():
    answered, met = call(9, ms=900), call(9.9, ms=8000)

    assert before(10.0, [answered, met]) == [answered]


def test_callers_results_are_compared_with_the_baseline():
    without = readings({}, {}, calls=[call(11, ms=300), call(12, ms=300)])
    read = readings({}, {}, calls=[call(11, ms=900)], reference=without)

    shown = evaluate(check("waited", at=0.5, max=1), read)

    assert (shown.value, shown.reference) == (0.9, 0.3)
    assert evaluate(check("callers", word="201", min=1), read).reference == 1.0
    # No advice to wait without a fault: it would not concern the machine.
    assert evaluate(check("callers", word="202", min=1), read).reference is None
    assert evaluate(check("struck", min=1), read).reference is None


def test_a_gauge_is_looked_at_only_while_the_fault_was_on():
    seconds = [Reading(at, samples("line", all=value)) for at, value in ((5, 9), (12, 4), (25, 7))]
    read = readings({}, {}, every_second=seconds)

    assert evaluate(check("peak", metric="line", min=1, during="fault"), read).value == 4


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (
            check("delta", metric="calls_total", labels={"result": "!refused"}),
            'sum(increase(holdfast_calls_total{result!="refused"}[10s]))',
        ),
        (
            check("delta", metric="a_total", per="b_total", per_labels={"to_state": "open"}),
            'sum(increase(holdfast_a_total[10s])) / sum(increase(holdfast_b_total{to_state="open"}[10s]))',
        ),
        (
            check("callers", word="5xx"),
            'sum(increase(holdfast_http_requests_total{route="/v1/payments", method="POST",'
            ' status=~"5.."}[10s])) / sum(increase(holdfast_http_requests_total{route='
            '"/v1/payments", method="POST"}[10s]))',
        ),
        (check("callers", word="no_answer"), ""),
        (check("peak", metric="line"), "max_over_time(sum(holdfast_line)[10s:1s])"),
    ],
)
def test_the_same_question_is_asked_of_prometheus(wanted: Check, text: str):
    assert evaluate(wanted, readings({}, {})).promql == text


def ended_run(count: int = 20, **changed: Any) -> DrillReport:
    """The report of a run with `count` payments that kept every promise but the `changed` ones."""
    plan = read_catalogue()["payment-timeout"]
    request = DrillRequest(
        name=plan.name, kind="drill", scope="instance", reason="", requested_by="key"
    )
    run = Run(plan, request)
    kept = DrillCheckResult(text="kept", value=1, min=None, max=None, ok=True)
    target = TargetEvidence(
        name="instance",
        **log_evidence(None, run.id),
        callers=replace(caller_evidence([]), count=count),
        metrics=(),
        **payment_evidence([], {}),
    )
    sound = {
        "fault_proof": [kept],
        "expectations": [kept],
        "invariants": [rule_result("ours", "charged_once", 0)],
        "targets": [target],
    }
    return replace(run.report(), **{**sound, **changed})


def not_kept(text: str, **more: Any) -> DrillCheckResult:
    return DrillCheckResult(
        **{"text": text, "value": 5, "min": None, "max": None, "ok": False, **more}
    )


NOT_OK = [not_kept("the breaker opened")]
SLOW = not_kept("they waited", max=2, reference=0.1, is_of_time=True)
SLOW_ANYWAY = not_kept("they waited", max=2, reference=3, is_of_time=True)
UNSERVED_ANYWAY = not_kept("they were served", min=0.9, reference=0.5, is_of_time=True)
LATE = not_kept("it settled", max=9, is_of_time=True)


@pytest.mark.parametrize(
    ("changed", "verdict", "told"),
    [
        ({}, "HELD", "All 2 promises"),
        ({"expectations": NOT_OK}, "BROKE", "the breaker opened"),
        (
            {"fault_proof": NOT_OK, "expectations": NOT_OK},
            "INCONCLUSIVE",
            "not proven: the breaker",
        ),
        ({"count": 9}, "INCONCLUSIVE", "Only 9 payments"),
        ({"expectations": [SLOW]}, "BROKE", "Not kept: they waited"),
        # As slow where no fault was on: the fault is not to blame, nor for what came later.
        (
            {"expectations": [SLOW_ANYWAY, LATE]},
            "INCONCLUSIVE",
            "in the baseline too: they waited: 3",
        ),
        (
            {"expectations": [UNSERVED_ANYWAY]},
            "INCONCLUSIVE",
            "in the baseline too: they were served: 0.5",
        ),
        ({"expectations": [SLOW_ANYWAY, SLOW]}, "BROKE", "they waited"),
        ({"expectations": [SLOW_ANYWAY, *NOT_OK]}, "BROKE", "the breaker opened"),
        ({"expectations": [LATE]}, "BROKE", "it settled"),
        # Money comes before everything: it is broken whether or not a fault was proven.
        (
            {"fault_proof": NOT_OK, "invariants": [rule_result("ours", "charged_once", 1)]},
            "BROKE",
            "charged_once",
        ),
        # A rule that could not be checked is not kept by that.
        (
            {"invariants": [rule_result("ours", "charged_once", None)]},
            "INCONCLUSIVE",
            "could not be checked",
        ),
    ],
)
def test_money_is_judged_first_then_the_proof_then_the_promises(changed, verdict, told):
    found, summary = judge(ended_run(**changed), payments_min=10)

    assert found == verdict
    assert told in summary


@pytest.mark.parametrize(
    ("verdicts", "stopped", "verdict"),
    [
        (["HELD", "HELD"], None, "HELD"),
        (["HELD", "BROKE", "INCONCLUSIVE"], None, "BROKE"),
        (["HELD", "INCONCLUSIVE"], None, "INCONCLUSIVE"),
        ([], None, "INCONCLUSIVE"),
        (["HELD"], "Stopped by key_1.", "ABORTED"),
    ],
)
def test_a_day_is_as_good_as_its_worst_drill(verdicts, stopped, verdict):
    assert judge_day(verdicts, stopped=stopped)[0] == verdict


def test_recovery_is_the_first_of_three_successes_in_a_row():
    calls = [call(9), call(10), call(11, "pending"), call(12), call(13), call(14), call(15)]

    assert recovery_s(calls, "instance", 10.0) == 2.1
    assert recovery_s(calls[:5], "instance", 10.0) is None
