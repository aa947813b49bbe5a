"""A merchant with too many open payments is marked periodically, and freed when they settle."""

from __future__ import annotations

from uuid import UUID, uuid4

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.handler import PaymentHandler
from service.payments.charge.model import Payment, Status
from service.payments.charge.open_limit import OpenLimit
from service.payments.charge.store import PaymentStore
from service.payments.merchants import KeyStore
from service.resilience.deadline import Deadline
from tests.support.charge_requests import charge_request
from tests.support.providers.booked_provider import BookedProvider, unknown

_REGISTER = Statement(
    "register",
    "INSERT INTO merchants (merchant_id, name) VALUES (%(merchant_id)s::uuid, 'test') RETURNING 1",
)


def soon() -> Deadline:
    return Deadline.after(60)


def doubtful(pool: ConnectionPool, store: PaymentStore, merchant_id: UUID) -> Payment:
    handler = PaymentHandler(store, BookedProvider(unknown()), provider_timeout_s=5)
    return handler.process_payment(charge_request(merchant_id), soon())[0]


def test_a_merchant_is_marked_at_the_limit_and_freed_below_it(pool):
    store, keys, limit = (
        PaymentStore(pool, lease_s=10, queue_expires_s=3600),
        KeyStore(pool),
        OpenLimit(pool, most=3),
    )
    greedy, other = uuid4(), uuid4()
    key_ids = {}
    for merchant_id in (greedy, other):
        pool.run(_REGISTER, {"merchant_id": str(merchant_id)}, soon())
        key, _ = keys.create(merchant_id, soon(), mode="test", scopes=["payments"])
        key_ids[merchant_id] = key.key_id

    def marked() -> list[bool]:
        limit.mark(soon())
        found = [keys.find(key_ids[merchant_id], soon()) for merchant_id in (greedy, other)]
        return [key is not None and key.has_too_many_open for key in found]

    payments = [doubtful(pool, store, greedy) for _ in range(3)]
    doubtful(pool, store, other)
    assert marked() == [True, False]

    store.resolve(payments[0], Status.DECLINED, "seen in the books", "key", soon())
    assert marked() == [False, False]
