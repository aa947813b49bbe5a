"""Periodic background jobs: look up, forward, sweep, check, and refresh the figures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Protocol

from service.app.rounds import LateRounds, LookUpRounds, MovementRounds, ProbeRounds
from service.database.migrate.partitions import STATE_SQL
from service.database.pool.pool import ConnectionPool, Statement
from service.errors import Busy
from service.observability.metrics import catalogue as metrics
from service.payments.charge.open_limit import EVERY_S as OPEN_LIMIT_EVERY_S
from service.payments.charge.open_limit import OpenLimit
from service.payments.events.deliveries import Deliverer
from service.payments.leases.run_all import (
    Item,
    RunAll,
)
from service.payments.retention import Retention
from service.payments.settling.figures import OpenFigures
from service.payments.settling.forward import (
    Forwarder,
)
from service.payments.settling.inbox import WebhookInbox
from service.payments.settling.invariant_checks import InvariantChecks
from service.payments.settling.recovery import CHECKED_EVERY_S as RECOVERY_CHECKED_EVERY_S
from service.payments.settling.recovery import Recovery
from service.payments.settling.run_locks import RunLocks
from service.payments.settling.sweep import Sweep
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The longest delay of a due payment after an idle round.
IDLE_S = 0.25
# The same for work that no caller waits for: each idle round costs the database a read or more.
UNHURRIED_S = 1.0
# One round's reads and leases; a database that needs longer is down.
ROUND_TIMEOUT_S = 5.0
FIGURES_EVERY_S = 5.0
HEARTBEAT_EVERY_S = 5.0
DELIVERIES_TIDIED_EVERY_S = 5.0
RETENTION_EVERY_S = 15.0
EVENT_MONTHS_EVERY_S = 60.0
# All four lists are read within it; then the next round begins.
SWEEP_TIMEOUT_S = 85.0
HINTS_AT_ONCE = 100
_EVENT_MONTHS = Statement("due_partitions", STATE_SQL)


class Work(Protocol):
    """One round of a loop: the number of items; after 0 the loop pauses."""

    def __call__(self, run_all: RunAll, deadline: Deadline) -> int: ...


@dataclass
class Background:
    """Runs the rounds of one reconciler process until it is stopped.

    Any number of processes may run it. A fault ends a round, never the loop.
    """

    pool: ConnectionPool
    probe: ProbeRounds
    look_ups: LookUpRounds
    movements: MovementRounds
    late: LateRounds
    inbox: WebhookInbox
    locks: RunLocks
    forwarder: Forwarder
    deliverer: Deliverer
    open_limit: OpenLimit
    retention: Retention
    sweep: Sweep
    figures: OpenFigures
    recovery: Recovery
    invariants: InvariantChecks
    # Of each loop; a lease outlasts what one thread does with one payment.
    threads: int = 8

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; begun work is finished first."""
        loops = [
            threading.Thread(target=self._loop, args=(name, work, pause_s, stop), name=name)
            for name, work, pause_s in (
                # A separate loop, since look-ups from before the breaker opened may still hang.
                ("probe", self.probe, IDLE_S),
                ("hints", self._apply_hints, IDLE_S),
                ("look-ups", self.look_ups, IDLE_S),
                ("queue", self.forwarder.drain, IDLE_S),
                ("movements", self.movements, IDLE_S),
                ("deliveries", partial(self._deliver, failing=False), IDLE_S),
                # A separate loop, since the endpoints' timeouts would delay all other work.
                ("deliveries to who fails", partial(self._deliver, failing=True), UNHURRIED_S),
                ("sweep", self._sweep, UNHURRIED_S),
                ("late facts", self.late, UNHURRIED_S),
                ("invariants", self._check_invariants, UNHURRIED_S),
            )
        ]
        for loop in loops:
            loop.start()
        log.info("reconciler.started", extra={"threads": self.threads})
        self._keep_the_clocks(stop)
        for loop in loops:
            loop.join()
        log.info("reconciler.stopped")

    def _loop(self, name: str, work: Work, pause_s: float, stop: threading.Event) -> None:
        """Repeat one kind of work, at once while there is more, on separate threads: a call that
        hangs in one loop delays no other loop."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix=name) as executor:

            def run_all(call: Callable[[Item], bool], items: Iterable[Item]) -> list[bool]:
                return list(executor.map(lambda item: self._outlive(call, item), items))

            while not stop.is_set():
                if not self._outlive(work, run_all, Deadline.after(ROUND_TIMEOUT_S)):
                    stop.wait(pause_s)

    def _apply_hints(self, _run_all: RunAll, deadline: Deadline) -> int:
        """A separate loop: neither do look-ups that hang delay hints, nor a flood of hints look-ups."""
        return self.inbox.apply_hints(HINTS_AT_ONCE, deadline)

    def _deliver(self, run_all: RunAll, deadline: Deadline, *, failing: bool) -> int:
        """Deliver events to merchants, as many at once as there are threads."""
        return self.deliverer.deliver(self.threads, run_all, deadline, failing=failing)

    def _sweep(self, _run_all: RunAll, _deadline: Deadline) -> int:
        """Sweep each list that is due, page after page in one thread."""
        return int(self.sweep.run_if_due(Deadline.after(SWEEP_TIMEOUT_S)))

    def _keep_the_clocks(self, stop: threading.Event) -> None:
        every_s: dict[Callable[[Deadline], None], float] = {
            self.recovery.check: RECOVERY_CHECKED_EVERY_S,
            self._heartbeat: HEARTBEAT_EVERY_S,
            self.figures.refresh: FIGURES_EVERY_S,
            self.invariants.show: FIGURES_EVERY_S,
            self.open_limit.mark: OPEN_LIMIT_EVERY_S,
            self.deliverer.tidy: DELIVERIES_TIDIED_EVERY_S,
            # One process a minute removes rows; the others only check whether removal is due.
            self.retention.run_if_due: RETENTION_EVERY_S,
            self._count_event_months: EVENT_MONTHS_EVERY_S,
        }
        due_s = dict.fromkeys(every_s, 0.0)
        while not stop.is_set():
            for chore in every_s:
                if monotonic() >= due_s[chore]:
                    due_s[chore] = monotonic() + every_s[chore]
                    self._outlive(chore, Deadline.after(ROUND_TIMEOUT_S))
            stop.wait(IDLE_S)

    def _check_invariants(self, _run_all: RunAll, deadline: Deadline) -> int:
        """A separate loop: a rule that reads for seconds delays no other schedule."""
        self.invariants.run(deadline)
        return 0

    def _count_event_months(self, deadline: Deadline) -> None:
        """Only the owner of the tables can create the missing months; the alert says so."""
        ((missing, _),) = self.pool.run(_EVENT_MONTHS, {}, deadline)
        metrics.event_months_missing.set(missing)

    def _outlive(self, work: Callable[..., Any], *arguments: object) -> Any:
        """The work's result, or None: after an outage or a logged bug the loop continues."""
        try:
            return work(*arguments)
        except Busy as error:
            log.warning("reconciler.busy", extra={"code": error.code, "detail": error.detail})
        except Exception:
            log.exception("reconciler.error")
        return None

    def _heartbeat(self, deadline: Deadline) -> None:
        self.locks.heartbeat("reconciler", deadline)
