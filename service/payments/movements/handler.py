"""The path of one capture, void or refund: reserve, send, record."""

from __future__ import annotations

import logging
from dataclasses import replace

from service.errors import (
    AcceptanceUnknown,
    Busy,
    KeyInFlight,
    KeyReused,
    ProviderUnavailable,
)
from service.payments.charge.claims import FIRST_FENCE
from service.payments.charge.handler import charge_of
from service.payments.charge.model import Payment
from service.payments.charge.store import RECORD_TIMEOUT_S
from service.payments.leases.schedule import next_look_up_s
from service.payments.movements.claims import NotLookedFor
from service.payments.movements.model import (
    KEY_USED,
    Kind,
    Movement,
    MovementRequest,
    MovementStatus,
    finding,
)
from service.payments.movements.store import MovementStore
from service.providers.base import KEY_REUSED, Outcome, OutcomeKind, Provider, Refund, Stage
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The provider's answers where the money was captured or released before, by any call.
_ENDED_ALREADY = frozenset({"http_4xx", KEY_USED, "mismatch"})
# An unsent movement waits at most this time for the provider to recover.
UNSENT_WAIT_MAX_S = 60.0


class MovementHandler:
    """Moves authorised money. Thread-safe and stateless."""

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

        No connection is held during the provider's call. A returned movement has a promise: an
        outage or doubt leave it to the reconciler. Raises Busy only when it was not accepted, and
        AcceptanceUnknown where only a repeat of the key can show it; NotFound, WrongState,
        ValidationFailed and KeyReused when a repeat never succeeds.
        """
        deadline.require()
        movement, payment, is_new = self._claim(request, deadline)
        if is_new and not movement.has_ended:
            movement, payment = self._execute_and_promise(movement, payment, deadline)
        if not movement.has_ended and not movement.promised:
            movement = self._promised(movement, deadline)
        return movement, payment, is_new

    def _claim(
        self, request: MovementRequest, deadline: Deadline
    ) -> tuple[Movement, Payment, bool]:
        amounts = self._provider.amounts
        try:
            return self._store.claim(request, deadline, amounts=amounts)
        except NotLookedFor as queued:
            self._look_for(queued.payment, deadline)
            return self._store.claim(request, deadline, amounts=amounts, is_looked_for=True)

    def _look_for(self, payment: Payment, deadline: Deadline) -> None:
        """Ask the provider's books for a queued payment before it is called canceled.

        Its row may have been set back by a failover, and the money have moved. Raises Busy where it
        was charged: the queue takes the charge over first. Where the books do not answer, as in an
        outage, only a row that nobody has taken and nothing casts doubt on was surely not sent.
        """
        is_untouched = payment.fence == FIRST_FENCE and payment.promised and not payment.attempts
        if payment.provider == self._provider.name and self._provider.available:
            within = deadline.within(min(self._provider_timeout_s, deadline.remaining_s() / 2))
            outcome = self._provider.look_up(charge_of(payment), within)
            if outcome.kind is OutcomeKind.NOT_EXECUTED:
                return
            is_untouched = is_untouched and outcome.kind is OutcomeKind.UNKNOWN
            is_untouched = is_untouched and outcome.error != "mismatch"
        if not is_untouched or not self._store.is_trusted(payment, deadline):
            raise ProviderUnavailable(
                "Whether the payment was charged before is being found out; send it again.",
                retry_after_s=5.0,
                payment_id=payment.id,
            )

    def _execute_and_promise(
        self, movement: Movement, payment: Payment, deadline: Deadline
    ) -> tuple[Movement, Payment]:
        """The caller's own call: if it does not end the movement, its record is the promise."""
        outcome = self.send(movement, payment, deadline)
        if outcome.error == KEY_REUSED and self._withdraw(movement, outcome):
            raise KeyReused("This idempotency key was used before with another request.")
        after, payment = self.record(movement, payment, outcome, promise=True)
        is_executed = outcome.kind in (OutcomeKind.SUCCEEDED, OutcomeKind.PENDING)
        if after.withdrawn or (after is movement and not is_executed):
            # Withdrawn after a call that overran its lease, or not written: it has no promise.
            raise _acceptance_unknown(payment)
        # An executed, unwritten movement is found in the provider's books, which equals a promise.
        return (after if after is not movement else replace(after, promised=True)), payment

    def _promised(self, movement: Movement, deadline: Deadline) -> Movement:
        kept = self._store.promise(movement, deadline)
        if kept is None:
            raise KeyInFlight("The first call with this idempotency key just ended; send it again.")
        return kept

    def _withdraw(self, movement: Movement, outcome: Outcome) -> bool:
        try:
            return self._store.withdraw(movement, Deadline.after(RECORD_TIMEOUT_S), proof=outcome)
        except Busy:
            return False

    def execute(
        self, movement: Movement, payment: Payment, deadline: Deadline
    ) -> tuple[Movement, Payment]:
        """Send a leased movement, and record its outcome; never raises for a fault."""
        return self.record(movement, payment, self.send(movement, payment, deadline))

    def record(
        self, movement: Movement, payment: Payment, outcome: Outcome, *, promise: bool = False
    ) -> tuple[Movement, Payment]:
        """Record a call's outcome; returns the unchanged `movement` when the write failed."""
        found = finding(movement, outcome)
        status = None
        due_in_s = next_look_up_s(movement.doubt_age_s)
        if found is None and movement.status is MovementStatus.SENDING:
            # Only a first send can be withdrawn: "not executed" proves nothing about an earlier doubt.
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
                promise=promise,
            )
        except Busy as error:
            # Harmless: the reconciler looks it up again when the lease ends.
            log.warning(
                "%s.outcome_not_recorded",
                movement.kind.value,
                extra={"payment_id": payment.id, "outcome": outcome.kind, "error": error.code},
            )
            return movement, payment
        log_movement(recorded[0], payment, outcome)
        return recorded

    def send(self, movement: Movement, payment: Payment, deadline: Deadline) -> Outcome:
        """One call to the provider; an answer about another end is checked at once."""
        deadline = deadline.within(self._provider_timeout_s)
        outcome = self._send(movement, payment, deadline)
        if movement.kind is Kind.REFUND or outcome.error not in _ENDED_ALREADY:
            return outcome
        # It has no metadata of ours: the payment's state is the proof of an earlier call.
        known = self._provider.look_up(charge_of(payment), deadline)
        return known if finding(movement, known) is not None else outcome

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
        key_digest=movement.key_digest,
        refund_ref=movement.provider_ref,
    )


def _acceptance_unknown(payment: Payment) -> AcceptanceUnknown:
    return AcceptanceUnknown(
        "Whether it was accepted is not known; the same idempotency key tells.",
        payment_id=payment.id,
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
