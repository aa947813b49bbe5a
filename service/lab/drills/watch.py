"""Reads the targets of a run once a second, for charts and checks, and aborts a harmful run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from service.errors import Busy
from service.lab.drills import guards
from service.lab.drills.document import TargetSecond
from service.lab.drills.expectations import Reading, Readings, Span, before
from service.lab.drills.load import Call, Load
from service.lab.drills.preflight import Preflight
from service.lab.drills.run import Run
from service.lab.drills.store import DrillStore
from service.lab.drills.targets import Target
from service.lab.faultproxy.client import FaultRefused, ProxyGone
from service.observability.metrics.catalogue import NAMESPACE
from service.observability.metrics.window import Window
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

DATABASE_TIMEOUT_S = 4.0
SECOND_S = 1.0
# Renewed long before it expires, so that one slow statement does not admit a second run.
LEASE_EVERY_S = 4.0


class RunWatch:
    """Begin it once, end it once; `turn` may be called before and after."""

    def __init__(
        self,
        run: Run,
        targets: list[Target],
        load: Load,
        *,
        store: DrillStore,
        preflight: Preflight,
        injections: Callable[[], int],
        other_calls: Callable[[], list[Call]] = list,
    ) -> None:
        self._run = run
        self._targets = targets
        self._load = load
        self._store = store
        self._preflight = preflight
        self._injections = injections
        # The run's payments outside its load.
        self._other_calls = other_calls
        self._readings: dict[str, list[Reading]] = {target.name: [] for target in targets}
        # A registry has thousands of series: only those in the plan's checks are kept each second.
        self._looked_at = frozenset(
            f"{NAMESPACE}_{check.metric}"
            for check in (*run.plan.fault_proof, *run.plan.expect)
            if check.measure in ("peak", "low")
        )
        self._turns: dict[str, dict[str, Reading]] = {}
        self._seen = dict.fromkeys(self._readings, 0)
        # The serving workers' metrics, whatever the target is.
        self._live_at_start = preflight.read()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="drill-watch", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def turn(self, name: str) -> None:
        """Read every target now, and keep the readings under `name`."""
        self._turns[name] = {target.name: self._read(target) for target in self._targets}

    def at(self, name: str, target: Target) -> Reading:
        """The reading at a named moment, or at the start where the run ended before it."""
        return self._turns.get(name, self._turns["start"])[target.name]

    def readings(self, target: Target, **measured: Any) -> Readings:
        """All readings for the checks, with the other `measured` values."""
        control = next((other for other in self._targets if other.name != target.name), None)
        reference = self._baseline(target) if control is None else self._readings_of(control)
        return self._readings_of(target, reference=reference, **measured)

    def _baseline(self, target: Target) -> Readings:
        """The seconds before the fault, as a reference for the checks."""
        span = self.at("start", target), self.at("fault_began", target)
        return Readings(
            fault_began=span[0],
            fault_ended=span[1],
            ended=span[1],
            faults={step.name: span for step in self._run.plan.steps},
            calls=before(span[1].at_s, self._calls_of(target)),
        )

    def _calls_of(self, target: Target) -> list[Call]:
        return [c for c in self._load.calls() if c.target == target.name and not c.is_retry]

    def _readings_of(self, target: Target, **measured: Any) -> Readings:
        steps = [step.name for step in self._run.plan.steps if step.name]
        return Readings(
            fault_began=self.at("fault_began", target),
            fault_ended=self.at("fault_ended", target),
            ended=self.at("ended", target),
            every_second=self._readings[target.name],
            faults={name: span for name in steps if (span := self._span(name, target))},
            calls=self._calls_of(target),
            injections=self._injections(),
            **measured,
        )

    def _span(self, name: str, target: Target) -> Span | None:
        began, ended = (self._turns.get(f"{name} {word}") for word in ("began", "ended"))
        return (began[target.name], ended[target.name]) if began and ended else None

    def _read(self, target: Target) -> Reading:
        reading = Reading(self._run.at_s, target.read())
        kept = {key: value for key, value in reading.samples.items() if key[0] in self._looked_at}
        self._readings[target.name].append(Reading(reading.at_s, kept))
        return reading

    def _watch(self) -> None:
        lease_due_s = 0.0
        while not self._ends.wait(SECOND_S):
            try:
                points = {target.name: self._point(target) for target in self._targets}
                self._run.add_second(self._run.at_s, points)
                if self._run.phase in ("baseline", "fault"):
                    self._guard(self._targets[0])
                if monotonic() >= lease_due_s:
                    lease_due_s = monotonic() + LEASE_EVERY_S
                    if not self._store.take_lease(self._run.lease_id, _deadline()):
                        # The lease expired during a database outage, and a second run must not inject faults.
                        self._run.stop("Another drill took the lease.")
            except (ProxyGone, FaultRefused) as error:
                self._run.stop(str(error))
            except Busy as error:
                log.warning("rehearsal.watch_busy", extra={"detail": error.detail})
            except Exception:
                # Without guards no check would protect real payments.
                log.exception("rehearsal.watch_failed")
                self._run.stop("The guards failed.")

    def _guard(self, target: Target) -> None:
        if target.fault_client is not None:
            target.fault_client.describe()
        # Copies have separate registries: the serving workers count real requests only.
        ours = [*self._load.calls(), *self._other_calls()] if target.name == "instance" else []
        reason = guards.abort_reason(self._live_at_start, self._preflight.read(), ours)
        if reason is not None:
            self._run.stop(f"Live traffic: {reason}")
        # Last, because it needs the database, which may be down just when real payments suffer.
        if self._preflight.kill_switch(_deadline())["engaged"]:
            self._run.stop("The kill switch was engaged.")

    def _point(self, target: Target) -> TargetSecond:
        """The last second as a point for the charts."""
        now = Window({}, self._read(target).samples, 0.0)
        states = now.values_by("state", "breaker_state")
        ours = [call for call in self._load.calls() if call.target == target.name]
        new, self._seen[target.name] = ours[self._seen[target.name] :], len(ours)
        return TargetSecond(
            sent=self._load.sent,
            answered=len(new),
            succeeded=sum(call.outcome == "succeeded" for call in new),
            failed=sum(call.is_refused for call in new),
            unknown=sum(call.outcome == "unknown" for call in new),
            queued=sum(call.outcome == "pending" for call in new),
            ms_max=max((call.ms for call in new), default=None),
            pool_in_use=now.value("db_pool_in_use"),
            pool_waiting=now.value("db_pool_waiting"),
            breaker=next((s for s in ("open", "half_open", "closed") if states.get(s)), None),
            injections=self._injections(),
        )


def _deadline() -> Deadline:
    return Deadline.after(DATABASE_TIMEOUT_S)
