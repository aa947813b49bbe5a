"""Claims of captures, voids and refunds: the amount is reserved, and the key stored, before a send."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg2

from service.database.pool.pool import Checkout, ConnectionPool
from service.errors import AcceptanceUnknown, DatabaseUnavailable, KeyInFlight, KeyReused
from service.ids import new_id
from service.payments.charge import statements as payment_statements
from service.payments.charge.loss import recovery_name
from service.payments.charge.model import Payment, Status
from service.payments.charge.reader import payment_of
from service.payments.charge.steps import detail_json
from service.payments.movements import statements
from service.payments.movements.model import Kind, Movement, MovementRequest, named_in_detail
from service.payments.movements.refusal import refusal
from service.payments.movements.rows import both_of, read_both
from service.providers.amounts import ISO_4217, AmountTable
from service.providers.base import Outcome
from service.resilience.deadline import Deadline


class NotLookedFor(Exception):
    """A queued payment is to be voided: its row may have been set back, so the books come first."""

    def __init__(self, payment: Payment) -> None:
        super().__init__(payment.id)
        self.payment = payment


class MovementClaims:
    """Claims movements for a caller, and keeps or ends the promises to callers."""

    def __init__(self, pool: ConnectionPool, *, lease_s: float) -> None:
        self._pool = pool
        self._lease_s = lease_s

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
                return *read_both(checkout, request.merchant_id, movement_id), True
            first = self._read_first(checkout, request) or _recognised(checkout, request)
            if (
                first is None
                and _has_freed_key(checkout, request)
                and _claimed(checkout, parameters)
            ):
                return *read_both(checkout, request.merchant_id, movement_id), True
            if first is None:
                reserved = _reserved(checkout, request)
                if not is_looked_for and _is_queued(request, reserved):
                    raise NotLookedFor(_payment(checkout, request))
                raise refusal(request, reserved, amounts)
            return *first, False

    def is_trusted(self, payment: Payment, deadline: Deadline) -> bool:
        """Whether nothing tells that the payment's row may be older than what became of it."""
        rows = self._pool.run(
            statements.IS_TRUSTED,
            {
                "merchant_id": payment.merchant_id,
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
                    "merchant_id": movement.merchant_id,
                    "movement_id": movement.movement_id,
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
                "merchant_id": movement.merchant_id,
                "movement_id": movement.movement_id,
                "fence": movement.fence,
                "looked_up": 1,
                "decline": json.dumps(
                    {"code": "not_executed", "message": "It was not sent, and its key is free."}
                ),
                "event_id": new_id(),
                "detail": detail_json(
                    proof,
                    pool_wait_s=None,
                    reason="withdrawn: nothing was promised",
                    **named_in_detail(movement.kind, movement.movement_id),
                ),
            },
            deadline,
        )
        return bool(rows)

    def _parameters(
        self, request: MovementRequest, movement_id: UUID, pool_wait_s: float
    ) -> dict[str, Any]:
        return {
            "merchant_id": request.merchant_id,
            "payment_id": request.payment_id,
            "movement_id": movement_id,
            "idempotency_key": request.idempotency_key,
            "fingerprint": request.fingerprint,
            "key_digest": request.key_digest,
            "kind": request.kind.value,
            "amount": request.amount_minor,
            "reason": request.reason,
            "lease_s": self._lease_s,
            "event_id": new_id(),
            "payment_event_id": new_id(),
            "detail": detail_json(
                pool_wait_s=pool_wait_s, **named_in_detail(request.kind, movement_id)
            ),
        }

    def _read_first(
        self, checkout: Checkout, request: MovementRequest
    ) -> tuple[Movement, Payment] | None:
        rows = checkout.run(
            statements.READ_BY_KEY,
            {
                "merchant_id": request.merchant_id,
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
        movement, payment = both_of(row)
        if in_flight:
            raise KeyInFlight(
                "The first call with this idempotency key is still being served.",
                payment_id=payment.id,
            )
        return movement, payment


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
    named = {"merchant_id": request.merchant_id, "key_digest": request.key_digest}
    rows = checkout.run(statements.READ_BY_DIGEST, named)
    if not rows:
        return None
    movement, payment = both_of(rows[0])
    amount = payment.amount_minor if request.amount_minor is None else request.amount_minor
    if (movement.payment_id, movement.amount_minor) != (request.payment_id, amount):
        raise KeyReused("This idempotency key was used before with another request.")
    checkout.run(
        statements.ADD_KEY,
        {
            "merchant_id": request.merchant_id,
            "idempotency_key": request.idempotency_key,
            "fingerprint": request.fingerprint,
            "payment_id": movement.payment_id,
            "movement_id": movement.movement_id,
        },
    )
    return movement, payment


def _has_freed_key(checkout: Checkout, request: MovementRequest) -> bool:
    named = {
        "merchant_id": request.merchant_id,
        "idempotency_key": request.idempotency_key,
    }
    return bool(checkout.run(statements.FREE_KEY, named))


def _is_queued(request: MovementRequest, reserved: tuple[Any, ...] | None) -> bool:
    is_void = request.kind is Kind.VOID
    return is_void and reserved is not None and reserved[0] == Status.ACCEPTED


def _payment(checkout: Checkout, request: MovementRequest) -> Payment:
    named = {"merchant_id": request.merchant_id, "payment_id": request.payment_id}
    return payment_of(checkout.run(payment_statements.GET, named)[0])


def _reserved(checkout: Checkout, request: MovementRequest) -> tuple[Any, ...] | None:
    rows = checkout.run(
        statements.READ_PAYMENT,
        {"merchant_id": request.merchant_id, "payment_id": request.payment_id},
    )
    return rows[0] if rows else None
