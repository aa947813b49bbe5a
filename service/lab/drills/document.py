"""The report of one drill: its parts as frozen dataclasses, and their JSON.

A field's JSON name is public; where the code uses a newer word, the alias keeps the public one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

# Whole numbers of a plan stay whole in the JSON.
Number = float | int
Kind = TypeVar("Kind")


def _is_none(value: object) -> bool:
    return value is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressStep:
    """One line about what happened."""

    at_s: Number
    phase: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPeriod:
    """One fault, with the seconds at which it began and ended; `to_s` None: still active."""

    text: str
    from_s: Number
    to_s: Number | None


@dataclass(frozen=True, slots=True)
class PreflightCheck:
    """One check before the start; a failed one refuses the drill."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillCheckResult:
    """A check of the plan with its measured value; a number that cannot be measured is None."""

    text: str
    promql: str = ""
    value: Number | None
    # The value without a fault; a bound that is violated there too proves nothing about the fault.
    reference: Number | None = None
    min: Number | None
    max: Number | None
    during: str = "all"
    # Measures of time fail on an overloaded machine just as they do on a broken service.
    is_of_time: bool = False
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleResult:
    """A rule about money; `violations` is None where it could not be checked, and it is not kept."""

    book: str
    rule: str
    violations: int | None
    ok: bool


def rule_result(book: str, rule: str, violations: int | None) -> RuleResult:
    return RuleResult(book=book, rule=rule, violations=violations, ok=violations == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSample:
    """One payment as its caller saw it; `status` is None where no answer came."""

    at_s: Number
    ms: Number
    status: int | None
    code: str | None
    outcome: str | None
    payment_id: str | None
    is_retry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerFigures:
    """The answers that the callers of one target received, and their waiting times by quantile."""

    count: int
    by_status: Mapping[str, int]
    by_code: Mapping[str, int]
    by_outcome: Mapping[str, int]
    ms: Mapping[str, Number | None]
    samples: tuple[CallSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChange:
    """A counter that changed during the run."""

    name: str
    labels: Mapping[str, str]
    before: Number
    after: Number
    delta: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillPayment:
    """A payment of the run in our books; `charges` counts the provider's records of it."""

    id: str
    status: str
    amount: int
    currency: str
    provider_ref: str | None
    charges: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEvidence:
    """Everything that the run recorded of one target."""

    name: str
    incident: str | None
    log_events: tuple[Mapping[str, Any], ...]
    log_events_count: int
    exception_chains: tuple[tuple[str, ...], ...]
    # The reason why there are no events.
    note: Annotated[str | None, Field(exclude_if=_is_none)] = None
    callers: CallerFigures
    metrics: tuple[MetricChange, ...]
    payments: tuple[DrillPayment, ...]
    payments_by_status: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSecond:
    """One second of one target, for the charts."""

    sent: int
    answered: int
    succeeded: int
    failed: int
    unknown: int
    queued: int
    ms_max: Number | None
    pool_in_use: Number | None
    pool_waiting: Number | None
    breaker: str | None
    # None: hidden in a blind game day.
    injections: Annotated[int | None, Field(alias="struck", exclude_if=_is_none)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSecond:
    """One second of all targets, by name."""

    at_s: Number
    targets: Annotated[Mapping[str, TargetSecond], Field(alias="sides")]
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultGuess:
    """A guess at the fault of a blind game day; `after_s` is None before the fault began."""

    name: str
    right: bool
    after_s: Number | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The fields of a run that a list shows."""

    id: str
    kind: str
    name: str
    title: str
    scope: str
    status: str
    phase: str
    verdict: str | None
    summary: str | None
    started_at: str | None
    ended_at: str | None
    reason: str
    requested_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport:
    """The report of one drill, at one moment of its run or at its end."""

    id: str
    kind: str
    name: str
    title: str
    scope: str
    status: str = "running"
    phase: str = "starting"
    verdict: str | None = None
    summary: str | None = None
    reason: str
    requested_by: str
    ttl_s: Number | None
    load_rps: Number | None
    started_at: str | None
    fault_began_at: str | None = None
    fault_ended_at: str | None = None
    ended_at: str | None = None
    elapsed_s: Number = 0.0
    fault_left_s: Number | None = None
    faults: tuple[FaultPeriod, ...] = ()
    hypothesis: str
    runbook: str | None
    progress: tuple[ProgressStep, ...] = ()
    preflight: tuple[PreflightCheck, ...] = ()
    targets: Annotated[tuple[TargetEvidence, ...], Field(alias="sides")] = ()
    timeline: tuple[TimelineSecond, ...] = ()
    fault_proof: Annotated[tuple[DrillCheckResult, ...], Field(alias="bite")] = ()
    expectations: tuple[DrillCheckResult, ...] = ()
    invariants: tuple[RuleResult, ...] = ()
    parts: tuple[RunSummary, ...] = ()
    # The guesses at the fault of a blind game day; None: the run is not blind.
    answers: tuple[FaultGuess, ...] | None = None

    def brief(self) -> RunSummary:
        """The fields that a list shows."""
        return RunSummary(**{field.name: getattr(self, field.name) for field in fields(RunSummary)})


# The parts that leave this process alone, in an answer or in the database.
_ADAPTERS: Mapping[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (DrillReport, RunSummary, PreflightCheck, FaultGuess)
}


def to_json(part: Any) -> Any:
    """A part of a report as JSON values, under its public names."""
    return _ADAPTERS[type(part)].dump_python(part, mode="json", by_alias=True)


def from_json(kind: type[Kind], found: Mapping[str, Any]) -> Kind:
    """The part of a report in stored JSON; unknown fields are ignored. Raises ValueError."""
    part: Kind = _ADAPTERS[kind].validate_python(found)
    return part
