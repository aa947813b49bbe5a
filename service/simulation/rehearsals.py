"""Begins, stops and finds rehearsals: one at a time, each with its audit row."""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import dataclass, replace
from typing import Any

from service.errors import Busy, NotFound, PreflightRefused, WrongState
from service.observability import metrics
from service.payments.audit import Actor
from service.resilience.deadline import Deadline
from service.simulation.gameday import GameDay
from service.simulation.plan import Catalogue, Plan
from service.simulation.preflight import reasons
from service.simulation.run import Run, summary_of
from service.simulation.runner import Runner, Surroundings

log = logging.getLogger(__name__)

# What this process remembers whole; older ones are read from the database.
REMEMBERED = 20
WRITE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody wants rehearsed."""

    name: str
    kind: str
    scope: str
    reason: str
    requested_by: str
    # For the audit log: with the address and the request; without it the name alone is known.
    actor: Actor | None = None
    fault_s: float | None = None
    load_per_s: int | None = None
    blind: bool = False


class Rehearsals:
    """All rehearsals of this ops plane. Safe in many threads."""

    def __init__(self, around: Surroundings, catalogue: Catalogue, *, default_scope: str) -> None:
        self.around = around
        self.catalogue = catalogue
        self.default_scope = default_scope
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._running: Run | None = None

    @property
    def running(self) -> Run | None:
        return self._running

    def preflight(self, wish: Wish, deadline: Deadline) -> list[dict[str, Any]]:
        """What is looked at before it begins; changes nothing."""
        return self._preflight(self._plan_of(wish), wish, deadline)

    def _preflight(self, plan: Plan, wish: Wish, deadline: Deadline) -> list[dict[str, Any]]:
        parts = [self.catalogue[name] for name in plan.parts] or [plan]
        checks = self.around.preflight.check(parts[0], wish.scope, deadline)
        free = self._running is None
        found = {"name": "another_rehearsal", "ok": free, "detail": "None runs here."}
        if not free:
            found["detail"] = "Another rehearsal runs."
        return [*checks, found]

    def begin(self, wish: Wish, deadline: Deadline) -> Run:
        """Start it in a thread of its own; raises PreflightRefused, or Busy without a database."""
        plan = self._plan_of(wish)
        run = Run(
            plan,
            kind=wish.kind,
            scope=wish.scope,
            reason=wish.reason,
            requested_by=wish.requested_by,
            load_per_s=wish.load_per_s or plan.load_per_s,
            is_blind=wish.blind,
        )
        checks = self._preflight(plan, wish, deadline)
        against = reasons(checks)
        if not against:
            # Of a process that was killed; a run that lives is known by its lease.
            self.around.store.close_lost(deadline)
            against = self._take(run, deadline)
        if against:
            self._refuse(wish, against, deadline)
        run.set(preflight=checks)
        try:
            self.around.store.begin(run.document(), deadline, actor=wish.actor)
        except BaseException:
            self._let_go(run)
            raise
        log.warning("rehearsal.started", extra=_told(run))
        threading.Thread(
            target=self._carry_out, args=(run, wish), name="rehearsal", daemon=True
        ).start()
        return run

    def stop_all(self, by: Actor, deadline: Deadline) -> list[str]:
        """Stop whatever runs here; faults end within a second."""
        run = self._running
        if run is None:
            return []
        self.stop(run, by, deadline)
        return [run.id]

    def stop(self, run: Run, by: Actor, deadline: Deadline) -> None:
        run.stop(f"Stopped by {by.name}.")
        log.warning("rehearsal.stopped", extra={**_told(run), "stopped_by": by.name})
        # The stop itself must not wait for a database that may be what is being rehearsed.
        try:
            self.around.store.audit(by, "stopped", run.id, {}, deadline)
        except Busy as error:
            log.warning("rehearsal.audit_failed", extra={"run_id": run.id, "detail": error.detail})

    def find(self, run_id: str, deadline: Deadline) -> dict[str, Any]:
        """A run's document; raises NotFound."""
        run = self._runs.get(run_id)
        document = run.document() if run else self.around.store.find(run_id, deadline)
        if run is None and document is not None and document["status"] == "running":
            # Here it does not run: elsewhere, or nowhere any more.
            self.around.store.close_lost(deadline)
            document = self.around.store.find(run_id, deadline)
        if document is None:
            raise NotFound("There is no such rehearsal.")
        return document

    def live(self, run_id: str) -> Run:
        """A run of this process that has not ended; raises NotFound, WrongState."""
        run = self._runs.get(run_id)
        if run is None:
            raise NotFound("There is no such rehearsal here.")
        if run.ended.is_set():
            raise WrongState("The rehearsal has ended.")
        return run

    def recent(self, deadline: Deadline, limit: int = 20) -> list[dict[str, Any]]:
        """The newest, of whatever instance."""
        documents = self.around.store.recent(limit, deadline)
        live = {run.id: run.summary() for run in list(self._runs.values())}
        if any(one["status"] == "running" and one["id"] not in live for one in documents):
            # Elsewhere, or nowhere any more; consoles ask often, and mostly there is none.
            self.around.store.close_lost(deadline)
            documents = self.around.store.recent(limit, deadline)
        return [live.get(document["id"]) or summary_of(document) for document in documents]

    def name_fault(self, run: Run, name: str) -> dict[str, Any]:
        """Somebody says which fault a blind game day chose."""
        if not run.is_hidden:
            raise WrongState("There is nothing to be named.")
        if name not in self.catalogue:
            raise NotFound(f"There is no drill of that name: {', '.join(self.catalogue)}.")
        return run.answer(name)

    def _plan_of(self, wish: Wish) -> Plan:
        plan = self.catalogue.get(wish.name)
        if plan is None:
            raise NotFound(f"There is no drill of that name: {', '.join(self.catalogue)}.")
        if wish.blind:
            plan = self._chosen_blindly(plan, wish)
        return self._lasting(plan, wish)

    def _chosen_blindly(self, day: Plan, wish: Wish) -> Plan:
        """One drill of the day that the scope allows; long enough for somebody to find it out."""
        if not day.parts:
            raise WrongState("Only a game day can be blind.")
        parts = [self.catalogue[name] for name in day.parts]
        allowed = [part for part in parts if wish.scope in part.scopes]
        if not allowed:
            raise WrongState(f"No drill of the day has the scope {wish.scope}.")
        chosen = random.SystemRandom().choice(allowed)
        return chosen.lasting(max(chosen.fault_s, day.blind_fault_s))

    @staticmethod
    def _lasting(plan: Plan, wish: Wish) -> Plan:
        if wish.fault_s is not None and plan.steps:
            plan = plan.lasting(wish.fault_s)
        return replace(plan, load_per_s=wish.load_per_s or plan.load_per_s)

    def _take(self, run: Run, deadline: Deadline) -> list[str]:
        """Have the run be the only one, here and everywhere; what is against it."""
        with self._lock:
            if self._running is not None:
                return ["another_rehearsal: Another rehearsal runs."]
            self._running = run
        try:
            has_lease = self.around.store.take_lease(run.id, deadline)
        except BaseException:
            self._running = None
            raise
        if not has_lease:
            self._running = None
            return ["another_rehearsal: One runs on another instance."]
        self._runs[run.id] = run
        while len(self._runs) > REMEMBERED:
            del self._runs[next(iter(self._runs))]
        return []

    def _let_go(self, run: Run) -> None:
        try:
            self.around.store.end_lease(run.id, Deadline.after(WRITE_TIMEOUT_S))
        except Busy as error:
            log.warning("rehearsal.lease_kept", extra={"run_id": run.id, "detail": error.detail})
        self._running = None

    def _refuse(self, wish: Wish, against: list[str], deadline: Deadline) -> None:
        detail = {"kind": wish.kind, "name": wish.name, "scope": wish.scope, "reasons": against}
        log.warning(
            "rehearsal.refused",
            extra={
                "kind": wish.kind,
                "rehearsal": wish.name,
                "scope": wish.scope,
                "reasons": against,
                "requested_by": wish.requested_by,
            },
        )
        if wish.kind == "drill":
            metrics.drill_runs_total.labels(wish.name, "refused").inc()
        try:
            actor = wish.actor or Actor("api_key", wish.requested_by)
            self.around.store.audit(actor, "refused", None, detail, deadline)
        except Busy as error:
            log.warning("rehearsal.audit_failed", extra={"detail": error.detail})
        raise PreflightRefused(against)

    def _carry_out(self, run: Run, wish: Wish) -> None:
        try:
            if run.plan.parts:
                plans = [self._lasting(self.catalogue[name], wish) for name in run.plan.parts]
                GameDay(run=run, around=self.around, plans=plans, kept=self._keep).play()
            else:
                load_per_s = wish.load_per_s or run.plan.load_per_s
                Runner(run, self.around, load_per_s=load_per_s).carry_out()
        finally:
            document = run.document()
            if wish.kind == "drill":
                verdict = str(document["verdict"]).lower()
                metrics.drill_runs_total.labels(wish.name, verdict).inc()
            log.warning(
                "rehearsal.ended",
                extra={
                    **_told(run),
                    "verdict": document["verdict"],
                    "summary": document["summary"],
                },
            )
            self._write_down(document)
            self._let_go(run)
            run.ended.set()

    def _keep(self, part: Run) -> None:
        """A drill of a game day begins or has ended: it is found and kept as any other."""
        self._runs[part.id] = part
        document = part.whole()
        if document["verdict"] is not None:
            self._write_down(document)
            return
        try:
            self.around.store.begin(document, Deadline.after(WRITE_TIMEOUT_S))
        except Busy as error:
            log.warning("rehearsal.not_kept", extra={"run_id": part.id, "detail": error.detail})

    def _write_down(self, document: dict[str, Any]) -> None:
        deadline = Deadline.after(WRITE_TIMEOUT_S)
        while True:
            try:
                self.around.store.end(document, deadline)
                return
            except Busy as error:
                if deadline.expired:
                    detail = {"run_id": document["id"], "detail": error.detail}
                    log.error("rehearsal.report_lost", extra=detail)
                    return
                threading.Event().wait(0.5)
            except Exception:
                # A report that cannot be stored must not keep all later ones from beginning.
                log.exception("rehearsal.report_lost", extra={"run_id": document["id"]})
                return


def _told(run: Run) -> dict[str, Any]:
    document = run.document()
    fields = ("kind", "scope", "reason", "requested_by")
    # `name` is the logger's own.
    return {
        "run_id": run.id,
        "rehearsal": document["name"],
        **{field: document[field] for field in fields},
    }
