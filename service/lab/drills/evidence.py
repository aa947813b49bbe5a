"""Evidence: the log events, answers, counters and payments of each target during the fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.ids import payment_id_text
from service.lab.drills.books import Charges, Row
from service.lab.drills.document import CallerFigures, DrillPayment, MetricChange
from service.lab.drills.expectations import Samples
from service.lab.drills.load import Call
from service.lab.drills.targets import LogTail
from service.observability.metrics.catalogue import NAMESPACE

# Enough to read; the counts beside the events are complete.
EVENTS_MAX = 40
CHAINS_MAX = 5
CALLS_MAX = 400
PAYMENTS_MAX = 200
METRICS_MAX = 80
# Events without a request id of ours that explain the result of a request.
_TELLING = ("breaker.", "db.", "provider.", "pool.")


def log_evidence(log: LogTail | None, run_id: str) -> dict[str, Any]:
    """The log events of the run's own requests, and the errors behind them."""
    if log is None:
        return {
            "incident": None,
            "log_events": (),
            "log_events_count": 0,
            "exception_chains": (),
            "note": "This instance's log goes to standard output: look where it is collected.",
        }
    ours = [event for event in log.events() if _is_ours(event, run_id)]
    errors = [event for event in ours if event.get("level") == "ERROR"]
    # Every kind of event appears once before any kind appears twice.
    shown = _kinds_first([*errors, *(event for event in ours if event not in errors)], EVENTS_MAX)
    chains = []
    for event in errors:
        chain = tuple(event.get("error_chain") or ())
        if chain and chain not in chains:
            chains.append(chain)
    words = [_words(event) for event in errors]
    return {
        "incident": next((word for word in words if word), None),
        "log_events": tuple(sorted(shown, key=lambda event: str(event.get("timestamp")))),
        "log_events_count": len(ours),
        "exception_chains": tuple(
            _kinds_first(chains, CHAINS_MAX, key=lambda chain: chain[0][:60])
        ),
    }


def _is_ours(event: Mapping[str, Any], run_id: str) -> bool:
    request_id = event.get("request_id")
    if isinstance(request_id, str):
        return request_id.startswith(run_id)
    return str(event.get("event", "")).startswith(_TELLING)


def _words(event: Mapping[str, Any]) -> str | None:
    """The event in the incident's wording, with the level that the log gave it at the time."""
    words = event.get("incident") or (
        event.get("error") if event.get("event") == "db.pool_exhausted" else None
    )
    if not isinstance(words, str):
        return None
    # The line of the stack trace had no level.
    return words if words.startswith("...") else f"[{event.get('level')}] {words}"


def _kinds_first(things: Sequence[Any], most: int, key: Any = None) -> list[Any]:
    kind_of = key or (lambda event: (event.get("event"), event.get("error")))
    seen: Counter[Any] = Counter()
    ranked = []
    for position, thing in enumerate(things):
        kind = kind_of(thing)
        ranked.append((seen[kind], position, thing))
        seen[kind] += 1
    return [thing for _, _, thing in sorted(ranked, key=lambda one: one[:2])[:most]]


def caller_evidence(calls: Sequence[Call]) -> CallerFigures:
    """The answers that callers received, and their waiting times."""
    times = sorted(call.ms for call in calls)
    return CallerFigures(
        count=len(calls),
        by_status=_counted(str(call.status or "no_answer") for call in calls),
        by_code=_counted(call.code for call in calls if call.code),
        by_outcome=_counted(call.outcome for call in calls if call.outcome),
        ms={
            "p50": _quantile(times, 0.5),
            "p95": _quantile(times, 0.95),
            "p99": _quantile(times, 0.99),
            "max": times[-1] if times else None,
        },
        samples=tuple(call.sample() for call in sorted(calls, key=lambda c: c.at_s)[:CALLS_MAX]),
    )


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _quantile(times: Sequence[float], q: float) -> float | None:
    return times[min(len(times) - 1, int(q * len(times)))] if times else None


def metric_evidence(before: Samples, after: Samples) -> tuple[MetricChange, ...]:
    """Every counter that changed, before and after."""
    moved = []
    for (name, labels), value in sorted(after.items()):
        if not name.startswith(NAMESPACE) or not name.endswith("_total"):
            continue
        earlier = before.get((name, labels), 0.0)
        if value != earlier:
            moved.append(
                MetricChange(
                    name=name,
                    labels=dict(labels),
                    before=earlier,
                    after=value,
                    delta=value - earlier,
                )
            )
    return tuple(moved[:METRICS_MAX])


def payment_evidence(rows: Sequence[Row], charges: Charges) -> dict[str, Any]:
    """The payments with their final states and the provider's records of each."""
    return {
        "payments": tuple(
            DrillPayment(
                id=payment_id_text(row[0]),
                status=row[1],
                amount=row[2],
                currency=row[3],
                provider_ref=row[4],
                charges=len(charges.get(payment_id_text(row[0]), [])),
            )
            for row in rows[:PAYMENTS_MAX]
        ),
        "payments_by_status": _counted(row[1] for row in rows),
    }
