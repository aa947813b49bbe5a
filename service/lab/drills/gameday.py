"""A game day: every drill in turn, each a separate run with a separate report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from service.errors import Busy
from service.lab.drills.plan import Plan
from service.lab.drills.preflight import reasons
from service.lab.drills.run import DrillRequest, Run
from service.lab.drills.runner import DrillContext, Runner
from service.lab.drills.verdict import judge_day
from service.observability.metrics import catalogue as metrics
from service.resilience.deadline import Deadline

PREFLIGHT_TIMEOUT_S = 10.0
# Effects of the previous drill settle within this time; their gauges are read every 5 s.
CALM_WITHIN_S = 15.0
LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class GameDay:
    """Plays the day of `run` in the calling thread. `kept` receives each drill's run at its
    beginning and at its end."""

    run: Run
    context: DrillContext
    plans: list[Plan]
    kept: Callable[[Run], None]

    def play(self) -> None:
        """Play all drills, or until a stop: a stop of one drill stops the day."""
        verdicts: list[str] = []
        stopped = None
        for plan in self.plans:
            part = self._part(plan)
            summary = part.report().brief()
            verdicts.append(str(summary.verdict))
            self.run.set(parts=(*self.run.whole().parts, summary))
            self.run.tell(f"{plan.name}: {summary.verdict}. {summary.summary}")
            if self.run.stopping.is_set():
                stopped = self.run.stop_reason or part.stop_reason or "The run was stopped."
                break
        self.run.finish(*judge_day(verdicts, stopped=stopped))

    def _part(self, plan: Plan) -> Run:
        day = self.run
        request = DrillRequest(
            name=plan.name,
            kind="drill",
            scope=day.scope,
            reason=f"{day.plan.name} {day.id}",
            requested_by=day.requested_by,
        )
        part = Run(plan, request, day=day)
        day.enter("fault", f"{plan.name}: {plan.title}")
        self.kept(part)
        against = self._against(plan)
        if against:
            part.finish("REFUSED", against[0])
        else:
            Runner(part, self.context).carry_out()
        self.kept(part)
        part.ended.set()
        metrics.drill_runs_total.labels(plan.name, str(part.whole().verdict).lower()).inc()
        return part

    def _against(self, plan: Plan) -> list[str]:
        """The reasons against a start, after the effects of the previous drill had time to settle."""
        give_up_at_s = monotonic() + CALM_WITHIN_S
        while True:
            deadline = Deadline.after(PREFLIGHT_TIMEOUT_S)
            try:
                against = reasons(self.context.preflight.check(plan, self.run.scope, deadline))
            except Busy as error:
                # The previous drill may have faulted the database, so wait for its recovery.
                against = [f"database: {error.detail}"]
            if not against or monotonic() > give_up_at_s or self.run.stopping.wait(LOOK_AGAIN_S):
                return against
