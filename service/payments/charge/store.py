"""Payments in PostgreSQL: every write is one statement that also writes its event.

A fact (the provider's definite answer) moves a payment from any status that allows it; a guess (a
timeout, a schedule) also needs the fence of the lease. Both are compare-and-set: a late writer
changes nothing and gets the current row. `transitions.py` declares each of them.
"""

from __future__ import annotations

import logging
from uuid import UUID

import psycopg2

from service.database.pool.pool import Statement
from service.database.pool.statements import UNWRITABLE, refused_by
from service.ids import new_id
from service.observability.metrics import catalogue as metrics
from service.payments import audit
from service.payments.audit import Actor, Entry
from service.payments.charge import statements, transitions
from service.payments.charge.claims import PaymentClaims
from service.payments.charge.model import OPEN, Payment, Status
from service.payments.charge.reader import payment_after
from service.payments.charge.steps import attempts_json, detail_json
from service.payments.charge.transitions import PaymentStep
from service.payments.events.outbox import is_told
from service.payments.leases.fair_share import NUDGED_AT_ONCE
from service.providers.base import Outcome, OutcomeKind
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The write that records moved money has its own time limit, also for a late request.
RECORD_TIMEOUT_S = 2.0


class PaymentStore(PaymentClaims):
    """Writes the steps of payments. Every method uses one connection, for one or two statements."""

    def note_reference(
        self, payment: Payment, prepared: Outcome, deadline: Deadline
    ) -> Payment | None:
        """Commit the provider's reference and `sending`, before any money can move.

        Also where `prepared` is a doubt that money has already moved. None: the lease was lost,
        and its new holder decides. The unchanged, still accepted payment: the reference belongs
        to another payment. Confirm in neither case.
        """
        try:
            return self._write(transitions.sending(payment, prepared), deadline)
        except UNWRITABLE as error:
            _log_refused(payment, error)
            return payment

    def adopt(
        self,
        payment: Payment,
        provider_ref: str,
        deadline: Deadline,
        *,
        keep_lease: bool = False,
    ) -> Payment | None:
        """Take a charge of the provider's books for this unsent payment's, to be looked up at once.

        Our own record is lost, so it may have been confirmed: treat it as just sent. Its
        orphan is resolved. None: the lease was lost, or the charge belongs to
        another payment.
        """
        step = transitions.adopted(payment, provider_ref, keep_lease=keep_lease)
        try:
            return self._write(step, deadline)
        except psycopg2.IntegrityError as error:
            _log_refused(payment, error)
            return None

    def note_send(self, payment: Payment, deadline: Deadline) -> Payment | None:
        """Record that the same key will be sent once more; None: the lease was lost."""
        return self._write(transitions.sent_again(payment), deadline)

    def begin_series(self, payment: Payment, deadline: Deadline) -> Payment | None:
        """Take the next provider key, after proof that the last was not executed.

        None: the lease was lost; do not send.
        """
        return self._write(transitions.next_series(payment), deadline)

    def record(
        self,
        payment: Payment,
        outcome: Outcome,
        *,
        op: str = "confirm",
        due_in_s: float,
        promised: bool = False,
    ) -> Payment:
        """Record a call's outcome and return the resulting row.

        A definite outcome is a fact and needs no lease; doubt and waiting are written only
        under the payment's fence. `due_in_s` is the time until the next look-up of an open
        answer; `promised`: the caller gets 202 for it.
        """
        try:
            return self._record(payment, outcome, op=op, due_in_s=due_in_s, promised=promised)
        except UNWRITABLE as error:
            # More captured than authorised, another's reference, text that no column accepts: the
            # answer is wrong, and the money in doubt. None of it is written, so that the row
            # continues its schedule instead of the same refusal in every lease.
            _log_refused(payment, error)
            lie = Outcome(OutcomeKind.UNKNOWN, outcome.stage, error="mismatch", ms=outcome.ms)
            return self._record(payment, lie, op=op, due_in_s=due_in_s, promised=promised)

    def _record(
        self, payment: Payment, outcome: Outcome, *, op: str, due_in_s: float, promised: bool
    ) -> Payment:
        step = transitions.answered(
            payment, outcome, op=op, due_in_s=due_in_s, is_promised=promised
        )
        deadline = Deadline.after(RECORD_TIMEOUT_S)
        return self._write(step, deadline) or self.read(payment, deadline)

    def give_up(
        self,
        payment: Payment,
        status: Status,
        reason: str,
        deadline: Deadline,
        outcome: Outcome | None = None,
    ) -> Payment:
        """End waiting under the lease: expired, not_executed (with proof) or needs_review.

        A not executed payment without a promise leaves its key free.
        """
        step = transitions.given_up(payment, status, reason, outcome)
        return self._write(step, deadline) or self.read(payment, deadline)

    def resolve(
        self,
        payment: Payment,
        status: Status,
        evidence: str,
        by: str,
        deadline: Deadline,
        *,
        actor: Actor | None = None,
    ) -> Payment | None:
        """Record an operator's finding; None where the payment is not in doubt, or is leased: a
        call about it may be in progress."""
        actor = actor or Actor("service", by)

        def once() -> Payment | None:
            step = transitions.resolved(payment, status, evidence, by)
            return self._write(step, deadline, actor=actor)

        return audit.again_after_collision(once, deadline)

    def withdraw(
        self,
        payment: Payment,
        reason: str,
        deadline: Deadline,
        *,
        outcome: Outcome | None = None,
        op: str = "confirm",
        spent: bool,
    ) -> bool:
        """End a payment that was neither executed nor promised, and leave its key free.

        `spent`: the key's next payment begins the next series, because the provider may know
        this one. False: the lease was lost, or it has a promise by now.
        """
        attempts = attempts_json(payment.attempts, op, outcome) if outcome is not None else None
        rows = self._pool.run(
            statements.WITHDRAW,
            {
                "merchant_id": payment.merchant_id,
                "payment_id": payment.payment_id,
                "fence": payment.fence,
                "attempts": attempts,
                "spent": spent,
                "event_id": new_id(),
                "detail": detail_json(outcome, reason=f"withdrawn: {reason}"),
            },
            deadline,
        )
        return bool(rows)

    def look_now(
        self, payment: Payment, deadline: Deadline, *, actor: Actor = audit.SERVICE
    ) -> bool:
        """Schedule an open payment's look-up now, regardless of its schedule.

        False: another process holds its lease and is looking it up.
        """
        rows = audit.run_audited(
            self._pool,
            statements.LOOK_NOW,
            {
                "merchant_id": payment.merchant_id,
                "payment_id": payment.payment_id,
                "statuses": [status.value for status in OPEN - {Status.REQUIRES_CAPTURE}],
            },
            deadline,
            actor=actor,
            entry=lambda _: Entry(
                "payment.reconcile_requested",
                payment.merchant_id,
                target=payment.id,
                detail={"status": payment.status.value},
            ),
        )
        return bool(rows)

    def nudge(
        self,
        merchant_id: UUID,
        payment_id: UUID,
        deadline: Deadline,
        *,
        at_most_every_s: float = 2.0,
    ) -> bool:
        """Schedule the next look-up now, unless another process is looking it up.

        Without effect while NUDGED_AT_ONCE of the merchant's payments wait for their look-up.
        """
        return bool(
            self._pool.run(
                statements.NUDGE,
                {
                    "merchant_id": merchant_id,
                    "payment_id": payment_id,
                    "at_most_every_s": at_most_every_s,
                    "most": NUDGED_AT_ONCE,
                },
                deadline,
            )
        )

    def _write(
        self, step: PaymentStep, deadline: Deadline, *, actor: Actor | None = None
    ) -> Payment | None:
        # A person's act is written in the same transaction; every other write is one statement.
        lend = self._pool.checkout if actor is None else self._pool.transaction
        with lend(deadline) as checkout:
            values = step.values(lease_s=self._lease_s, pool_wait_s=checkout.wait_s)
            rows = checkout.run(_statement(step), values)
            if rows and actor is not None:
                audit.write(checkout, actor, _act(step))
        return payment_after(step.payment, rows[0]) if rows else None


def _act(step: PaymentStep) -> Entry:
    payment = step.payment
    detail = {"event": step.event, "from": payment.status.value, "to": step.status.value}
    return Entry(
        "payment.resolved",
        payment.merchant_id,
        target=payment.id,
        detail=detail | {"evidence": step.reason},
    )


def _statement(step: PaymentStep) -> Statement:
    if step.is_adoption:
        return statements.ADOPT
    if step.status in (Status.DECLINED, Status.EXPIRED):
        return statements.MOVE_TELL_AND_CLOSE
    return statements.MOVE_AND_TELL if is_told(step.event) else statements.MOVE


def _log_refused(payment: Payment, error: Exception) -> None:
    metrics.rows_parked_total.inc()
    log.error(
        "payment.answer_refused", extra={"payment_id": payment.id, "refused_by": refused_by(error)}
    )
