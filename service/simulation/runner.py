"""A rehearsal from its first second to its verdict: baseline, fault, recovery, settling, books."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from service.errors import Busy
from service.observability import metrics
from service.observability.window import Window
from service.payments.merchants import KeyStore
from service.resilience.deadline import Deadline
from service.simulation import books, evidence, guards
from service.simulation.expectations import Reading, Readings, evaluate
from service.simulation.faults import TTL_MAX_S
from service.simulation.load import Call, Load
from service.simulation.plan import SIMULATIONS, Plan, Step
from service.simulation.preflight import Preflight
from service.simulation.run import Run
from service.simulation.sandbox import Sandbox
from service.simulation.sides import CannotStart, Side
from service.simulation.store import DRILL_MERCHANT_ID, RehearsalStore
from service.simulation.strike import ProxyGone, StrikeRefused
from service.simulation.webhooks import WebhookDisorder

log = logging.getLogger(__name__)

DATABASE_TIMEOUT_S = 4.0
LISTING_TIMEOUT_S = 20.0
SECOND_S = 1.0
# Renewed long before it ends, so that one slow statement does not let another run begin.
LEASE_EVERY_S = 4.0
# So many payments in a row, sent after the fault, and the service is back.
RECOVERED_AFTER = 3
SETTLING_EVERY_S = 0.5
# The fault ends in the proxy a little later than told here, in case telling fails.
TTL_MARGIN_S = 2.0
KEY_LIFETIME = timedelta(minutes=20)


class Aborted(Exception):
    """The rehearsal must end now; the message says why."""


class Inconclusive(Exception):
    """Nothing was proven; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every rehearsal of this ops plane needs."""

    store: RehearsalStore
    keys: KeyStore
    preflight: Preflight
    # By scope.
    sides: dict[str, Callable[[], AbstractContextManager[list[Side]]]]
    list_charges: books.ListCharges
    standing_rules: Callable[[Deadline], list[dict[str, Any]]]
    sandbox: Sandbox | None
    webhooks: WebhookDisorder


class Runner:
    """Carries out one run in the calling thread. Never raises: what fails is the verdict."""

    def __init__(self, run: Run, around: Surroundings, *, load_per_s: int) -> None:
        self._run = run
        self._plan: Plan = run.plan
        self._around = around
        self._load_per_s = load_per_s
        self._load: Load | None = None
        self._sides: list[Side] = []
        self._readings: dict[str, list[Reading]] = {}
        self._turns: dict[str, dict[str, Reading]] = {}
        self._calls_at_start = 0
        self._fault_ended_s: float | None = None
        self._recovery_s: float | None = None
        self._watch_ends = threading.Event()
        self._struck = 0

    def carry_out(self) -> None:
        run = self._run
        scope = run.document()["scope"]
        verdict, summary = "ABORTED", "It did not begin."
        try:
            with self._around.sides[scope]() as self._sides, self._marked(scope):
                self._rehearse()
                verdict, summary = self._judge()
        except Aborted as stop:
            verdict, summary = "ABORTED", str(stop)
        except Inconclusive as doubt:
            verdict, summary = "INCONCLUSIVE", str(doubt)
        except (CannotStart, ProxyGone, StrikeRefused) as error:
            verdict, summary = "ABORTED", str(error)
        except Busy as error:
            verdict, summary = "ABORTED", f"The ops plane's own database link: {error.detail}"
        except Exception as error:
            log.exception("rehearsal.failed", extra={"run_id": run.id})
            verdict, summary = "ABORTED", f"The rehearsal itself failed: {type(error).__name__}."
        run.finish(verdict, summary)

    def _rehearse(self) -> None:
        """Everything that touches the service; whatever happens, faults end and load stops."""
        run, plan = self._run, self._plan
        api_key = self._make_key()
        urls = {side.name: side.url for side in self._sides}
        self._load = Load(run.id, urls, api_key, per_s=self._load_per_s, began_s=run.began_s)
        watch = threading.Thread(target=self._watch, name="drill-watch", daemon=True)
        stopped: Aborted | None = None
        try:
            self._turn("start")
            run.enter("baseline", f"{self._load_per_s} payments a second, no fault")
            self._load.begin()
            watch.start()
            try:
                self._wait(plan.baseline_s)
                self._turn("fault_began")
                self._inject()
            except Aborted as stop:
                stopped = stop
            finally:
                self._end_fault()
            self._turn("fault_ended")
            run.enter("recovery", "The fault is over; until payments succeed again")
            if stopped is None:
                self._recover()
            self._load.stop()
            repeated = self._load.repeat_refused()
            run.tell(f"{repeated} refused payments sent once more with their own keys")
            run.enter("settling", "Until no payment of the run is in doubt")
            self._settle()
            self._turn("ended")
        finally:
            self._watch_ends.set()
            if watch.is_alive():
                watch.join(5.0)
            self._load.close()
        self._collect()
        if stopped is not None:
            raise stopped

    def _inject(self) -> None:
        plan, run = self._plan, self._run
        run.begin_fault(plan.fault_s)
        for step in plan.steps:
            run.enter("fault", _described(step))
            self._strike(step)
            self._wait(step.seconds)
            self._count_struck(step)

    def _strike(self, step: Step) -> None:
        side = self._sides[0]
        ttl_s = min(TTL_MAX_S, step.seconds + TTL_MARGIN_S)
        if step.link is not None and step.mode is not None:
            if side.striker is None:
                raise Aborted("Nothing stands on the links of this side.")
            side.striker.strike(step.link, step.mode, ttl_s=ttl_s, pause_ms=step.pause_ms)
        if step.sandbox is not None and self._around.sandbox is not None:
            self._around.sandbox.strike({**step.sandbox, "ttl_s": ttl_s})
        for _ in range(step.kills):
            pid = side.kill_a_worker()
            if pid is None:
                raise Inconclusive("No worker of the data plane can be seen from here.")
            self._run.tell(f"Killed worker {pid} with -9")
            self._wait(step.seconds / (step.kills + 1))
        if step.webhooks and self._load is not None:
            sent = self._around.webhooks.send(side.url, self._load.calls())
            self._struck += sent
            self._run.tell(f"{sent} webhooks sent twice and in the wrong order")

    def _count_struck(self, step: Step) -> None:
        striker = self._sides[0].striker
        if step.link is not None and striker is not None:
            self._struck += striker.describe()[step.link]["struck"]

    def _end_fault(self) -> None:
        """Release the links. What cannot be told to end ends by its TTL and its heartbeat."""
        self._fault_ended_s = self._run.at_s
        striker = self._sides[0].striker
        if striker is not None:
            with contextlib.suppress(ProxyGone, StrikeRefused):
                striker.clear()
        if self._around.sandbox is not None and self._plan.needs_sandbox:
            self._around.sandbox.clear()
        self._run.end_fault()

    def _recover(self) -> None:
        give_up_at_s = monotonic() + self._plan.recovery_max_s
        while monotonic() < give_up_at_s:
            self._recovery_s = _recovery_s(
                self._load.calls() if self._load else [],
                self._sides[0].name,
                self._fault_ended_s or 0.0,
            )
            if self._recovery_s is not None:
                self._run.tell(f"Payments succeed again after {self._recovery_s:.1f} s")
                return
            self._wait(0.1)
        self._run.tell(f"No recovery within {self._plan.recovery_max_s:.0f} s")

    def _settle(self) -> None:
        give_up_at_s = monotonic() + self._plan.settling_max_s
        while monotonic() < give_up_at_s:
            with contextlib.suppress(Busy):
                if books.is_settled(self._rows()):
                    return
            self._watch_ends.wait(SETTLING_EVERY_S)

    def _wait(self, seconds: float) -> None:
        """Let time pass; raises Aborted as soon as somebody or a guard stops the run."""
        if self._run.stopping.wait(seconds):
            raise Aborted(self._run.stop_reason or "It was stopped.")

    # --- Watching, once a second -----------------------------------------------------------------

    def _watch(self) -> None:
        lease_due_s = 0.0
        seen = dict.fromkeys((side.name for side in self._sides), 0)
        while not self._watch_ends.wait(SECOND_S):
            try:
                self._run.add_second(self._second(seen))
                if self._run.document()["phase"] in ("baseline", "fault"):
                    self._guard()
                if monotonic() >= lease_due_s:
                    lease_due_s = monotonic() + LEASE_EVERY_S
                    self._around.store.take_lease(self._run.id, _deadline())
            except (ProxyGone, StrikeRefused) as error:
                self._run.stop(str(error))
            except Busy as error:
                log.warning("rehearsal.watch_busy", extra={"detail": error.detail})
            except Exception:
                # Unwatched, nobody would see real payments suffer.
                log.exception("rehearsal.watch_failed")
                self._run.stop("The guards failed.")

    def _guard(self) -> None:
        if self._around.preflight.lever(_deadline())["engaged"]:
            self._run.stop("The lever was engaged.")
        side = self._sides[0]
        if side.striker is not None:
            side.striker.describe()
        if side.name != "instance" or self._load is None:
            return
        before = self._turns["start"][side.name].samples
        harm = guards.harm(before, self._latest(side).samples, self._load.calls())
        if harm is not None:
            self._run.stop(f"Live traffic: {harm}")

    def _second(self, seen: dict[str, int]) -> dict[str, Any]:
        """What happened in the last second, for the charts."""
        calls = self._load.calls() if self._load else []
        shown = {}
        for side in self._sides:
            reading = self._read(side)
            now = Window({}, reading.samples, 0.0)
            states = now.values_by("state", "breaker_state")
            ours = [call for call in calls if call.side == side.name]
            new, seen[side.name] = ours[seen[side.name] :], len(ours)
            shown[side.name] = {
                "sent": self._load.sent[side.name] if self._load else 0,
                "answered": len(new),
                "succeeded": sum(call.outcome == "succeeded" for call in new),
                "failed": sum(call.is_refused for call in new),
                "unknown": sum(call.outcome == "unknown" for call in new),
                "queued": sum(call.outcome == "pending" for call in new),
                "ms_max": max((call.ms for call in new), default=None),
                "pool_in_use": now.value("db_pool_in_use"),
                "pool_waiting": now.value("db_pool_waiting"),
                "breaker": next(
                    (s for s in ("open", "half_open", "closed") if states.get(s)), None
                ),
                "struck": self._struck,
            }
        return {"at_s": self._run.at_s, "sides": shown}

    def _read(self, side: Side) -> Reading:
        reading = Reading(self._run.at_s, side.read())
        self._readings.setdefault(side.name, []).append(reading)
        return reading

    def _latest(self, side: Side) -> Reading:
        return self._readings[side.name][-1]

    def _turn(self, name: str) -> None:
        self._turns[name] = {side.name: self._read(side) for side in self._sides}

    # --- Afterwards ------------------------------------------------------------------------------

    def _rows(self) -> list[books.Row]:
        return self._around.store.payments(self._run.id, self._run.began_at, _deadline())

    def _collect(self) -> None:
        """Evidence of every side, and both books."""
        run, rows = self._run, self._rows()
        calls = self._load.calls() if self._load else []
        try:
            charges = books.charges_of(
                rows, self._around.list_charges, run.began_at, Deadline.after(LISTING_TIMEOUT_S)
            )
            compared = books.compare(rows, charges, calls)
        except Busy as error:
            run.tell(f"The provider's books cannot be read: {error.detail}")
            charges = {}
            compared = [{"book": "provider", "rule": "readable", "violations": 1, "ok": False}]
        run.set(
            invariants=compared + self._around.standing_rules(_deadline()),
            sides=[self._side_evidence(side, rows, charges, calls) for side in self._sides],
        )
        readings = self._readings_of(self._sides[0])
        run.set(
            bite=[evaluate(check, readings) for check in self._plan.bite],
            expectations=[evaluate(check, readings) for check in self._plan.expect],
        )

    def _side_evidence(
        self, side: Side, rows: list[books.Row], charges: books.Charges, calls: list[Call]
    ) -> dict[str, Any]:
        before = self._turns["start"][side.name].samples
        after = self._turns["ended"][side.name].samples
        return {
            "name": side.name,
            **evidence.log_evidence(side.log, self._run.id),
            "callers": evidence.caller_evidence([c for c in calls if c.side == side.name]),
            "metrics": evidence.metric_evidence(before, after),
            **evidence.payment_evidence([row for row in rows if row[5] == side.name], charges),
        }

    def _readings_of(self, side: Side) -> Readings:
        turns = self._turns
        fallback = turns["start"]
        return Readings(
            fault_began=turns.get("fault_began", fallback)[side.name],
            fault_ended=turns.get("fault_ended", fallback)[side.name],
            ended=turns["ended"][side.name],
            every_second=self._readings[side.name],
            recovery_s=self._recovery_s,
        )

    def _judge(self) -> tuple[str, str]:
        """The verdict, and the sentence that says why."""
        document = self._run.document()
        broken = [rule for rule in document["invariants"] if not rule["ok"]]
        if document["kind"] == "simulation":
            return _judge_simulation(document, broken)
        side = document["sides"][0]
        if broken:
            return "BROKE", "Broken: " + ", ".join(rule["rule"] for rule in broken) + "."
        unproven = [check["text"] for check in document["bite"] if not check["ok"]]
        if unproven:
            return "INCONCLUSIVE", f"The fault is not proven: {unproven[0]}."
        if side["callers"]["count"] < self._plan.payments_min:
            return "INCONCLUSIVE", f"Only {side['callers']['count']} payments were answered."
        failed = [check["text"] for check in document["expectations"] if not check["ok"]]
        if failed:
            return "BROKE", "Not kept: " + "; ".join(failed) + "."
        kept = len(document["expectations"]) + len(document["invariants"])
        return "HELD", f"All {kept} promises were kept over {side['callers']['count']} payments."

    # --- Around ----------------------------------------------------------------------------------

    def _make_key(self) -> str:
        store, keys = self._around.store, self._around.keys
        store.make_tenant(_deadline())
        expires_at = datetime.now(UTC) + KEY_LIFETIME
        _, api_key = keys.create(
            DRILL_MERCHANT_ID,
            _deadline(),
            mode="test",
            scopes=["payments", "read"],
            label="drill",
            expires_at=expires_at,
        )
        return api_key

    @contextlib.contextmanager
    def _marked(self, scope: str) -> Iterator[None]:
        """Alerts of this instance are a drill's while it is struck; a pair disturbs nobody."""
        name = self._plan.name
        fault = name.replace("-", "_") if name in SIMULATIONS else "other"
        gauge = metrics.simulation_active.labels(fault=fault)
        if scope == "instance":
            gauge.set(1)
        try:
            yield
        finally:
            if scope == "instance":
                gauge.set(0)


def _judge_simulation(document: dict[str, Any], broken: list[dict[str, Any]]) -> tuple[str, str]:
    side = document["sides"][0]
    if broken:
        return "BROKE", "Broken: " + ", ".join(rule["rule"] for rule in broken) + "."
    shown = side["incident"] is not None or all(check["ok"] for check in document["bite"])
    if not shown:
        return "NOT_SHOWN", "The incident's error did not appear."
    count = side["callers"]["count"]
    return "SHOWN", f"The incident's error appeared; {count} payments, none lost or charged twice."


def _recovery_s(calls: list[Call], side: str, fault_ended_s: float) -> float | None:
    """When the first of enough successes in a row was answered, after the fault."""
    later = sorted(
        (call for call in calls if call.side == side and call.at_s >= fault_ended_s),
        key=lambda call: call.at_s,
    )
    row: list[Call] = []
    for call in later:
        row = [*row, call] if call.outcome == "succeeded" else []
        if len(row) == RECOVERED_AFTER:
            return round(max(0.0, row[0].at_s + row[0].ms / 1000 - fault_ended_s), 2)
    return None


def _described(step: Step) -> str:
    if step.link is not None:
        pause = f", {step.pause_ms:g} ms" if step.mode in ("latency", "drip") else ""
        return f"{step.mode} on the link to the {step.link}{pause}, {step.seconds:g} s"
    if step.sandbox is not None:
        return f"the provider: {', '.join(step.sandbox['mix'])}, {step.seconds:g} s"
    if step.kills:
        return f"kill -9 of {step.kills} workers"
    return f"{step.seconds:g} s"


def _deadline() -> Deadline:
    return Deadline.after(DATABASE_TIMEOUT_S)
