"""Payments in PostgreSQL: every write is one statement that also writes its event.

A fact (the provider's definite answer) moves a payment from any status that allows it; a guess (a
timeout, a schedule) also needs the fence of the lease. Both are compare-and-set: a late writer
changes nothing and gets the current row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg2

from service.database.pool.pool import Checkout, ConnectionPool, Statement
from service.database.pool.statements import UNWRITABLE, refused_by
from service.errors import AcceptanceUnknown, DatabaseUnavailable, KeyInFlight, KeyReused
from service.ids import (
    UUID_MAX,
    new_id,
)
from service.observability.metrics import catalogue as metrics
from service.payments import audit
from service.payments.audit import Actor, Entry
from service.payments.charge import statements
from service.payments.charge.loss import recovery_name
from service.payments.charge.model import (
    OPEN,
    ChargeRequest,
    Event,
    Loss,
    LostCharge,
    Payment,
    Status,
    fact_status,
    sources_of,
)
from service.payments.charge.provider_keys import key_digest
from service.payments.charge.steps import attempts_json, detail_json, next_attempt
from service.payments.events.outbox import is_told
from service.payments.leases.fair_share import NUDGED_AT_ONCE
from service.providers.base import Outcome, OutcomeKind, Stage
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The write that records moved money has its own time limit, also for a late request.
RECORD_TIMEOUT_S = 2.0
# The place of the first page of a list: before the newest payment that could be.
_AFTER_ALL = ("infinity", UUID_MAX)


class PaymentStore:
    """Reads and writes payments. Every method uses one connection, for one or two statements."""

    def __init__(self, pool: ConnectionPool, *, lease_s: float, queue_expires_s: float) -> None:
        self._pool = pool
        self._lease_s = lease_s
        self._queue_expires_s = queue_expires_s

    def claim(
        self,
        request: ChargeRequest,
        deadline: Deadline,
        *,
        provider: str,
        status: Status,
        due_in_s: float | None = None,
    ) -> tuple[Payment, bool]:
        """Store the payment under its key, or read the earlier one: (payment, is_new).

        `due_in_s=None` leases it to the caller without a promise; a number leaves it to the
        background after that time, as a promise. A commit in doubt raises Busy, and the caller
        must not send: without a promise no other process sends it either. A promise in doubt
        raises AcceptanceUnknown. Raises KeyReused and KeyInFlight.
        """
        try:
            with self._pool.checkout(deadline) as checkout:
                claim = self._claim_params(
                    request, provider, status, due_in_s, wait_s=checkout.wait_s
                )
                rows = checkout.run(statements.CLAIM, claim)
                if rows:
                    return _claimed(rows[0]), True
                first, is_free = self._read_first(checkout, request)
                if not is_free:
                    return first, False
                claim |= {
                    "freed_by": str(first.payment_id),
                    "key_series": first.series_after,
                    # Rows that are lost are newer than the one that is left.
                    "books_from": first.books_from or first.created_at,
                }
                rows = checkout.run(statements.CLAIM_FREED, claim)
        except DatabaseUnavailable as error:
            if due_in_s is not None:
                _raise_in_doubt(error)
            raise
        if not rows:
            raise KeyInFlight("Another call with this idempotency key was quicker; send it again.")
        return _claimed(rows[0]), True

    def find_first(self, request: ChargeRequest, deadline: Deadline) -> Payment | None:
        """The payment of this key, as `claim` reads it; None: the key is free."""
        with self._pool.checkout(deadline) as checkout:
            try:
                first, is_free = self._read_first(checkout, request)
            except KeyInFlight as in_flight:
                if in_flight.payment_id is None:
                    return None
                raise
        return None if is_free else first

    def _claim_params(
        self,
        request: ChargeRequest,
        provider: str,
        status: Status,
        due_in_s: float | None,
        *,
        wait_s: float,
    ) -> dict[str, Any]:
        return {
            "merchant_id": str(request.merchant_id),
            "payment_id": str(new_id()),
            "idempotency_key": request.idempotency_key,
            "fingerprint": request.fingerprint,
            "status": status.value,
            "amount": request.amount_minor,
            "currency": request.currency,
            "payment_method": request.payment_method,
            "reference": request.reference,
            "capture_method": request.capture_method,
            "customer": request.customer,
            "metadata": json.dumps(dict(request.metadata)),
            "on_outage": request.on_outage,
            "expires_at": request.expires_at,
            "queue_expires_s": self._queue_expires_s,
            "provider": provider,
            "key_digest": key_digest(request.merchant_id, request.idempotency_key, "payment"),
            "key_series": 1,
            "leased": due_in_s is None,
            "due_in_s": self._lease_s if due_in_s is None else due_in_s,
            "event_id": str(new_id()),
            "recovery": recovery_name(provider),
            "books_from": None,
            "detail": detail_json(pool_wait_s=wait_s),
        }

    def _read_first(self, checkout: Checkout, request: ChargeRequest) -> tuple[Payment, bool]:
        """The payment of the key, and whether it left the key free."""
        rows = checkout.run(
            statements.READ_BY_KEY,
            {
                "merchant_id": str(request.merchant_id),
                "idempotency_key": request.idempotency_key,
            },
        )
        if not rows:
            # A worker of an older version withdrew it between our insert and this read.
            raise KeyInFlight("The first call with this idempotency key just ended; send it again.")
        fingerprint, in_flight, is_free, *row = rows[0]
        payment = payment_of(row)
        if is_free:
            return payment, True
        if bytes(fingerprint) != request.fingerprint:
            raise KeyReused("This idempotency key was used before with another request.")
        if in_flight:
            raise KeyInFlight(
                "The first call with this idempotency key is still being served.",
                payment_id=payment.id,
            )
        return payment, False

    def promise(self, payment: Payment, deadline: Deadline) -> Payment | None:
        """Store the promise before an answer of 202; None: it ended, or must not be queued."""
        try:
            rows = self._pool.run(
                statements.PROMISE,
                {"merchant_id": str(payment.merchant_id), "payment_id": str(payment.payment_id)},
                deadline,
            )
        except DatabaseUnavailable as error:
            _raise_in_doubt(error)
            raise
        return payment_of(rows[0]) if rows else None

    def note_reference(
        self, payment: Payment, prepared: Outcome, deadline: Deadline
    ) -> Payment | None:
        """Commit the provider's reference and `sending`, before any money can move.

        Also where `prepared` is a doubt that money has already moved. None: the lease was lost,
        and its new holder decides. The unchanged, still accepted payment: the reference belongs
        to another payment. Confirm in neither case.
        """
        # No attempt without a call (in one_shot, or prepared by an earlier try), and none for a
        # doubt, which is recorded next.
        is_new = prepared.stage is Stage.ANSWERED and prepared.kind is OutcomeKind.PENDING
        try:
            return self._move(
                payment,
                Status.SENDING,
                deadline,
                sources=[Status.ACCEPTED.value],
                fence=payment.fence,
                outcome=prepared,
                op="prepare" if is_new else None,
                lease=True,
                sent=True,
            )
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
        found = Outcome(OutcomeKind.PENDING, Stage.NOT_SENT, provider_ref=provider_ref, error=None)
        try:
            return self._move(
                payment,
                Status.SENDING,
                deadline,
                sources=[Status.ACCEPTED.value],
                fence=payment.fence,
                outcome=found,
                due_in_s=0.0,
                lease=keep_lease,
                sent=True,
                reason="found in the provider's books",
                statement=statements.ADOPT,
            )
        except psycopg2.IntegrityError as error:
            _log_refused(payment, error)
            return None

    def note_send(self, payment: Payment, deadline: Deadline) -> Payment | None:
        """Record that the same key will be sent once more; None: the lease was lost."""
        return self._move(
            payment,
            payment.status,
            deadline,
            sources=[payment.status.value],
            fence=payment.fence,
            event_type="payment.send_again",
            lease=True,
            sent=True,
        )

    def begin_series(self, payment: Payment, deadline: Deadline) -> Payment | None:
        """Take the next provider key, after proof that the last was not executed.

        None: the lease was lost; do not send.
        """
        is_queued = payment.status is Status.ACCEPTED
        return self._move(
            payment,
            payment.status,
            deadline,
            sources=[payment.status.value],
            fence=payment.fence,
            event_type="payment.prepare_again" if is_queued else "payment.confirm_again",
            lease=True,
            sent=not is_queued,
            next_series=1,
        )

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
        deadline = Deadline.after(RECORD_TIMEOUT_S)
        target = fact_status(outcome)
        if target is not None and target is not payment.status:
            written = self._move(
                payment,
                target,
                deadline,
                sources=sources_of(target),
                fence=None,
                outcome=outcome,
                op=op,
                due_in_s=due_in_s if target is Status.REQUIRES_ACTION else None,
                promised=promised,
            )
        else:
            doubtful = outcome.kind is OutcomeKind.UNKNOWN and payment.status is Status.SENDING
            written = self._move(
                payment,
                Status.UNKNOWN if doubtful else payment.status,
                deadline,
                sources=[payment.status.value],
                fence=payment.fence,
                outcome=outcome,
                op=op,
                event_type=None if doubtful else f"payment.{op}",
                due_in_s=due_in_s,
                promised=promised,
            )
        return written or self.read(payment, deadline)

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
        written = self._move(
            payment,
            status,
            deadline,
            sources=[payment.status.value],
            fence=payment.fence,
            outcome=outcome,
            op="look_up",
            reason=reason,
            # The key of a canceled charge is used up: at the provider it always names that charge.
            spent=outcome is not None and outcome.error == "canceled",
        )
        return written or self.read(payment, deadline)

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

        def once() -> Payment | None:
            return self._move(
                payment,
                status,
                deadline,
                sources=[Status.UNKNOWN.value, Status.NEEDS_REVIEW.value],
                fence=None,
                amount_captured=payment.amount_minor if status is Status.SUCCEEDED else 0,
                reason=evidence,
                by=by,
                actor=actor or Actor("service", by),
                unless_leased=True,
                promised=True,
            )

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
                "merchant_id": str(payment.merchant_id),
                "payment_id": str(payment.payment_id),
                "fence": payment.fence,
                "attempts": attempts,
                "spent": spent,
                "event_id": str(new_id()),
                "detail": detail_json(outcome, reason=f"withdrawn: {reason}"),
            },
            deadline,
        )
        return bool(rows)

    def get(self, merchant_id: UUID, payment_id: UUID, deadline: Deadline) -> Payment | None:
        """The current payment; None for another merchant's."""
        rows = self._pool.run(
            statements.GET,
            {"merchant_id": str(merchant_id), "payment_id": str(payment_id)},
            deadline,
        )
        return payment_of(rows[0]) if rows else None

    def read(self, payment: Payment, deadline: Deadline) -> Payment:
        """The current state of the same payment."""
        return self.get(payment.merchant_id, payment.payment_id, deadline) or payment

    def timeline(self, merchant_id: UUID, payment_id: UUID, deadline: Deadline) -> list[Event]:
        """Every step of the payment, oldest first."""
        rows = self._pool.run(
            statements.TIMELINE,
            {"merchant_id": str(merchant_id), "payment_id": str(payment_id)},
            deadline,
        )
        return [
            Event(UUID(str(event_id)), UUID(str(of_payment)), type_, detail, at)
            for event_id, of_payment, type_, detail, at in rows
        ]

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
                "merchant_id": str(payment.merchant_id),
                "payment_id": str(payment.payment_id),
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
                    "merchant_id": str(merchant_id),
                    "payment_id": str(payment_id),
                    "at_most_every_s": at_most_every_s,
                    "most": NUDGED_AT_ONCE,
                },
                deadline,
            )
        )

    def list(
        self,
        merchant_id: UUID,
        deadline: Deadline,
        *,
        statuses: Sequence[Status] | None = None,
        reference: str | None = None,
        created_gte: datetime | None = None,
        before: tuple[datetime, UUID] | None = None,
        limit: int = 20,
    ) -> list[Payment]:
        """The payments, newest first, at most `limit`, after the payment `before`."""
        statement = statements.LIST_BY_STATUS if statuses else statements.LIST
        if reference is not None:
            statement = statements.LIST_BY_REFERENCE
        before_at, before_id = before or _AFTER_ALL
        rows = self._pool.run(
            statement,
            {
                "merchant_id": str(merchant_id),
                "statuses": [status.value for status in statuses or Status],
                "reference": reference,
                "created_gte": created_gte or "-infinity",
                "before_at": before_at,
                "before_id": str(before_id),
                "limit": limit,
            },
            deadline,
        )
        return [payment_of(row) for row in rows]

    def _move(
        self,
        payment: Payment,
        status: Status,
        deadline: Deadline,
        *,
        sources: Sequence[str],
        fence: int | None,
        outcome: Outcome | None = None,
        op: str | None = None,
        event_type: str | None = None,
        lease: bool = False,
        due_in_s: float | None = None,
        sent: bool = False,
        next_series: int = 0,
        amount_captured: int | None = None,
        reason: str | None = None,
        by: str | None = None,
        actor: Actor | None = None,
        spent: bool = False,
        promised: bool = False,
        unless_leased: bool = False,
        statement: Statement | None = None,
    ) -> Payment | None:
        if amount_captured is None:
            amount_captured = outcome.amount_received if outcome is not None else 0
        decline = outcome.decline if outcome is not None else None
        next_action = outcome.next_action if outcome is not None else None
        event_type = event_type or f"payment.{status.value}"
        attempts = None
        if outcome is not None and op in ("prepare", "confirm"):
            attempts = attempts_json(payment.attempts, op, outcome)
        # A person's act is written in the same transaction; every other write is one statement.
        lend = self._pool.checkout if actor is None else self._pool.transaction
        with lend(deadline) as checkout:
            rows = checkout.run(
                statement or _statement(status, event_type),
                {
                    "merchant_id": str(payment.merchant_id),
                    "payment_id": str(payment.payment_id),
                    "status": status.value,
                    "sources": list(sources),
                    "fence": fence,
                    "provider_ref": outcome.provider_ref if outcome is not None else None,
                    "amount_captured": amount_captured,
                    "decline": json.dumps(decline.document()) if decline is not None else None,
                    "next_action": json.dumps(dict(next_action)) if next_action else None,
                    "attempts": attempts,
                    "next_series": next_series,
                    "spent": spent or (outcome is not None and outcome.is_replay),
                    "promised": promised,
                    "books_from": outcome.lost_since if outcome is not None else None,
                    "unless_leased": unless_leased,
                    "looked_up": int(op == "look_up"),
                    "sent": sent,
                    "leased": lease,
                    "due_in_s": self._lease_s if lease else due_in_s,
                    "event_id": str(new_id()),
                    "event_type": event_type,
                    "detail": detail_json(
                        outcome,
                        pool_wait_s=checkout.wait_s,
                        attempt=next_attempt(payment.attempts) if attempts else None,
                        op=op,
                        reason=reason,
                        by=by,
                    ),
                },
            )
            if rows and actor is not None:
                audit.write(checkout, actor, _act(event_type, payment, status, reason))
        return payment_of(rows[0]) if rows else None


def _act(event_type: str, payment: Payment, status: Status, reason: str | None) -> Entry:
    detail = {"event": event_type, "from": payment.status.value, "to": status.value}
    return Entry(
        "payment.resolved",
        payment.merchant_id,
        target=payment.id,
        detail=detail | {"evidence": reason},
    )


def _statement(status: Status, event_type: str) -> Statement:
    if status in (Status.DECLINED, Status.EXPIRED):
        return statements.MOVE_TELL_AND_CLOSE
    return statements.MOVE_AND_TELL if is_told(event_type) else statements.MOVE


def payment_of(row: Sequence[Any]) -> Payment:
    """The Payment behind a row of `payment_statements.COLUMNS`."""
    merchant_id, payment_id, status, *rest = row
    return Payment(UUID(str(merchant_id)), UUID(str(payment_id)), Status(status), *rest)


def _claimed(row: Sequence[Any]) -> Payment:
    """A payment as its claim returns it, with what may be missing of its key's past."""
    is_suspected, lost_from, *found, rest = *row[:5], row[5:]
    payment = payment_of(rest)
    if not is_suspected:
        return payment
    charge = None if found[0] is None else LostCharge(*found)
    return replace(payment, loss=Loss(payment.books_from or lost_from, charge))


def _raise_in_doubt(error: DatabaseUnavailable) -> None:
    """Raise that a promise's commit is in doubt: only a repeat of the key can show the result."""
    if error.in_doubt:
        raise AcceptanceUnknown(
            "It is not known whether the payment was accepted. Send it again with the same key;"
            " do not pay elsewhere."
        ) from error


def _log_refused(payment: Payment, error: Exception) -> None:
    metrics.rows_parked_total.inc()
    log.error(
        "payment.answer_refused", extra={"payment_id": payment.id, "refused_by": refused_by(error)}
    )
