"""The stored report of a drill, byte for byte: its JSON, its Markdown and its JUnit XML."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

from service.lab.drills import books, evidence, report
from service.lab.drills.document import (
    DrillReport,
    PreflightCheck,
    TargetEvidence,
    TargetSecond,
    from_json,
    to_json,
)
from service.lab.drills.expectations import Reading, Readings, Samples, evaluate
from service.lab.drills.load import Call
from service.lab.drills.plan import read_catalogue
from service.lab.drills.run import DrillRequest, Run
from service.lab.drills.verdict import judge
from service.observability.metrics.catalogue import NAMESPACE

GOLDEN = Path(__file__).parent / "golden"
PLAN = read_catalogue()["payment-timeout"]
PAYMENTS = [UUID(f"01a20bdb-086b-7585-a990-b6103ec6944{n}") for n in range(4)]
# The values that depend on the clock or on chance, and their substitutes.
CHANGING = {
    "id": "run_0",
    "started_at": "2026-01-01T00:00:00.000Z",
    "fault_began_at": "2026-01-01T00:00:05.000Z",
    "fault_ended_at": "2026-01-01T00:00:15.000Z",
    "ended_at": "2026-01-01T00:00:30.000Z",
    "elapsed_s": 30.0,
    "fault_left_s": None,
    "from_s": 5.0,
    "to_s": 15.0,
    "after_s": 1.5,
}


def samples(**values: float) -> Samples:
    series = {
        "provider_errors_total": (("error", "read_timeout"), ("provider", "stripe")),
        "breaker_transitions_total": (("provider", "stripe"), ("to_state", "open")),
    }
    return {(f"{NAMESPACE}_{name}", series[name]): value for name, value in values.items()}


CALLS = [
    Call("instance", n, 1.0 + n, 120.5, 201, None, "succeeded", f"pay_{PAYMENTS[n].hex}")
    for n in range(3)
] + [
    Call("instance", 3, 7.0, 15000.0, None, None, None, None),
    Call("instance", 3, 20.0, 80.0, 202, None, "pending", f"pay_{PAYMENTS[3].hex}", is_retry=True),
]
ROWS: list[books.Row] = [
    *((at, "succeeded", 50, "usd", f"pi_{n}", "instance") for n, at in enumerate(PAYMENTS[:3])),
    (PAYMENTS[3], "unknown", 50, "usd", None, "instance"),
]


def request(scope: str, *, reason: str = "", blind: bool = False) -> DrillRequest:
    return DrillRequest(
        name=PLAN.name,
        kind="drill",
        scope=scope,
        reason=reason,
        requested_by="key_1",
        blind=blind,
    )


class FixedLog:
    """The events of a data plane's log."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def events(self) -> list[dict[str, Any]]:
        return [
            {
                "event": "provider.timeout",
                "level": "ERROR",
                "timestamp": "2026-01-01T00:00:06Z",
                "request_id": f"{self._run_id}-instance-3",
                "incident": "Payment service connection failed - timeout after 5000ms",
                "error": "ReadTimeout",
                "error_chain": ["ProviderTimeout: read", "ReadTimeout: timed out"],
            },
            {"event": "breaker.opened", "level": "WARNING", "timestamp": "2026-01-01T00:00:07Z"},
            {"event": "http.request", "level": "INFO", "request_id": "another"},
        ]


def a_drill(*, is_blind: bool = False) -> Run:
    """A drill that passed through all its phases, with fixed evidence, before its end."""
    run = Run(PLAN, request("instance", reason="a test", blind=is_blind))
    preflight(run)
    run.enter("baseline", "4 payments a second, no fault")
    run.begin_fault(PLAN.fault_s)
    run.enter("fault", "stall on the link to the provider; 10 s")
    if is_blind:
        run.answer("slow-drip")
    with run.fault("stall on the link to the provider; 10 s"):
        run.tell("The fault is active")
        second(run)
    run.end_fault()
    run.enter("recovery", "The fault has ended; waiting for successful payments")
    collect(run)
    return run


def preflight(run: Run) -> None:
    run.set(preflight=(PreflightCheck("lever", True, "Not engaged."),))


def second(run: Run) -> None:
    run.add_second(
        6.0,
        {
            "instance": TargetSecond(
                sent=4,
                answered=3,
                succeeded=3,
                failed=0,
                unknown=0,
                queued=0,
                ms_max=120.5,
                pool_in_use=2.0,
                pool_waiting=None,
                breaker="closed",
                injections=1,
            )
        },
    )


def collect(run: Run) -> None:
    before = samples(provider_errors_total=1.0, breaker_transitions_total=0.0)
    after = samples(provider_errors_total=6.0, breaker_transitions_total=1.0)
    began, ended = Reading(5.0, before), Reading(15.0, after)
    readings = Readings(
        fault_began=began,
        fault_ended=ended,
        ended=Reading(30.0, after),
        calls=CALLS[:4],
        recovery_s=1.25,
        settled_s=2.5,
        injections=3,
        reference=Readings(fault_began=began, fault_ended=began, ended=began, calls=CALLS[:1]),
    )
    run.set(
        invariants=tuple(books.compare(ROWS, {}, CALLS)),
        targets=(
            TargetEvidence(
                name="instance",
                **evidence.log_evidence(FixedLog(run.id), run.id),  # type: ignore[arg-type]
                callers=evidence.caller_evidence(CALLS),
                metrics=evidence.metric_evidence(before, after),
                **evidence.payment_evidence(ROWS, {}),
            ),
            TargetEvidence(
                name="control",
                **evidence.log_evidence(None, run.id),
                callers=evidence.caller_evidence([]),
                metrics=(),
                **evidence.payment_evidence([], {}),
            ),
        ),
        fault_proof=tuple(evaluate(check, readings) for check in PLAN.fault_proof),
        expectations=tuple(evaluate(check, readings) for check in PLAN.expect),
        parts=(a_part(run).report().brief(),),
    )


def a_part(day: Run) -> Run:
    part = Run(PLAN, request("pair"), day=day)
    part.finish("REFUSED", "lever: Engaged.")
    return part


def ended(run: Run) -> Run:
    run.finish(*judge(run.whole(), payments_min=1))
    return run


def frozen(document: dict[str, Any], run_id: str) -> dict[str, Any]:
    """The document with fixed times and a fixed id."""

    def freeze(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        given = dict(fields)
        if "text" in given and "phase" in given:
            given["at_s"] = 6.0
        return given | {
            name: value
            for name, value in CHANGING.items()
            if given.get(name) is not None and not str(given[name]).startswith("pay_")
        }

    text = json.dumps(document).replace(run_id, "run_0")
    text = re.sub(r"Named [\d.]+ s after", "Named 0 s after", text)
    found: dict[str, Any] = json.loads(text, object_pairs_hook=freeze)
    return found


def golden(name: str) -> str:
    return (GOLDEN / name).read_text()


def as_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def test_report_of_a_drill_keeps_its_json():
    run = ended(a_drill())

    text = as_text(frozen(to_json(run.report()), run.id))

    assert text == golden("drill.json")


def test_report_of_a_blind_game_day_keeps_its_json():
    run = a_drill(is_blind=True)

    hidden = as_text(frozen(to_json(run.report()), run.id))
    run.answer(PLAN.name)
    revealed = as_text(frozen(to_json(ended(run).report()), run.id))

    assert hidden == golden("blind-hidden.json")
    assert revealed == golden("blind-revealed.json")


def test_stored_report_is_read_without_loss():
    stored = golden("drill.json")

    assert as_text(to_json(from_json(DrillReport, json.loads(stored)))) == stored


def test_markdown_and_junit_of_a_stored_drill_are_kept():
    stored = from_json(DrillReport, json.loads(golden("drill.json")))

    markdown, junit = report.markdown(stored), report.junit(stored) + "\n"

    assert markdown == golden("drill.md")
    assert junit == golden("drill.xml")
