"""Settles captures, voids and refunds with an open outcome, after a look-up at the provider."""

from __future__ import annotations

import logging

from service.observability.metrics import catalogue as metrics
from service.payments.charge.handler import charge_of
from service.payments.charge.model import Payment
from service.payments.leases.schedule import is_exhausted, next_look_up_s
from service.payments.movements.handler import MovementHandler, log_movement, refund_of
from service.payments.movements.model import (
    KEY_USED,
    Kind,
    Movement,
    MovementStatus,
    Settlement,
    finding,
    is_absent,
)
from service.payments.movements.store import MovementStore
from service.payments.settling.reconcile import OTHERS_AGAIN_S, QUIESCENCE_S, REFUSED_AGAIN_S
from service.providers.base import Outcome, Provider, ProviderDecline
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)


class MovementReconciler:
    """Settles one leased movement at a time; any number may run, in any number of processes."""

    def __init__(
        self,
        store: MovementStore,
        handler: MovementHandler,
        provider: Provider,
        *,
        quiescence_s: float = QUIESCENCE_S,
    ) -> None:
        self._store = store
        self._handler = handler
        self._provider = provider
        self._quiescence_s = quiescence_s

    def settle(self, movement: Movement, payment: Payment, deadline: Deadline) -> Movement:
        """Look the movement up and write the result; returns the resulting row.

        The caller holds the lease. After a kill at any line the lease ends and the next look-up
        starts again; raises Busy when the database does not answer, without a loss.
        """
        if payment.provider != self._provider.name:
            # Another provider lacks the movement, so it would be sent a second time.
            self._store.postpone(movement, OTHERS_AGAIN_S, deadline)
            return movement
        is_queued = movement.status is MovementStatus.ACCEPTED and movement.promised
        if is_queued and not self._provider.available:
            self._store.postpone(movement, REFUSED_AGAIN_S, deadline)
            return movement
        if is_queued:
            again = self._store.begin_again(movement, deadline)
            settled = self._execute(movement, again, payment, deadline)
        else:
            settled = self._look_up(movement, payment, deadline)
        if settled.has_ended:
            metrics.reconcile_settled_total.labels(outcome=settled.status.value).inc()
        return settled

    def _look_up(self, movement: Movement, payment: Payment, deadline: Deadline) -> Movement:
        outcome = self._ask(movement, payment, deadline)
        if outcome.error in ("breaker_open", "bulkhead_full"):
            self._store.postpone(movement, REFUSED_AGAIN_S, deadline)
            return movement
        found = finding(movement, outcome)
        if found is None and is_exhausted(movement.look_ups + 1, movement.doubt_age_s):
            return self._give_up(movement, payment, outcome)
        if found is None and is_absent(movement, outcome):
            at_rest_in_s = self._quiescence_s - (movement.sent_age_s or self._quiescence_s)
            if at_rest_in_s > 0:
                return self._record(movement, payment, outcome, None, due_in_s=at_rest_in_s)
            if not movement.promised:
                return self._withdraw(movement, outcome, deadline)
            is_used = movement.last_error == KEY_USED and not movement.key_spent
            if movement.last_error != "http_4xx" and not is_used:
                return self._send_again(movement, payment, outcome, deadline)
            if is_used:
                # Proof of an earlier refund that the books do not show yet: never use the next key.
                due_in_s = next_look_up_s(movement.doubt_age_s)
                return self._record(movement, payment, outcome, None, due_in_s=due_in_s)
            # The provider refused the call itself, and its books agree that no money moved.
            found = Settlement(
                MovementStatus.DECLINED, ProviderDecline("refused", "The provider refused it.")
            )
        due_in_s = next_look_up_s(movement.doubt_age_s)
        return self._record(movement, payment, outcome, found, due_in_s=due_in_s)

    def _withdraw(self, movement: Movement, outcome: Outcome, deadline: Deadline) -> Movement:
        """End a movement that was neither promised nor executed, without a send."""
        if self._store.withdraw(movement, deadline, proof=outcome):
            log.info("%s.withdrawn", movement.kind.value, extra={"movement_id": movement.id})
        else:
            # It has a promise by now: the next look-up sends it.
            self._store.postpone(movement, 0.0, deadline)
        both = self._store.get(movement.merchant_id, movement.movement_id, deadline)
        return movement if both is None else both[0]

    def _ask(self, movement: Movement, payment: Payment, deadline: Deadline) -> Outcome:
        if movement.kind is Kind.REFUND:
            return self._provider.look_up_refund(refund_of(movement, payment), deadline)
        return self._provider.look_up(charge_of(payment), deadline)

    def _send_again(
        self, movement: Movement, payment: Payment, outcome: Outcome, deadline: Deadline
    ) -> Movement:
        """Send it once more: it was not executed, and no call of ours is in flight any more.

        The same key is used, so that a late call and this one can only be executed once together.
        Only a key with a replayed error cannot execute anything: then the next one is used.
        """
        again = self._store.begin_again(
            movement, deadline, with_next_key=movement.key_spent, proof=outcome
        )
        return self._execute(movement, again, payment, deadline)

    def _execute(
        self, before: Movement, again: Movement | None, payment: Payment, deadline: Deadline
    ) -> Movement:
        """Send a movement recorded as started; after a lost lease, its new holder does."""
        return before if again is None else self._handler.execute(again, payment, deadline)[0]

    def _record(
        self,
        movement: Movement,
        payment: Payment,
        outcome: Outcome,
        found: Settlement | None,
        *,
        due_in_s: float,
        status: MovementStatus | None = None,
    ) -> Movement:
        recorded, _ = self._store.record(
            movement, outcome, found, op="look_up", due_in_s=due_in_s, status=status
        )
        log_movement(recorded, payment, outcome)
        return recorded

    def _give_up(self, movement: Movement, payment: Payment, outcome: Outcome) -> Movement:
        log.error(
            "%s.exhausted",
            movement.kind.value,
            extra={"payment_id": payment.id, "movement_id": movement.id},
        )
        needs_review = MovementStatus.NEEDS_REVIEW
        return self._record(movement, payment, outcome, None, due_in_s=0.0, status=needs_review)
