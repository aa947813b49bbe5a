"""The parts that pay and settle, with one booked provider and a real database."""

from __future__ import annotations

from uuid import uuid4

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.handler import PaymentHandler
from service.payments.charge.model import Payment
from service.payments.charge.store import PaymentStore
from service.payments.movements.store import MovementStore
from service.payments.settling.forward import Forwarder
from service.payments.settling.inbox import WebhookInbox
from service.payments.settling.late import LateFacts
from service.payments.settling.late_store import LateStore
from service.payments.settling.lease_store import LeaseStore
from service.payments.settling.orphans import OrphanStore
from service.payments.settling.reconcile import Reconciler
from service.payments.settling.run_locks import RunLocks
from service.payments.settling.sweep import Sweep
from service.payments.settling.sweep_compare import Comparison
from service.payments.settling.sweep_progress import SweepRuns
from service.payments.settling.sweep_unread import UnreadStore
from service.resilience.deadline import Deadline
from tests.support.charge_requests import charge_request
from tests.support.providers.booked_provider import BookedProvider

MERCHANT = uuid4()
_REGISTER = Statement(
    "register_merchant",
    """
    INSERT INTO merchants (merchant_id, name) VALUES (%(merchant_id)s::uuid, 'test')
    ON CONFLICT DO NOTHING RETURNING 1
    """,
)
_MAKE_DUE = Statement("make_due", "UPDATE payments SET due_at = now() RETURNING 1")
_AGE = Statement(
    "age",
    """
    UPDATE payments SET
        sent_at = sent_at - %(by_s)s::float8 * interval '1 second',
        unknown_since = unknown_since - %(by_s)s::float8 * interval '1 second'
    RETURNING 1
    """,
)


def soon() -> Deadline:
    return Deadline.after(60)


class Service:
    """Pays and settles as one merchant, like the data plane and the reconciler."""

    def __init__(
        self,
        pool: ConnectionPool,
        provider: BookedProvider,
        quiescence_s: float = 0.0,
        foreign_charges: str = "ignore",
    ):
        self.pool = pool
        self.provider = provider
        pool.run(_REGISTER, {"merchant_id": str(MERCHANT)}, soon())
        self.store = PaymentStore(pool, lease_s=10, queue_expires_s=3600)
        self.leases = LeaseStore(pool, lease_s=10)
        self.inbox = WebhookInbox(pool)
        self.locks = RunLocks(pool)
        self.orphan_store = OrphanStore(pool)
        self.handler = PaymentHandler(self.store, provider, provider_timeout_s=5)
        self.reconciler = Reconciler(
            self.store, self.leases, self.handler, provider, quiescence_s=quiescence_s
        )
        self.unread = UnreadStore(pool, provider.name)
        self.forwarder = Forwarder(
            self.store,
            self.leases,
            self.orphan_store,
            self.handler,
            provider,
            self.unread,
            send_timeout_s=2,
            batch_max=8,
        )
        self.movements = MovementStore(pool, lease_s=10)
        self.late_store = LateStore(pool, lease_s=10)
        self.late = LateFacts(
            self.store, self.late_store, self.movements, self.orphan_store, provider
        )
        self.runs = SweepRuns(pool, provider.name)
        self.sweep = Sweep(
            Comparison(
                self.store,
                self.orphan_store,
                self.late,
                self.late_store,
                provider,
                foreign_charges=foreign_charges,
            ),
            self.locks,
            self.late_store,
            self.runs,
            self.unread,
            provider,
        )

    def pay(self, **changes: object) -> Payment:
        return self.handler.process_payment(charge_request(MERCHANT, **changes), soon())[0]

    def make_due(self) -> None:
        self.pool.run(_MAKE_DUE, {}, soon())

    def age(self, by_s: float) -> None:
        """Move the times of all payments and their doubts back by this much."""
        self.pool.run(_AGE, {"by_s": by_s}, soon())

    def settle(self) -> list[Payment]:
        """Run one round of the reconciler's look-ups, with all rows due."""
        self.make_due()
        return [
            self.reconciler.settle(payment, soon())
            for payment in self.leases.lease_look_ups(10, soon())
        ]

    def drain(self) -> int:
        return self.forwarder.drain(lambda call, payments: [call(p) for p in payments], soon())

    def settle_late(self) -> int:
        """One round for resting payments: hints, then checks; how many checks there were."""
        self.late_store.name_own_hints(100, soon())
        for hint in self.late_store.unnamed_hints(100, soon()):
            self.late.name_hint(hint, soon())
        self.inbox.apply_hints(100, soon())
        checks = self.late_store.lease_checks(100, soon())
        for check in checks:
            self.late.settle(check, soon())
        return len(checks)

    def read(self, payment: Payment) -> Payment:
        return self.store.read(payment, soon())
