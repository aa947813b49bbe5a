"""Begins, stops and finds drills: one at a time, each with its audit row."""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import replace
from typing import Any

from service.errors import Busy, NotFound, PreflightRefused, WrongState
from service.lab.drills.document import (
    DrillReport,
    FaultGuess,
    PreflightCheck,
    RunSummary,
    to_json,
)
from service.lab.drills.gameday import GameDay
from service.lab.drills.plan import Catalogue, Plan
from service.lab.drills.preflight import reasons
from service.lab.drills.run import DrillRequest, Run
from service.lab.drills.runner import DrillContext, Runner
from service.observability.metrics import catalogue as metrics
from service.payments.audit import Actor
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The number of runs in this process's memory; older ones are read from the database.
REMEMBERED = 20
WRITE_TIMEOUT_S = 10.0


class DrillRuns:
    """All drills of this ops plane. Safe in many threads."""

    def __init__(self, context: DrillContext, catalogue: Catalogue, *, default_scope: str) -> None:
        self.context = context
        self.catalogue = catalogue
        self.default_scope = default_scope
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._running: Run | None = None

    @property
    def running(self) -> Run | None:
        return self._running

    def preflight(self, request: DrillRequest, deadline: Deadline) -> list[PreflightCheck]:
        """The checks before a drill begins; changes nothing."""
        return self._preflight(self._plan_of(request), request, deadline)

    def _preflight(
        self, plan: Plan, request: DrillRequest, deadline: Deadline
    ) -> list[PreflightCheck]:
        parts = [self.catalogue[name] for name in plan.parts] or [plan]
        checks = self.context.preflight.check(parts[0], request.scope, deadline)
        free = self._running is None
        detail = "None runs here." if free else "Another drill is running."
        return [*checks, PreflightCheck("another_rehearsal", free, detail)]

    def begin(self, request: DrillRequest, deadline: Deadline) -> Run:
        """Start it in a new thread; raises PreflightRefused, or Busy without a database."""
        plan = self._plan_of(request)
        run = Run(plan, request)
        checks = self._preflight(plan, request, deadline)
        against = reasons(checks)
        if not against:
            # Close the runs of killed processes; the lease identifies live runs.
            self.context.store.close_lost(deadline)
            against = self._take(run, deadline)
        if against:
            self._refuse(request, against, deadline)
        run.set(preflight=tuple(checks))
        try:
            self.context.store.begin(run.report(), deadline, actor=request.actor)
        except BaseException:
            self._let_go(run)
            raise
        log.warning("rehearsal.started", extra=_log_fields(run))
        threading.Thread(
            target=self._carry_out, args=(run, request), name="rehearsal", daemon=True
        ).start()
        return run

    def stop_all(self, by: Actor, deadline: Deadline) -> list[str]:
        """Stop every run of this process; faults end within a second."""
        run = self._running
        if run is None:
            return []
        self.stop(run, by, deadline)
        return [run.id]

    def stop(self, run: Run, by: Actor, deadline: Deadline) -> None:
        run.stop(f"Stopped by {by.name}.")
        log.warning("rehearsal.stopped", extra={**_log_fields(run), "stopped_by": by.name})
        # The stop must not wait for a database whose failure may be the drill's fault.
        try:
            self.context.store.audit(by, "stopped", run.id, {}, deadline)
        except Busy as error:
            log.warning("rehearsal.audit_failed", extra={"run_id": run.id, "detail": error.detail})

    def find(self, run_id: str, deadline: Deadline) -> dict[str, Any]:
        """A run's report as JSON; raises NotFound."""
        run = self._runs.get(run_id)
        if run is not None:
            found: dict[str, Any] = to_json(run.report())
            return found
        stored = self.context.store.find(run_id, deadline)
        if stored is not None and stored["status"] == "running":
            # No run of this process: another instance has it, or its process was killed.
            self.context.store.close_lost(deadline)
            stored = self.context.store.find(run_id, deadline)
        if stored is None:
            raise NotFound("This drill does not exist.")
        return stored

    def live(self, run_id: str) -> Run:
        """A run of this process that has not ended; raises NotFound, WrongState."""
        run = self._runs.get(run_id)
        if run is None:
            raise NotFound("This drill does not exist on this instance.")
        if run.ended.is_set():
            raise WrongState("The drill has ended.")
        return run

    def recent(self, deadline: Deadline, limit: int = 20) -> list[RunSummary]:
        """The newest runs of all instances."""
        stored = self.context.store.recent(limit, deadline)
        live = {run.id: run.report().brief() for run in list(self._runs.values())}
        if any(one.status == "running" and one.id not in live for one in stored):
            # A run of another instance or of a killed process; consoles poll, and mostly there is none.
            self.context.store.close_lost(deadline)
            stored = self.context.store.recent(limit, deadline)
        return [live.get(one.id, one) for one in stored]

    def name_fault(self, run: Run, name: str) -> FaultGuess:
        """Record a guess at the fault of a blind game day."""
        if not run.is_hidden:
            raise WrongState("This run is not a blind game day.")
        if name not in self.catalogue:
            raise NotFound(f"A drill of that name does not exist: {', '.join(self.catalogue)}.")
        return run.answer(name)

    def _plan_of(self, request: DrillRequest) -> Plan:
        plan = self.catalogue.get(request.name)
        if plan is None:
            raise NotFound(f"A drill of that name does not exist: {', '.join(self.catalogue)}.")
        if request.blind:
            plan = self._chosen_blindly(plan, request)
        return self._lasting(plan, request)

    def _chosen_blindly(self, day: Plan, request: DrillRequest) -> Plan:
        """One drill of the day that the scope allows, long enough to be identified."""
        if not day.parts:
            raise WrongState("Only a game day can be blind.")
        parts = [self.catalogue[name] for name in day.parts]
        allowed = [part for part in parts if request.scope in part.scopes]
        if not allowed:
            raise WrongState(f"No drill of the day has the scope {request.scope}.")
        chosen = random.SystemRandom().choice(allowed)
        return chosen.lasting(max(chosen.fault_s, day.blind_fault_s))

    @staticmethod
    def _lasting(plan: Plan, request: DrillRequest) -> Plan:
        if request.fault_s is not None and plan.steps:
            plan = plan.lasting(request.fault_s)
        return replace(plan, load_per_s=request.load_per_s or plan.load_per_s)

    def _take(self, run: Run, deadline: Deadline) -> list[str]:
        """Make the run the only one, here and on all instances; returns the reasons against it."""
        with self._lock:
            if self._running is not None:
                return ["another_rehearsal: Another drill is running."]
            self._running = run
        try:
            has_lease = self.context.store.take_lease(run.id, deadline)
        except BaseException:
            self._running = None
            raise
        if not has_lease:
            self._running = None
            return ["another_rehearsal: A drill is running on another instance."]
        self._runs[run.id] = run
        while len(self._runs) > REMEMBERED:
            del self._runs[next(iter(self._runs))]
        return []

    def _let_go(self, run: Run) -> None:
        try:
            self.context.store.end_lease(run.id, Deadline.after(WRITE_TIMEOUT_S))
        except Busy as error:
            log.warning("rehearsal.lease_kept", extra={"run_id": run.id, "detail": error.detail})
        self._running = None

    def _refuse(self, request: DrillRequest, against: list[str], deadline: Deadline) -> None:
        detail = {
            "kind": request.kind,
            "name": request.name,
            "scope": request.scope,
            "reasons": against,
        }
        log.warning(
            "rehearsal.refused",
            extra={
                "kind": request.kind,
                "rehearsal": request.name,
                "scope": request.scope,
                "reasons": against,
                "requested_by": request.requested_by,
            },
        )
        if request.kind == "drill":
            metrics.drill_runs_total.labels(request.name, "refused").inc()
        try:
            actor = request.actor or Actor("api_key", request.requested_by)
            self.context.store.audit(actor, "refused", None, detail, deadline)
        except Busy as error:
            log.warning("rehearsal.audit_failed", extra={"detail": error.detail})
        raise PreflightRefused(against)

    def _carry_out(self, run: Run, request: DrillRequest) -> None:
        try:
            if run.plan.parts:
                plans = [self._lasting(self.catalogue[name], request) for name in run.plan.parts]
                GameDay(run=run, context=self.context, plans=plans, kept=self._keep).play()
            else:
                Runner(run, self.context).carry_out()
        finally:
            report = run.report()
            if request.kind == "drill":
                verdict = str(report.verdict).lower()
                metrics.drill_runs_total.labels(request.name, verdict).inc()
            log.warning(
                "rehearsal.ended",
                extra={
                    **_log_fields(run),
                    "verdict": report.verdict,
                    "summary": report.summary,
                },
            )
            self._write_down(report)
            self._let_go(run)
            run.ended.set()

    def _keep(self, part: Run) -> None:
        """Store the run of a game day's drill at its beginning and end, as any other run."""
        self._runs[part.id] = part
        report = part.whole()
        if report.verdict is not None:
            self._write_down(report)
            return
        try:
            self.context.store.begin(report, Deadline.after(WRITE_TIMEOUT_S))
        except Busy as error:
            log.warning("rehearsal.not_kept", extra={"run_id": part.id, "detail": error.detail})

    def _write_down(self, report: DrillReport) -> None:
        deadline = Deadline.after(WRITE_TIMEOUT_S)
        while True:
            try:
                self.context.store.end(report, deadline)
                return
            except Busy as error:
                if deadline.expired:
                    detail = {"run_id": report.id, "detail": error.detail}
                    log.error("rehearsal.report_lost", extra=detail)
                    return
                threading.Event().wait(0.5)
            except Exception:
                # A report that cannot be stored must not block all later runs.
                log.exception("rehearsal.report_lost", extra={"run_id": report.id})
                return


def _log_fields(run: Run) -> dict[str, Any]:
    report = run.report()
    # `logging` reserves the field `name`.
    return {
        "run_id": run.id,
        "rehearsal": report.name,
        "kind": report.kind,
        "scope": report.scope,
        "reason": report.reason,
        "requested_by": report.requested_by,
    }
