"""The path of one capture, void or refund: reserve, send, record."""

from __future__ import annotations

import logging

from service.errors import Busy
from service.payments.handler import charge_of
from service.payments.model import Payment
from service.payments.movement_store import MovementStore
from service.payments.movements import Kind, Movement, MovementRequest, MovementStatus, finding
from service.payments.schedule import next_look_up_s
from service.providers.base import Outcome, OutcomeKind, Provider, Refund, Stage
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# What was not sent waits no longer than this for the provider to come back.
UNSENT_WAIT_MAX_S = 60.0


class MovementHandler:
    """Moves money that was authorised. Used by many threads at once; keeps nothing of its own."""

    def __init__(
        self, store: MovementStore, provider: Provider, *, provider_timeout_s: float
    ) -> None:
        self._store = store
        self._provider = provider
        self._provider_timeout_s = provider_timeout_s

    def process(
        self, request: MovementRequest, deadline: Deadline
    ) -> tuple[Movement, Payment, bool]:
        """Reserve, send, record: (movement, payment, is_new).

        No connection is held while the provider works. From the claim on it is ours: an outage,
        doubt or our own death leave it to the reconciler. Raises Busy only when nothing was
        accepted; NotFound, WrongState, ValidationFailed and KeyReused when it never will be.
        """
        deadline.require()
        movement, payment, is_new = self._store.claim(request, deadline)
        if is_new and not movement.has_ended:
            movement, payment = self.execute(movement, payment, deadline)
        return movement, payment, is_new

    def execute(
        self, movement: Movement, payment: Payment, deadline: Deadline
    ) -> tuple[Movement, Payment]:
        """Send a leased movement, and write what it came to; never raises for a fault."""
        outcome = self._send(movement, payment, deadline.within(self._provider_timeout_s))
        found = finding(movement, outcome)
        status = None
        due_in_s = next_look_up_s(movement.doubt_age_s)
        if found is None and movement.status is MovementStatus.SENDING:
            # Only a first sending can be undone: after a doubt, "not executed" says nothing of it.
            is_unsent = outcome.kind is OutcomeKind.NOT_EXECUTED
            status = MovementStatus.ACCEPTED if is_unsent else MovementStatus.UNKNOWN
            due_in_s = min(due_in_s, UNSENT_WAIT_MAX_S) if is_unsent else due_in_s
        try:
            recorded = self._store.record(
                movement,
                outcome,
                found,
                op=movement.kind.value,
                due_in_s=due_in_s,
                status=status,
            )
        except Busy as error:
            # Harmless: the reconciler asks the provider again when the lease ends.
            log.warning(
                "%s.outcome_not_recorded",
                movement.kind.value,
                extra={"payment_id": payment.id, "outcome": outcome.kind, "error": error.code},
            )
            return movement, payment
        log_movement(recorded[0], payment, outcome)
        return recorded

    def _send(self, movement: Movement, payment: Payment, deadline: Deadline) -> Outcome:
        if payment.provider != self._provider.name:
            # It waits for a reconciler that runs with the payment's own provider.
            return Outcome(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, error="other_provider")
        match movement.kind:
            case Kind.CAPTURE:
                return self._provider.capture(
                    charge_of(payment), movement.amount_minor, movement.provider_key, deadline
                )
            case Kind.VOID:
                return self._provider.cancel(charge_of(payment), movement.provider_key, deadline)
            case Kind.REFUND:
                return self._provider.refund(refund_of(movement, payment), deadline)


def refund_of(movement: Movement, payment: Payment) -> Refund:
    """The refund in the provider's terms."""
    return Refund(
        refund_id=movement.id,
        payment_id=payment.id,
        provider_ref=payment.provider_ref or "",
        amount_minor=movement.amount_minor,
        currency=payment.currency,
        provider_key=movement.provider_key,
        reason=movement.reason,
        merchant_id=str(payment.merchant_id),
    )


def log_movement(movement: Movement, payment: Payment, outcome: Outcome) -> None:
    """One event a step: `refund.succeeded`, `capture.unknown`, ..."""
    is_doubt = outcome.kind is OutcomeKind.UNKNOWN
    log.log(
        logging.WARNING if is_doubt else logging.INFO,
        "%s.%s",
        movement.kind.value,
        movement.status.value,
        extra={
            "payment_id": payment.id,
            "movement_id": movement.id,
            "provider": payment.provider,
            "outcome": outcome.kind.value,
            "stage": outcome.stage.value,
            "error": outcome.error,
            "ms": outcome.ms,
        },
    )
