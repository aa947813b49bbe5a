"""The report of one drill, which grows while the drill runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from service.lab.drills.document import (
    DrillReport,
    FaultGuess,
    FaultPeriod,
    ProgressStep,
    TargetSecond,
    TimelineSecond,
)
from service.lab.drills.plan import GAME_DAY, Plan
from service.lab.drills.store import moment, new_run_id
from service.payments.audit import Actor

# One line a minute would be enough for an hour; the longest run lasts this many seconds.
TIMELINE_MAX = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillRequest:
    """A request for a drill."""

    name: str
    kind: str
    scope: str
    reason: str
    requested_by: str
    # For the audit log, with address and request id; without it only the name is known.
    actor: Actor | None = None
    fault_s: float | None = None
    load_per_s: int | None = None
    blind: bool = False


class Run:
    """The state of a run: its runner writes it, any thread may read it."""

    def __init__(self, plan: Plan, request: DrillRequest, *, day: Run | None = None) -> None:
        self.id = new_run_id()
        self.plan = plan
        self.scope = request.scope
        self.began_at = datetime.now(UTC)
        self.began_s = monotonic()
        self.requested_by = request.requested_by
        self.ended = threading.Event()
        # A game day and its current drill share one stop: stopping either stops both.
        self.stopping: threading.Event = day.stopping if day else threading.Event()
        # The holder of the lease that admits one drill at a time.
        self.lease_id = day.id if day else self.id
        self.stop_reason: str | None = None
        self._lock = threading.Lock()
        self._fault_began_s: float | None = None
        self._fault_until_s: float | None = None
        # A blind fault stays hidden until a correct guess or the end.
        self._hidden = request.blind
        self._report = DrillReport(
            id=self.id,
            kind=request.kind,
            name=plan.name,
            title=plan.title,
            scope=request.scope,
            reason=request.reason,
            requested_by=request.requested_by,
            ttl_s=round(plan.fault_s, 1),
            load_rps=plan.load_per_s,
            started_at=moment(self.began_at),
            hypothesis=plan.hypothesis,
            runbook=plan.runbook,
            answers=() if request.blind else None,
        )

    @property
    def at_s(self) -> float:
        """Seconds since it began."""
        return round(monotonic() - self.began_s, 2)

    def set(self, **fields: Any) -> None:
        """Replace fields of the report."""
        with self._lock:
            self._report = replace(self._report, **fields)

    def enter(self, phase: str, text: str) -> None:
        """Begin a phase, and record a line about it."""
        self.set(phase=phase)
        self.tell(text)

    def tell(self, text: str) -> None:
        with self._lock:
            step = ProgressStep(at_s=self.at_s, phase=self._report.phase, text=text)
            self._report = replace(self._report, progress=(*self._report.progress, step))

    @contextlib.contextmanager
    def fault(self, text: str) -> Iterator[None]:
        """One fault is active for the duration of the block; the faults of a run do not overlap."""
        earlier, fault = self._report.faults, FaultPeriod(text=text, from_s=self.at_s, to_s=None)
        self.set(faults=(*earlier, fault))
        try:
            yield
        finally:
            self.set(faults=(*earlier, replace(fault, to_s=self.at_s)))

    def begin_fault(self, seconds: float) -> None:
        self._fault_began_s = monotonic()
        self._fault_until_s = self._fault_began_s + seconds
        self.set(fault_began_at=moment(datetime.now(UTC)))

    def end_fault(self) -> None:
        if self._fault_until_s is not None and self._report.fault_ended_at is None:
            self.set(fault_ended_at=moment(datetime.now(UTC)))
        self._fault_until_s = None

    def add_second(self, at_s: float, targets: Mapping[str, TargetSecond]) -> None:
        with self._lock:
            report = self._report
            second = TimelineSecond(at_s=at_s, targets=targets, phase=report.phase)
            if len(report.timeline) < TIMELINE_MAX:
                self._report = replace(report, timeline=(*report.timeline, second))

    def stop(self, reason: str) -> None:
        """Ask the run to end; faults are cleared, and payments already sent are settled."""
        self.stop_reason = self.stop_reason or reason
        self.stopping.set()

    def finish(self, verdict: str, summary: str) -> None:
        self._hidden = False
        self.set(
            status="ended",
            phase="ended",
            verdict=verdict,
            summary=summary + _named(self._report.answers),
            ended_at=moment(datetime.now(UTC)),
            elapsed_s=self.at_s,
            fault_left_s=None,
        )

    def answer(self, name: str) -> FaultGuess:
        """Record a guess at the fault of a blind game day; the first correct guess reveals it."""
        began_s = self._fault_began_s
        after_s = None if began_s is None else round(monotonic() - began_s, 1)
        guess = FaultGuess(name=name, right=name == self.plan.name, after_s=after_s)
        with self._lock:
            answers = (*(self._report.answers or ()), guess)
            self._report = replace(self._report, answers=answers)
        if guess.right:
            self._hidden = False
        self.tell(f"Somebody named {name}: {'right' if guess.right else 'wrong'}")
        return guess

    @property
    def is_hidden(self) -> bool:
        return self._hidden

    @property
    def phase(self) -> str:
        return self._report.phase

    def report(self) -> DrillReport:
        """The report as of now, without the secrets of a blind game day."""
        return _hide(self.whole()) if self._hidden else self.whole()

    def whole(self) -> DrillReport:
        """The complete report, for readers inside the service."""
        report, until_s = self._report, self._fault_until_s
        if report.status != "running":
            return report
        left_s = None if until_s is None else round(max(0.0, until_s - monotonic()), 1)
        return replace(report, elapsed_s=self.at_s, fault_left_s=left_s)


def _named(answers: tuple[FaultGuess, ...] | None) -> str:
    """The guesses of a blind game day as a sentence."""
    if answers is None:
        return ""
    right = next((answer for answer in answers if answer.right), None)
    wrong = f", {sum(not one.right for one in answers)} wrong answers" if answers else ""
    if right is None:
        return f" The fault was not named{wrong}."
    after_s = right.after_s
    when = "before it began" if after_s is None else f"{after_s:g} s after it began"
    return f" Named {when}{wrong}."


def _hide(report: DrillReport) -> DrillReport:
    """Hide every field of a blind game day that names the fault, its length and load too."""
    return replace(
        report,
        name=GAME_DAY,
        title="A blind game day",
        runbook=None,
        ttl_s=None,
        load_rps=None,
        fault_left_s=None,
        fault_proof=(),
        expectations=(),
        preflight=(),
        faults=(),
        targets=(),
        hypothesis="One fault is injected on purpose: find it, and name it.",
        answers=tuple(replace(answer, right=False) for answer in report.answers or ()),
        # Keep the number of lines, for readers that continue at an offset.
        progress=tuple(replace(step, text="(hidden)") for step in report.progress),
        timeline=tuple(
            replace(
                second,
                targets={n: replace(one, injections=None) for n, one in second.targets.items()},
            )
            for second in report.timeline
        ),
    )
