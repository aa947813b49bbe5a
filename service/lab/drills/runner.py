"""A drill from its first second to its verdict: baseline, fault, recovery, settling, books."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep

from service.errors import Busy
from service.lab.drills import books, evidence
from service.lab.drills.document import RuleResult, TargetEvidence, rule_result
from service.lab.drills.expectations import evaluate
from service.lab.drills.injector import Aborted, FaultInjector, Inconclusive
from service.lab.drills.load import Call, Load
from service.lab.drills.losses import LocalDatabase
from service.lab.drills.lost_commits import LostCommits
from service.lab.drills.plan import SIMULATIONS, Plan
from service.lab.drills.preflight import Preflight
from service.lab.drills.run import Run
from service.lab.drills.sandbox import Sandbox
from service.lab.drills.store import DrillStore
from service.lab.drills.targets import CannotStart, Target
from service.lab.drills.verdict import judge, recovery_s
from service.lab.drills.watch import RunWatch
from service.lab.drills.webhooks import WebhookDisorder
from service.lab.faultproxy.client import FaultRefused, ProxyGone
from service.observability.metrics import catalogue as metrics
from service.payments.merchants import DRILL_MERCHANT_ID, KeyStore
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

DATABASE_TIMEOUT_S = 4.0
LISTING_TIMEOUT_S = 20.0
# The comparison of the books follows, and no other work waits.
SETTLING_EVERY_S = 0.25
KEY_LIFETIME = timedelta(minutes=20)


@dataclass(frozen=True, kw_only=True)
class DrillContext:
    """The parts that every drill of this ops plane needs."""

    store: DrillStore
    keys: KeyStore
    preflight: Preflight
    # Keyed by scope.
    targets: dict[str, Callable[[], AbstractContextManager[list[Target]]]]
    list_charges: books.ListCharges
    standing_rules: Callable[[Deadline], list[RuleResult]]
    sandbox: Sandbox | None
    webhooks: WebhookDisorder
    # None: no commits can be lost on this instance.
    local_database: LocalDatabase | None = None


class Runner:
    """Executes one run in the calling thread. Never raises: a failure becomes the verdict."""

    def __init__(self, run: Run, context: DrillContext) -> None:
        self._run = run
        self._plan: Plan = run.plan
        self._context = context
        # Seconds from the end of the fault; None: no recovery within the limit.
        self._recovery_s: float | None = None
        self._settled_s: float | None = None

    def carry_out(self) -> None:
        run = self._run
        try:
            with self._context.targets[run.scope]() as targets, self._marked(run.scope):
                self._run_phases(targets)
                verdict, summary = judge(run.whole(), payments_min=self._plan.payments_min)
        except Aborted as stop:
            verdict, summary = "ABORTED", str(stop)
        except Inconclusive as doubt:
            verdict, summary = "INCONCLUSIVE", str(doubt)
        except (CannotStart, ProxyGone, FaultRefused) as error:
            verdict, summary = "ABORTED", str(error)
        except Busy as error:
            verdict, summary = "ABORTED", f"The ops plane lost its database: {error.detail}"
        except Exception as error:
            log.exception("rehearsal.failed", extra={"run_id": run.id})
            verdict, summary = "ABORTED", f"The drill itself failed: {type(error).__name__}."
        run.finish(verdict, summary)

    def _run_phases(self, targets: list[Target]) -> None:
        """Every step that touches the service; in every case faults end and the load stops."""
        run, context = self._run, self._context
        urls = {target.name: target.url for target in targets}
        key_id, api_key = self._make_key()
        lost = self._lost_commits(targets[0], api_key)
        load = Load(run.id, urls, api_key, per_s=self._plan.load_per_s, began_s=run.began_s)
        watch = RunWatch(
            run,
            targets,
            load,
            store=context.store,
            preflight=context.preflight,
            injections=lambda: injector.injections,
            other_calls=lambda: list(lost.calls) if lost is not None else [],
        )
        injector = FaultInjector(
            run=run,
            target=targets[0],
            load=load,
            sandbox=context.sandbox,
            webhooks=context.webhooks,
            rows=self._rows,
            wait=self._wait,
            turn=watch.turn,
            lost_commits=lost,
        )
        try:
            stopped = self._pass_through(load, watch, injector)
        finally:
            watch.end()
            load.close()
            # Without a database the key expires later.
            with contextlib.suppress(Busy):
                context.keys.revoke(DRILL_MERCHANT_ID, key_id, _deadline())
        self._collect(targets, watch, load.calls(), lost.rules if lost is not None else [])
        if stopped is not None:
            raise stopped

    def _pass_through(
        self, load: Load, watch: RunWatch, injector: FaultInjector
    ) -> Aborted | Inconclusive | None:
        """Run the phases in order; returns the exception that ended the fault or the recovery, if any.

        In either case all payments already sent are settled, so that the books can be compared.
        """
        run = self._run
        stopped: Aborted | Inconclusive | None = None
        watch.turn("start")
        run.enter("baseline", f"{self._plan.load_per_s} payments a second, no fault")
        load.begin()
        watch.begin()
        try:
            self._wait(self._plan.baseline_s)
            watch.turn("fault_began")
            injector.carry_out(self._plan)
        except (Aborted, Inconclusive) as stop:
            stopped = stop
        finally:
            injector.end()
        fault_ended_s = run.at_s
        watch.turn("fault_ended")
        run.enter("recovery", "The fault has ended; waiting for successful payments")
        if stopped is None:
            try:
                self._recover(load, injector.target, fault_ended_s)
            except Aborted as stop:
                stopped = stop
        load.stop()
        repeated = load.repeat_refused()
        run.tell(f"{repeated} refused payments sent once more with their own keys")
        run.enter("settling", "Waiting until no payment of the run is in doubt")
        self._settle(fault_ended_s)
        watch.turn("ended")
        return stopped

    def _recover(self, load: Load, target: Target, fault_ended_s: float) -> None:
        give_up_at_s = monotonic() + self._plan.recovery_max_s
        while monotonic() < give_up_at_s:
            self._recovery_s = recovery_s(load.calls(), target.name, fault_ended_s)
            if self._recovery_s is not None:
                self._run.tell(f"Payments succeed again after {self._recovery_s:.1f} s")
                return
            self._wait(0.1)
        self._run.tell(f"No recovery within {self._plan.recovery_max_s:.0f} s")

    def _settle(self, fault_ended_s: float) -> None:
        give_up_at_s = monotonic() + self._plan.settling_max_s
        while monotonic() < give_up_at_s:
            with contextlib.suppress(Busy):
                if books.is_settled(self._rows()):
                    self._settled_s = round(self._run.at_s - fault_ended_s, 2)
                    self._run.tell(
                        f"No payment is in doubt {self._settled_s:.1f} s after the fault"
                    )
                    return
            sleep(SETTLING_EVERY_S)
        self._run.tell(f"Payments still in doubt after {self._plan.settling_max_s:.0f} s")

    def _wait(self, seconds: float) -> None:
        """Wait; raises Aborted as soon as an operator or a guard stops the run."""
        if self._run.stopping.wait(seconds):
            raise Aborted(self._run.stop_reason or "The run was stopped.")

    # --- After the fault -------------------------------------------------------------------------

    def _rows(self) -> list[books.Row]:
        return self._context.store.payments(self._run.id, self._run.began_at, _deadline())

    def _lost_commits(self, target: Target, api_key: str) -> LostCommits | None:
        context = self._context
        if context.local_database is None or context.sandbox is None:
            return None
        return LostCommits(
            self._run,
            context.local_database,
            context.sandbox,
            url=target.url,
            api_key=api_key,
            wait=self._wait,
        )

    def _collect(
        self, targets: list[Target], watch: RunWatch, calls: list[Call], rules: list[RuleResult]
    ) -> None:
        """Evidence of every target, and the comparison of the books."""
        run, rows = self._run, self._rows()
        try:
            charges = books.charges_of(
                rows, self._context.list_charges, run.began_at, Deadline.after(LISTING_TIMEOUT_S)
            )
            compared = books.compare(rows, charges, calls)
        except Busy as error:
            run.tell(f"The provider's books cannot be read: {error.detail}")
            charges = {}
            compared = [rule_result("provider", "readable", 1)]
        readings = watch.readings(
            targets[0], recovery_s=self._recovery_s, settled_s=self._settled_s
        )
        run.set(
            invariants=(*compared, *rules, *self._context.standing_rules(_deadline())),
            targets=tuple(self._evidence(one, watch, rows, charges, calls) for one in targets),
            fault_proof=tuple(evaluate(check, readings) for check in self._plan.fault_proof),
            expectations=tuple(evaluate(check, readings) for check in self._plan.expect),
        )

    def _evidence(
        self,
        target: Target,
        watch: RunWatch,
        rows: list[books.Row],
        charges: books.Charges,
        calls: list[Call],
    ) -> TargetEvidence:
        before, after = watch.at("start", target).samples, watch.at("ended", target).samples
        return TargetEvidence(
            name=target.name,
            **evidence.log_evidence(target.log, self._run.id),
            callers=evidence.caller_evidence([c for c in calls if c.target == target.name]),
            metrics=evidence.metric_evidence(before, after),
            **evidence.payment_evidence([row for row in rows if row[5] == target.name], charges),
        )

    # --- Key and alerts --------------------------------------------------------------------------

    def _make_key(self) -> tuple[str, str]:
        """Create a key for this run: (its id, the key itself)."""
        store, keys = self._context.store, self._context.keys
        store.make_tenant(_deadline())
        expires_at = datetime.now(UTC) + KEY_LIFETIME
        row, api_key = keys.create(
            DRILL_MERCHANT_ID,
            _deadline(),
            mode="test",
            scopes=["payments", "refunds", "read"],
            label="drill",
            expires_at=expires_at,
        )
        return row.key_id, api_key

    @contextlib.contextmanager
    def _marked(self, scope: str) -> Iterator[None]:
        """Mark this instance's alerts as a drill's while it has a fault; a pair raises no alerts."""
        name = self._plan.name
        # The gauge must not reveal the fault of a blind game day.
        is_public = name in SIMULATIONS and not self._run.is_hidden
        gauge = metrics.simulation_active.labels(name.replace("-", "_") if is_public else "other")
        if scope == "instance":
            gauge.set(1)
        try:
            yield
        finally:
            if scope == "instance":
                gauge.set(0)


def _deadline() -> Deadline:
    return Deadline.after(DATABASE_TIMEOUT_S)
