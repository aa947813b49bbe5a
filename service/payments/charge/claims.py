"""Claims: a payment is stored under its key, or the key's earlier payment is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from service.database.pool.pool import Checkout, ConnectionPool
from service.errors import AcceptanceUnknown, DatabaseUnavailable, KeyInFlight, KeyReused
from service.ids import new_id
from service.payments.charge import statements
from service.payments.charge.loss import recovery_name
from service.payments.charge.model import ChargeRequest, Loss, LostCharge, Payment, Status
from service.payments.charge.provider_keys import key_digest
from service.payments.charge.reader import PaymentReader, payment_of
from service.payments.charge.steps import detail_json
from service.resilience.deadline import Deadline

# The fence of a row that no process has leased since its claim: the column's default.
FIRST_FENCE = 1


class PaymentClaims(PaymentReader):
    """Claims payments for a caller, and stores the promises to callers."""

    def __init__(self, pool: ConnectionPool, *, lease_s: float, queue_expires_s: float) -> None:
        super().__init__(pool)
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
                    return _claimed(request, claim, rows[0]), True
                first, is_free = self._read_first(checkout, request)
                if not is_free:
                    return first, False
                claim |= {
                    "freed_by": first.payment_id,
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
        return _claimed(request, claim, rows[0]), True

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
            "merchant_id": request.merchant_id,
            "payment_id": new_id(),
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
            "event_id": new_id(),
            "recovery": recovery_name(provider),
            "books_from": None,
            "detail": detail_json(pool_wait_s=wait_s),
        }

    def _read_first(self, checkout: Checkout, request: ChargeRequest) -> tuple[Payment, bool]:
        """The payment of the key, and whether it left the key free."""
        rows = checkout.run(
            statements.READ_BY_KEY,
            {
                "merchant_id": request.merchant_id,
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
                {"merchant_id": payment.merchant_id, "payment_id": payment.payment_id},
                deadline,
            )
        except DatabaseUnavailable as error:
            _raise_in_doubt(error)
            raise
        return payment_of(rows[0]) if rows else None


def _claimed(request: ChargeRequest, claim: Mapping[str, Any], row: Sequence[Any]) -> Payment:
    """The payment as it was just stored: what was asked for, and what the database has added."""
    is_suspected, lost_from, *found = row[:5]
    status, expires_at, is_expired, due_at, created_at = row[5:]
    books_from = claim["books_from"]
    loss = None
    if is_suspected:
        charge = None if found[0] is None else LostCharge(*found)
        loss = Loss(books_from or lost_from, charge)
    age_s = 0.0 if status == Status.SENDING else None
    return Payment(
        merchant_id=request.merchant_id,
        payment_id=claim["payment_id"],
        status=Status(status),
        amount_minor=request.amount_minor,
        currency=request.currency,
        payment_method=request.payment_method,
        reference=request.reference,
        capture_method=request.capture_method,
        customer=request.customer,
        metadata=dict(request.metadata),
        on_outage=request.on_outage,
        expires_at=expires_at,
        amount_captured_minor=0,
        amount_refunded_minor=0,
        provider=claim["provider"],
        provider_ref=None,
        key_series=claim["key_series"],
        decline=None,
        next_action=None,
        attempts=[],
        fence=FIRST_FENCE,
        leased=claim["leased"],
        look_ups=0,
        due_at=due_at,
        sent_age_s=age_s,
        doubt_age_s=age_s,
        is_expired=is_expired,
        created_at=created_at,
        updated_at=created_at,
        key_digest=claim["key_digest"],
        promised=not claim["leased"],
        books_from=books_from,
        loss=loss,
    )


def _raise_in_doubt(error: DatabaseUnavailable) -> None:
    """Raise that a promise's commit is in doubt: only a repeat of the key can show the result."""
    if error.in_doubt:
        raise AcceptanceUnknown(
            "It is not known whether the payment was accepted. Send it again with the same key;"
            " do not pay elsewhere."
        ) from error
