"""Captures, voids and refunds in PostgreSQL: each reserved on the payment's row before it is sent.

As in the store of payments, every write is one statement that also writes its events; any process may
write a fact from any open status, but a guess only under the fence of the lease. `transitions.py`
declares each of them.
"""

from __future__ import annotations

import logging
from uuid import UUID

from service.database.pool.pool import ConnectionPool
from service.database.pool.statements import UNWRITABLE, refused_by
from service.ids import UUID_MAX
from service.observability.metrics import catalogue as metrics
from service.payments import audit
from service.payments.audit import Actor, Entry
from service.payments.charge.model import Payment
from service.payments.charge.store import RECORD_TIMEOUT_S
from service.payments.leases.due_rows import pick_due
from service.payments.leases.fair_share import NUDGED_AT_ONCE, FairShare
from service.payments.movements import statements, transitions
from service.payments.movements.claims import MovementClaims
from service.payments.movements.model import Kind, Movement, MovementStatus, Settlement
from service.payments.movements.resolve import OperatorFinding, resolve
from service.payments.movements.rows import both_of, movement_of, read_both
from service.payments.movements.transitions import MovementStep
from service.providers.base import Outcome, OutcomeKind
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)


class MovementStore(MovementClaims):
    """Reads and writes movements; each method uses one connection, for one or two statements.

    As in LeaseStore, only rows of `provider` are leased.
    """

    def __init__(
        self, pool: ConnectionPool, *, lease_s: float, provider: str | None = None
    ) -> None:
        super().__init__(pool, lease_s=lease_s)
        self._provider = provider
        self._turn = FairShare()

    def record(
        self,
        movement: Movement,
        outcome: Outcome,
        found: Settlement | None,
        *,
        op: str,
        due_in_s: float,
        status: MovementStatus | None = None,
        promise: bool = False,
    ) -> tuple[Movement, Payment]:
        """Record the outcome of a call or look-up, with `promise` also the promise to its caller;
        returns the resulting rows.

        `found` is a fact and needs no lease. Without it the movement becomes `status` (None:
        unchanged), under its fence, and is due again in `due_in_s`.
        """
        if found is not None:
            step = transitions.settled(
                movement, outcome, found, op=op, due_in_s=due_in_s, is_promised=promise
            )
        else:
            step = transitions.unsettled(
                movement, outcome, status, op=op, due_in_s=due_in_s, is_promised=promise
            )
        try:
            return self._write(step, Deadline.after(RECORD_TIMEOUT_S))[:2]
        except UNWRITABLE as error:
            # Another refund's reference, more than authorised, text that no column accepts: the
            # answer is wrong, and the money in doubt; none of it is written.
            _log_refused(movement, error)
            lie = Outcome(OutcomeKind.UNKNOWN, outcome.stage, error="mismatch", ms=outcome.ms)
            is_first = movement.status is MovementStatus.SENDING
            doubt = MovementStatus.UNKNOWN if is_first else None
            return self.record(
                movement, lie, None, op=op, due_in_s=due_in_s, status=doubt, promise=promise
            )

    def begin_again(
        self,
        movement: Movement,
        deadline: Deadline,
        *,
        with_next_key: bool = False,
        proof: Outcome | None = None,
    ) -> Movement | None:
        """Record another send, after a look-up's `proof` that it was not executed.

        None: the lease was lost; do not send.
        """
        step = transitions.sent(movement, with_next_key=with_next_key, proof=proof)
        again, _, is_moved = self._write(step, deadline)
        return again if is_moved else None

    def get(
        self, merchant_id: UUID, movement_id: UUID, deadline: Deadline
    ) -> tuple[Movement, Payment] | None:
        """The current movement and its payment; None for another merchant's."""
        rows = self._pool.run(
            statements.GET,
            {"merchant_id": merchant_id, "movement_id": movement_id},
            deadline,
        )
        return both_of(rows[0]) if rows else None

    def get_end(
        self, merchant_id: UUID, payment_id: UUID, kind: Kind, deadline: Deadline
    ) -> tuple[Movement, Payment] | None:
        """The payment's capture or void that counts, else its newest declined one, with the
        payment; None: there is none."""
        rows = self._pool.run(
            statements.GET_END,
            {
                "merchant_id": str(merchant_id),
                "payment_id": str(payment_id),
                "kind": kind.value,
            },
            deadline,
        )
        return both_of(rows[0]) if rows else None

    def resolve(
        self, movement: Movement, finding: OperatorFinding, deadline: Deadline, *, actor: Actor
    ) -> tuple[Movement, Payment] | None:
        """Write an operator's finding about a movement in doubt; the rows as they then stand.

        None: it is not in doubt, or a call about it or its payment is under way.
        """
        if not resolve(self._pool, movement, finding, deadline, actor=actor):
            return None
        return self.get(movement.merchant_id, movement.movement_id, deadline)

    def list_refunds(
        self,
        merchant_id: UUID,
        payment_id: UUID,
        deadline: Deadline,
        *,
        before: UUID | None = None,
        limit: int = 20,
    ) -> list[Movement]:
        """A payment's refunds, newest first."""
        rows = self._pool.run(
            statements.LIST_REFUNDS,
            {
                "merchant_id": merchant_id,
                "payment_id": payment_id,
                "before": before or UUID_MAX,
                "limit": limit,
            },
            deadline,
        )
        return [movement_of(row) for row in rows]

    def lease_due(self, limit: int, deadline: Deadline) -> list[tuple[Movement, Payment]]:
        """Take up to `limit` movements that are due, merchants in turn, for one call and record."""
        picked = pick_due(
            self._pool,
            self._turn,
            oldest=statements.DUE,
            of_merchants=statements.DUE_OF_MERCHANTS,
            provider=self._provider,
            limit=limit,
            deadline=deadline,
        )
        if not picked:
            return []
        values = {
            "merchant_ids": [due.owner[0] for due in picked],
            "movement_ids": [due.key for due in picked],
            "lease_s": self._lease_s,
        }
        return [both_of(row) for row in self._pool.run(statements.LEASE, values, deadline)]

    def postpone(self, movement: Movement, due_in_s: float, deadline: Deadline) -> None:
        """Release an unused lease; the row is due again in `due_in_s`."""
        self._pool.run(
            statements.POSTPONE,
            {
                "merchant_id": movement.merchant_id,
                "movement_id": movement.movement_id,
                "fence": movement.fence,
                "due_in_s": due_in_s,
            },
            deadline,
        )

    def look_now(
        self, payment: Payment, deadline: Deadline, *, actor: Actor = audit.SERVICE
    ) -> int:
        """Schedule look-ups of the payment's open captures, voids and refunds now; returns the
        number of those without a call in progress."""
        rows = audit.run_audited(
            self._pool,
            statements.LOOK_NOW,
            _of_payment(payment),
            deadline,
            actor=actor,
            entry=lambda rows: Entry(
                "payment.reconcile_requested",
                payment.merchant_id,
                target=payment.id,
                detail={"movements": len(rows)},
            ),
        )
        return len(rows)

    def is_under_way(self, payment: Payment, deadline: Deadline) -> bool:
        """Whether a call about one of the payment's captures, voids or refunds is in progress."""
        return bool(self._pool.run(statements.UNDER_WAY, _of_payment(payment), deadline))

    def nudge(self, movement: Movement, deadline: Deadline) -> None:
        """Schedule the next look-up now, unless one is in progress or has just ended."""
        self._pool.run(
            statements.NUDGE,
            {
                "merchant_id": movement.merchant_id,
                "movement_id": movement.movement_id,
                "most": NUDGED_AT_ONCE,
            },
            deadline,
        )

    def _write(self, step: MovementStep, deadline: Deadline) -> tuple[Movement, Payment, bool]:
        movement = step.movement
        with self._pool.checkout(deadline) as checkout:
            values = step.values(lease_s=self._lease_s, pool_wait_s=checkout.wait_s)
            moved = checkout.run(statements.MOVE, values)
            both = read_both(checkout, movement.merchant_id, movement.movement_id)
        return *both, bool(moved)


def _log_refused(movement: Movement, error: Exception) -> None:
    metrics.rows_parked_total.inc()
    log.error(
        "%s.answer_refused",
        movement.kind.value,
        extra={"movement_id": movement.id, "refused_by": refused_by(error)},
    )


def _of_payment(payment: Payment) -> dict[str, UUID]:
    return {"merchant_id": payment.merchant_id, "payment_id": payment.payment_id}
