"""The parts for captures, voids and refunds, with one booked provider and a real database."""

from __future__ import annotations

from uuid import UUID, uuid4

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.handler import PaymentHandler
from service.payments.charge.model import Payment
from service.payments.charge.store import PaymentStore
from service.payments.movements.handler import MovementHandler
from service.payments.movements.model import Kind, Movement, MovementRequest
from service.payments.movements.store import MovementStore
from service.payments.settling.invariants import check_invariants
from service.payments.settling.movement_reconcile import MovementReconciler
from service.providers.base import Provider
from service.resilience.deadline import Deadline
from tests.support.charge_requests import charge_request

MERCHANT = uuid4()

MAKE_DUE = Statement(
    "make_due", "UPDATE movements SET due_at = now() WHERE due_at IS NOT NULL RETURNING 1"
)
# The invariants are counted merchant by merchant.
_REGISTER = Statement(
    "register",
    """
    INSERT INTO merchants (merchant_id, name) VALUES (%(merchant_id)s::uuid, 'test')
    ON CONFLICT DO NOTHING RETURNING 1
    """,
)
_AGE = Statement(
    "age",
    """
    UPDATE movements SET sent_at = sent_at - interval '9 days',
        unknown_since = unknown_since - interval '9 days'
    RETURNING 1
    """,
)
_RESERVED = Statement(
    "reserved",
    """
    SELECT amount_captured, amount_refunded, amount_refunding, amount_settling FROM payments
    WHERE payment_id = %(payment_id)s::uuid
    """,
)


def soon() -> Deadline:
    return Deadline.after(60)


class Moving:
    """Pays, captures, voids and refunds as one merchant, and settles like the reconciler."""

    def __init__(
        self, pool: ConnectionPool, provider: Provider, *, quiescence_s: float = 0.0
    ) -> None:
        self.pool = pool
        pool.run(_REGISTER, {"merchant_id": str(MERCHANT)}, soon())
        self.provider = provider
        self.payments = PaymentStore(pool, lease_s=10, queue_expires_s=3600)
        self.payment_handler = PaymentHandler(self.payments, provider, provider_timeout_s=5)
        self.store = MovementStore(pool, lease_s=10)
        self.handler = MovementHandler(self.store, provider, provider_timeout_s=5)
        self.reconciler = MovementReconciler(
            self.store, self.handler, provider, quiescence_s=quiescence_s
        )

    def pay(self, **changes: object) -> Payment:
        wanted = charge_request(MERCHANT, **changes)
        return self.payment_handler.process_payment(wanted, soon())[0]

    def authorise(self) -> Payment:
        return self.pay(capture_method="manual")

    def move(
        self, kind: Kind, payment: Payment, amount: int | None = None, *, key: str | None = None
    ) -> tuple[Movement, Payment]:
        return self.handler.process(request(kind, payment, amount, key=key), soon())[:2]

    def refund(self, payment: Payment, amount: int, *, key: str | None = None) -> Movement:
        return self.move(Kind.REFUND, payment, amount, key=key)[0]

    def settle(self) -> list[Movement]:
        """Run one round of the reconciler, with all rows due."""
        return [
            self.reconciler.settle(movement, payment, soon()) for movement, payment in self.lease()
        ]

    def lease(self) -> list[tuple[Movement, Payment]]:
        """Settle all rows under any lease, like the next process after a kill."""
        self.pool.run(MAKE_DUE, {}, soon())
        return self.store.lease_due(10, soon())

    def age(self) -> None:
        """Move the times of all movements and their doubts nine days back."""
        self.pool.run(_AGE, {}, soon())

    def amounts(self, payment: Payment) -> tuple[int, int, int, int]:
        """The amounts: captured, refunded, held by refunds in progress, held by a capture or void in progress."""
        rows = self.pool.run(_RESERVED, {"payment_id": str(payment.payment_id)}, soon())
        captured, refunded, refunding, settling = rows[0]
        return captured, refunded, refunding, settling

    def read(self, payment: Payment) -> Payment:
        return self.payments.read(payment, soon())

    def events(self, payment: Payment) -> list[str]:
        timeline = self.payments.timeline(MERCHANT, payment.payment_id, soon())
        return [event.type for event in timeline]

    def broken_promises(self) -> dict[str, int]:
        return {rule: rows for rule, rows in check_invariants(self.pool, soon()).items() if rows}


def request(
    kind: Kind,
    payment: Payment,
    amount: int | None = None,
    *,
    key: str | None = None,
    merchant_id: UUID = MERCHANT,
) -> MovementRequest:
    return MovementRequest(
        merchant_id=merchant_id,
        payment_id=payment.payment_id,
        kind=kind,
        idempotency_key=key or str(uuid4()),
        fingerprint=f"{kind} {payment.id} {amount}".encode(),
        amount_minor=amount,
    )
