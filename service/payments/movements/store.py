"""Captures, voids and refunds in PostgreSQL: each reserved on the payment's row before it is sent.

As in the store of payments, every write is one statement that also writes its events; any process may
write a fact from any open status, but a guess only under the fence of the lease.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any
from uuid import UUID

import psycopg2

from service.database.pool.pool import Checkout, ConnectionPool
from service.database.pool.statements import UNWRITABLE, refused_by
from service.errors import (
    AcceptanceUnknown,
    AmountNotRepresentable,
    Busy,
    DatabaseUnavailable,
    KeyInFlight,
    KeyReused,
    NotFound,
    ValidationFailed,
    WrongState,
)
from service.ids import (
    UUID_MAX,
    new_id,
)
from service.observability.metrics import catalogue as metrics
from service.payments import audit
from service.payments.audit import Actor, Entry
from service.payments.charge import statements as payment_statements
from service.payments.charge.loss import recovery_name
from service.payments.charge.model import (
    Payment,
    Status,
    sources_of,
)
from service.payments.charge.steps import attempts_json, detail_json, next_attempt
from service.payments.charge.store import RECORD_TIMEOUT_S, payment_of
from service.payments.leases.due_rows import pick_due
from service.payments.leases.fair_share import NUDGED_AT_ONCE, FairShare
from service.payments.movements import statements
from service.payments.movements.model import (
    OPEN,
    Kind,
    Movement,
    MovementRequest,
    MovementStatus,
    Settlement,
    spends_key,
)
from service.providers.amounts import ISO_4217, AmountTable
from service.providers.base import Outcome, OutcomeKind
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

_WIDTH = len(fields(Movement))


class NotLookedFor(Exception):
    """A queued payment is to be voided: its row may have been set back, so the books come first."""

    def __init__(self, payment: Payment) -> None:
        super().__init__(payment.id)
        self.payment = payment


class MovementStore:
    """Reads and writes movements; each method uses one connection, for one or two statements.

    As in LeaseStore, only rows of `provider` are leased.
    """

    def __init__(
        self, pool: ConnectionPool, *, lease_s: float, provider: str | None = None
    ) -> None:
        self._pool = pool
        self._provider = provider
        self._lease_s = lease_s
        self._turn = FairShare()

    def claim(
        self,
        request: MovementRequest,
        deadline: Deadline,
        *,
        amounts: AmountTable = ISO_4217,
        is_looked_for: bool = False,
    ) -> tuple[Movement, Payment, bool]:
        """Reserve the amount and store the movement under its key, leased to the caller; or read
        the earlier one: (movement, payment, is_new).

        Raises NotFound, WrongState, ValidationFailed (more than the remaining amount, or an amount
        that the provider's `amounts` cannot express in the currency), KeyReused, KeyInFlight, all
        without a reservation. A commit in doubt raises Busy, and the caller must not send.
        Raises NotLookedFor where a queued payment is to be voided, and the provider's books were
        not asked for it (`is_looked_for`).
        """
        movement_id = new_id()
        with self._pool.checkout(deadline) as checkout:
            parameters = self._parameters(request, movement_id, checkout.wait_s)
            parameters["currencies_without"] = amounts.currencies_without(request.amount_minor)
            parameters["is_looked_for"] = is_looked_for
            if _claimed(checkout, parameters):
                return *self._read(checkout, request.merchant_id, movement_id), True
            first = self._read_first(checkout, request) or _recognised(checkout, request)
            if (
                first is None
                and _has_freed_key(checkout, request)
                and _claimed(checkout, parameters)
            ):
                return *self._read(checkout, request.merchant_id, movement_id), True
            if first is None:
                reserved = _reserved(checkout, request)
                if not is_looked_for and _is_queued(request, reserved):
                    raise NotLookedFor(_payment(checkout, request))
                raise _refusal(request, reserved, amounts)
            return *first, False

    def is_trusted(self, payment: Payment, deadline: Deadline) -> bool:
        """Whether nothing tells that the payment's row may be older than what became of it."""
        rows = self._pool.run(
            statements.IS_TRUSTED,
            {
                "merchant_id": str(payment.merchant_id),
                "key_digest": payment.key_digest,
                "provider": payment.provider,
                "recovery": recovery_name(payment.provider),
            },
            deadline,
        )
        return bool(rows and rows[0][0])

    def promise(self, movement: Movement, deadline: Deadline) -> Movement | None:
        """Store the promise to the caller: the background sends it from now on.

        None: it was withdrawn, and the key is free. Raises AcceptanceUnknown where the promise
        may have been written or not.
        """
        try:
            kept = self._pool.run(
                statements.PROMISE,
                {
                    "merchant_id": str(movement.merchant_id),
                    "movement_id": str(movement.movement_id),
                },
                deadline,
            )
        except DatabaseUnavailable as error:
            if not error.in_doubt:
                raise
            raise AcceptanceUnknown(
                "Whether it was accepted is not known; the same idempotency key tells."
            ) from error
        return replace(movement, promised=True) if kept else None

    def withdraw(self, movement: Movement, deadline: Deadline, *, proof: Outcome) -> bool:
        """End an unpromised movement that the provider lacks; free its key and amount.

        False: it has a promise by now, or the lease was lost.
        """
        rows = self._pool.run(
            statements.WITHDRAW,
            {
                "merchant_id": str(movement.merchant_id),
                "movement_id": str(movement.movement_id),
                "fence": movement.fence,
                "looked_up": 1,
                "decline": json.dumps(
                    {"code": "not_executed", "message": "It was not sent, and its key is free."}
                ),
                "event_id": str(new_id()),
                "detail": detail_json(
                    proof,
                    pool_wait_s=None,
                    reason="withdrawn: nothing was promised",
                    **_named(movement.kind, movement.movement_id),
                ),
            },
            deadline,
        )
        return bool(rows)

    def _parameters(
        self, request: MovementRequest, movement_id: UUID, pool_wait_s: float
    ) -> dict[str, Any]:
        return {
            "merchant_id": str(request.merchant_id),
            "payment_id": str(request.payment_id),
            "movement_id": str(movement_id),
            "idempotency_key": request.idempotency_key,
            "fingerprint": request.fingerprint,
            "key_digest": request.key_digest,
            "kind": request.kind.value,
            "amount": request.amount_minor,
            "reason": request.reason,
            "lease_s": self._lease_s,
            "event_id": str(new_id()),
            "payment_event_id": str(new_id()),
            "detail": detail_json(pool_wait_s=pool_wait_s, **_named(request.kind, movement_id)),
        }

    def _read_first(
        self, checkout: Checkout, request: MovementRequest
    ) -> tuple[Movement, Payment] | None:
        rows = checkout.run(
            statements.READ_BY_KEY,
            {
                "merchant_id": str(request.merchant_id),
                "idempotency_key": request.idempotency_key,
            },
        )
        if not rows:
            return None
        fingerprint, in_flight, *row = rows[0]
        # The fingerprint excludes the payment's own call, so after it a movement exists.
        if bytes(fingerprint) != request.fingerprint:
            raise KeyReused("This idempotency key was used before with another request.")
        if row[0] is None:
            # A restore of single tables can lose the movement behind its key.
            return None
        movement, payment = _both_of(row)
        if in_flight:
            raise KeyInFlight(
                "The first call with this idempotency key is still being served.",
                payment_id=payment.id,
            )
        return movement, payment

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
        deadline = Deadline.after(RECORD_TIMEOUT_S)
        if found is not None:
            target, fence, sources = found.status, None, [status.value for status in OPEN]
        else:
            target, fence = status or movement.status, movement.fence
            sources = [movement.status.value]
        if target is movement.status:
            # Without a fact, only the lease's holder may schedule the next look-up.
            fence, sources = movement.fence, [movement.status.value]
        is_attempt = op == movement.kind.value
        ends = found is not None and target is not MovementStatus.PENDING
        waits_for_a_person = target is MovementStatus.NEEDS_REVIEW
        try:
            return self._move(
                movement,
                target,
                deadline,
                sources=sources,
                fence=fence,
                op=op,
                outcome=outcome,
                found=found,
                attempts=attempts_json(movement.attempts, op, outcome) if is_attempt else None,
                due_in_s=None if ends or waits_for_a_person else due_in_s,
                promise=promise,
            )[:2]
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
        is_first = movement.status is MovementStatus.ACCEPTED
        again, _, moved = self._move(
            movement,
            MovementStatus.SENDING if is_first else movement.status,
            deadline,
            sources=[movement.status.value],
            fence=movement.fence,
            event="sending" if is_first else "send_again",
            op="look_up" if proof is not None else None,
            outcome=proof,
            next_series=int(with_next_key),
            sent=True,
            lease=True,
        )
        return again if moved else None

    def get(
        self, merchant_id: UUID, movement_id: UUID, deadline: Deadline
    ) -> tuple[Movement, Payment] | None:
        """The current movement and its payment; None for another merchant's."""
        rows = self._pool.run(
            statements.GET,
            {"merchant_id": str(merchant_id), "movement_id": str(movement_id)},
            deadline,
        )
        return _both_of(rows[0]) if rows else None

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
                "merchant_id": str(merchant_id),
                "payment_id": str(payment_id),
                "before": str(before or UUID_MAX),
                "limit": limit,
            },
            deadline,
        )
        return [_movement_of(row) for row in rows]

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
        return [_both_of(row) for row in self._pool.run(statements.LEASE, values, deadline)]

    def postpone(self, movement: Movement, due_in_s: float, deadline: Deadline) -> None:
        """Release an unused lease; the row is due again in `due_in_s`."""
        self._pool.run(
            statements.POSTPONE,
            {
                "merchant_id": str(movement.merchant_id),
                "movement_id": str(movement.movement_id),
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
                "merchant_id": str(movement.merchant_id),
                "movement_id": str(movement.movement_id),
                "most": NUDGED_AT_ONCE,
            },
            deadline,
        )

    def _move(
        self,
        movement: Movement,
        status: MovementStatus,
        deadline: Deadline,
        *,
        sources: Sequence[str],
        fence: int | None,
        event: str | None = None,
        op: str | None = None,
        outcome: Outcome | None = None,
        found: Settlement | None = None,
        attempts: str | None = None,
        next_series: int = 0,
        sent: bool = False,
        lease: bool = False,
        due_in_s: float | None = None,
        promise: bool = False,
    ) -> tuple[Movement, Payment, bool]:
        found = found or Settlement(status)
        is_refund = movement.kind is Kind.REFUND
        target = found.payment_status
        is_no_news = status is movement.status and op == "look_up"
        with self._pool.checkout(deadline) as checkout:
            moved = checkout.run(
                statements.MOVE,
                {
                    "merchant_id": str(movement.merchant_id),
                    "movement_id": str(movement.movement_id),
                    "status": status.value,
                    "sources": list(sources),
                    "fence": fence,
                    # A capture has its payment's reference; a refund has a separate one.
                    "provider_ref": outcome.provider_ref if outcome and is_refund else None,
                    "decline": json.dumps(found.decline.document()) if found.decline else None,
                    "attempts": attempts,
                    "next_series": next_series,
                    "key_spent": bool(attempts and outcome and spends_key(movement, outcome)),
                    "promised": promise,
                    "looked_up": int(op == "look_up"),
                    "sent": sent,
                    "leased": lease,
                    "due_in_s": self._lease_s if lease else due_in_s,
                    "payment_status": target.value if target else None,
                    "payment_sources": sources_of(target) if target else [],
                    "amount_captured": found.amount_captured_minor,
                    "event_id": str(new_id()),
                    "payment_event_id": str(new_id()),
                    "event": event or (op if is_no_news else status.value),
                    "detail": detail_json(
                        outcome,
                        pool_wait_s=checkout.wait_s,
                        attempt=next_attempt(movement.attempts) if attempts else None,
                        op=op,
                        **_named(movement.kind, movement.movement_id),
                    ),
                },
            )
            both = self._read(checkout, movement.merchant_id, movement.movement_id)
        return *both, bool(moved)

    @staticmethod
    def _read(checkout: Checkout, merchant_id: UUID, movement_id: UUID) -> tuple[Movement, Payment]:
        return _both_of(
            checkout.run(
                statements.GET, {"merchant_id": str(merchant_id), "movement_id": str(movement_id)}
            )[0]
        )


def _claimed(checkout: Checkout, parameters: Mapping[str, Any]) -> bool:
    """Whether the money could be reserved under this key."""
    kind = Kind(parameters["kind"])
    try:
        return any(checkout.run(statement, parameters) for statement in statements.CLAIMS[kind])
    except psycopg2.IntegrityError:
        # Another call has the key, or the payment's only end: the whole statement had no effect.
        return False


def _recognised(checkout: Checkout, request: MovementRequest) -> tuple[Movement, Payment] | None:
    """Find the movement of this client key after its key row was lost with a commit; restores the key.

    Raises KeyReused where its request differs.
    """
    named = {"merchant_id": str(request.merchant_id), "key_digest": request.key_digest}
    rows = checkout.run(statements.READ_BY_DIGEST, named)
    if not rows:
        return None
    movement, payment = _both_of(rows[0])
    amount = payment.amount_minor if request.amount_minor is None else request.amount_minor
    if (movement.payment_id, movement.amount_minor) != (request.payment_id, amount):
        raise KeyReused("This idempotency key was used before with another request.")
    checkout.run(
        statements.ADD_KEY,
        {
            "merchant_id": str(request.merchant_id),
            "idempotency_key": request.idempotency_key,
            "fingerprint": request.fingerprint,
            "payment_id": str(movement.payment_id),
            "movement_id": str(movement.movement_id),
        },
    )
    return movement, payment


def _has_freed_key(checkout: Checkout, request: MovementRequest) -> bool:
    named = {
        "merchant_id": str(request.merchant_id),
        "idempotency_key": request.idempotency_key,
    }
    return bool(checkout.run(statements.FREE_KEY, named))


def _is_queued(request: MovementRequest, reserved: tuple[Any, ...] | None) -> bool:
    is_void = request.kind is Kind.VOID
    return is_void and reserved is not None and reserved[0] == Status.ACCEPTED


def _payment(checkout: Checkout, request: MovementRequest) -> Payment:
    named = {"merchant_id": str(request.merchant_id), "payment_id": str(request.payment_id)}
    return payment_of(checkout.run(payment_statements.GET, named)[0])


def _reserved(checkout: Checkout, request: MovementRequest) -> tuple[Any, ...] | None:
    rows = checkout.run(
        statements.READ_PAYMENT,
        {"merchant_id": str(request.merchant_id), "payment_id": str(request.payment_id)},
    )
    return rows[0] if rows else None


def _refusal(
    request: MovementRequest, reserved: tuple[Any, ...] | None, amounts: AmountTable
) -> Exception:
    """The reason for the payment's refusal, from its current state."""
    if reserved is None:
        return NotFound("There is no such payment.")
    status, amount, left, settling, provider_ref, currency = reserved
    payment_id = f"pay_{request.payment_id.hex}"
    if request.kind is Kind.REFUND and status == Status.SUCCEEDED and provider_ref is not None:
        if (request.amount_minor or 0) > left:
            return _too_much(f"more than what is left to refund ({left})")
    elif status in _ALLOWED[request.kind]:
        if settling:
            return WrongState("A capture or a void is under way.", payment_id=payment_id)
        if (request.amount_minor or 0) > amount:
            return _too_much(f"more than what was authorised ({amount})")
    else:
        return WrongState(
            f"A {request.kind.value} is not possible while the payment is {status}.",
            payment_id=payment_id,
        )
    unfit = amounts.part_refusal(request.amount_minor or 0, currency)
    if unfit is not None:
        return AmountNotRepresentable(unfit.field, unfit.reason)
    return Busy("The payment changed at the same moment; send it again.")


_ALLOWED = {
    Kind.REFUND: frozenset[str](),
    Kind.CAPTURE: frozenset({Status.REQUIRES_CAPTURE.value}),
    Kind.VOID: frozenset(
        {Status.REQUIRES_CAPTURE.value, Status.REQUIRES_ACTION.value, Status.ACCEPTED.value}
    ),
}


def _too_much(reason: str) -> ValidationFailed:
    return ValidationFailed(
        "Refused: amount.", fields=[{"field": "amount", "reason": f"is {reason}"}]
    )


def _log_refused(movement: Movement, error: Exception) -> None:
    metrics.rows_parked_total.inc()
    log.error(
        "%s.answer_refused",
        movement.kind.value,
        extra={"movement_id": movement.id, "refused_by": refused_by(error)},
    )


def _movement_of(row: Sequence[Any]) -> Movement:
    merchant_id, movement_id, payment_id, kind, status, *rest = row
    return Movement(
        UUID(str(merchant_id)),
        UUID(str(movement_id)),
        UUID(str(payment_id)),
        Kind(kind),
        MovementStatus(status),
        *rest,
    )


def _both_of(row: Sequence[Any]) -> tuple[Movement, Payment]:
    return _movement_of(row[:_WIDTH]), payment_of(row[_WIDTH:])


def _of_payment(payment: Payment) -> dict[str, str]:
    return {"merchant_id": str(payment.merchant_id), "payment_id": str(payment.payment_id)}


def _named(kind: Kind, movement_id: UUID) -> dict[str, str]:
    """The timeline's detail that identifies the movement."""
    return {f"{kind.value}_id": movement_id.hex}
