"""The rounds of the reconciler's loops: what is leased, what each thread does with it, and its limits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from service.errors import Busy
from service.payments.charge.model import Payment
from service.payments.charge.store import RECORD_TIMEOUT_S
from service.payments.leases.run_all import RunAll
from service.payments.movements.model import Movement
from service.payments.movements.store import MovementStore
from service.payments.settling.late import LateFacts
from service.payments.settling.late_store import LateCheck, LateStore
from service.payments.settling.lease_store import LeaseStore
from service.payments.settling.movement_reconcile import MovementReconciler
from service.payments.settling.parking import park
from service.payments.settling.reconcile import Reconciler
from service.resilience.call_budget import CallBudget
from service.resilience.deadline import Deadline

# Rare and not urgent: half of a loop's threads.
LATE_AT_ONCE = 4
# Unnamed hints that are compared with our references in one statement: a probe for each merchant.
OWN_HINTS_AT_ONCE = 50
# Questions about charges that no row of ours holds, mostly another program's on the same account. A
# flood of them takes a fiftieth of what Stripe allows (100 reads a second), whatever its size.
FOREIGN_PER_S, FOREIGN_BURST = 2.0, 8

log = logging.getLogger(__name__)


@dataclass
class ProbeRounds:
    """Probes the provider, and reschedules the due payments when it is back."""

    leases: LeaseStore
    # Sent only when the breaker needs a probe.
    probe: Callable[[Deadline], bool]
    # The provider's state in the last probe.
    is_available: bool = True

    def __call__(self, _run_all: RunAll, deadline: Deadline) -> int:
        is_available = self.probe(deadline)
        if is_available and not self.is_available:
            hastened = self.leases.reschedule_now(deadline)
            log.info("reconciler.provider_is_back", extra={"hastened": hastened})
        self.is_available = is_available
        return 0


@dataclass(frozen=True)
class LookUpRounds:
    """Looks up due payments, as many at once as there are threads."""

    leases: LeaseStore
    reconciler: Reconciler
    send_timeout_s: float
    threads: int

    def __call__(self, run_all: RunAll, deadline: Deadline) -> int:
        due = self.leases.lease_look_ups(self.threads, deadline)
        run_all(self.settle, due)
        return len(due)

    def settle(self, payment: Payment) -> bool:
        """Settle one leased payment; a row that cannot be handled is parked."""
        try:
            self.reconciler.settle(payment, Deadline.after(self.send_timeout_s))
        except Busy:
            raise
        except Exception as error:  # noqa: BLE001 - `park` logs it
            pause_s = park(error, payment.doubt_age_s, payment_id=payment.id)
            self.leases.postpone(payment, pause_s, Deadline.after(RECORD_TIMEOUT_S))
        return True


@dataclass(frozen=True)
class MovementRounds:
    """Settles due captures, voids and refunds, as many at once as there are threads."""

    movements: MovementStore
    reconciler: MovementReconciler
    send_timeout_s: float
    threads: int

    def __call__(self, run_all: RunAll, deadline: Deadline) -> int:
        due = self.movements.lease_due(self.threads, deadline)
        run_all(self.settle, due)
        return len(due)

    def settle(self, leased: tuple[Movement, Payment]) -> bool:
        """Settle one leased movement; a row that cannot be handled is parked."""
        movement, payment = leased
        try:
            self.reconciler.settle(movement, payment, Deadline.after(self.send_timeout_s))
        except Busy:
            raise
        except Exception as error:  # noqa: BLE001 - `park` logs it
            pause_s = park(error, movement.doubt_age_s, payment_id=payment.id)
            self.movements.postpone(movement, pause_s, Deadline.after(RECORD_TIMEOUT_S))
        return True


@dataclass(frozen=True)
class LateRounds:
    """Looks up settled payments with a late fact, a few at once, before foreign charges."""

    late: LateFacts
    late_store: LateStore
    send_timeout_s: float
    foreign_questions: CallBudget = field(
        default_factory=lambda: CallBudget(per_s=FOREIGN_PER_S, burst=FOREIGN_BURST)
    )

    def __call__(self, run_all: RunAll, deadline: Deadline) -> int:
        compared = self.late_store.name_own_hints(OWN_HINTS_AT_ONCE, deadline)
        due = self.late_store.lease_checks(LATE_AT_ONCE, deadline)
        most = min(LATE_AT_ONCE, self.foreign_questions.left())
        foreign = self.late_store.unnamed_hints(most, deadline)
        self.foreign_questions.spend(len(foreign))
        run_all(self._settle, due)
        run_all(self._name_hint, foreign)
        return compared + len(due) + len(foreign)

    def _settle(self, check: LateCheck) -> bool:
        try:
            self.late.settle(check, Deadline.after(self.send_timeout_s))
        except Busy:
            raise
        except Exception as error:  # noqa: BLE001 - `park` logs it
            self.late.put_off(check, error, Deadline.after(RECORD_TIMEOUT_S))
        return True

    def _name_hint(self, hint: tuple[str, str]) -> bool:
        self.late.name_hint(hint, Deadline.after(self.send_timeout_s))
        return True
