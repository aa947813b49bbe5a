"""A service on a scripted provider that can lose its newest commits, like in a failover."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.loss import recovery_name
from service.payments.charge.model import ChargeRequest, Payment
from tests.support.providers.scripted_provider import ScriptedProvider
from tests.support.stack.pools import open_pool_of
from tests.support.stack.settling import Service, soon

# The state after the claim's commit: every later change is lost.
_SET_BACK = """
    UPDATE payments SET status = 'accepted', provider_ref = NULL, amount_captured = 0,
        attempts = '[]', sent_at = NULL, unknown_since = NULL, look_ups = 0, key_series = 1,
        spent_series = NULL, fence = 1, leased = %(leased)s::boolean, due_at = now(),
        promised = NOT %(leased)s::boolean
    RETURNING 1
"""
_SET_BACK_NEWEST = _SET_BACK.replace(
    "RETURNING",
    "WHERE payment_id IN (SELECT payment_id FROM payments ORDER BY payment_id DESC"
    " LIMIT %(newest)s::int) RETURNING",
)
_LOSE_NEWEST = """
    WITH n AS (SELECT payment_id FROM payments ORDER BY payment_id DESC LIMIT %(newest)s::int),
         p AS (DELETE FROM payments WHERE payment_id IN (SELECT payment_id FROM n)),
         k AS (DELETE FROM idempotency_keys WHERE payment_id IN (SELECT payment_id FROM n))
    SELECT 1
"""
_BEGIN_AGAIN = """
    WITH p AS (DELETE FROM payments), k AS (DELETE FROM idempotency_keys),
         o AS (DELETE FROM orphan_charges), u AS (DELETE FROM unread_objects),
         l AS (DELETE FROM late_checks), r AS (DELETE FROM background_runs)
    SELECT 1
"""
_LOSE = """
    WITH p AS (DELETE FROM payments RETURNING 1), k AS (DELETE FROM idempotency_keys)
    SELECT 1 FROM p
"""
# The key then refers to the remaining row, as before.
_LOSE_OTHERS = """
    WITH p AS (DELETE FROM payments WHERE payment_id <> %(payment_id)s::uuid),
         k AS (UPDATE idempotency_keys SET payment_id = %(payment_id)s::uuid)
    SELECT 1
"""
_LOSE_LATER = """
    WITH p AS (DELETE FROM payments WHERE payment_id > %(payment_id)s::uuid),
         k AS (UPDATE idempotency_keys SET payment_id = %(payment_id)s::uuid)
    SELECT 1
"""
# The last check was made on another server, in another timeline, than what runs now.
_FAIL_OVER = """
    INSERT INTO background_runs (name, last_run_at, server, detail)
    VALUES (%(name)s::text, now() - %(ago_s)s::float8 * interval '1 second', 'another server',
            '{"database": "1/00000001"}')
    ON CONFLICT (name) DO UPDATE SET
        server = excluded.server, last_run_at = excluded.last_run_at, detail = excluded.detail
    RETURNING 1
"""
FLOWS = {
    "two_phase": ("stripe", "two_phase", True),
    "two_phase, keys ignored": ("stripe", "two_phase", False),
    "one_shot": ("stripe", "one_shot", True),
    "one_shot, keys ignored": ("stripe", "one_shot", False),
    "charges": ("stripe_charges", "one_shot", True),
}


class Unavailable:
    """The forwarder's view of a provider that the guard knows to be down."""

    available = False

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass
class Rig:
    """A service on a scripted provider, and the database owner's connection for the failover."""

    service: Service
    scripted: ScriptedProvider
    owner: ConnectionPool

    def set_back(self, *, leased: bool = False) -> None:
        self._run(_SET_BACK, {"leased": leased})

    def lose(self) -> None:
        self._run(_LOSE, {})

    def set_back_newest(self, newest: int) -> None:
        """Back to the commit of the claim, for this many payments."""
        self._run(_SET_BACK_NEWEST, {"leased": False, "newest": newest})

    def lose_newest(self, newest: int) -> None:
        """Back to before the claim, for this many payments."""
        self._run(_LOSE_NEWEST, {"newest": newest})

    def begin_again(self) -> None:
        """Both sets of books without any payment."""
        self._run(_BEGIN_AGAIN, {})
        self.scripted.clear(books=True)

    def fail_over(self, ago_s: float = 60.0) -> None:
        """Another server runs now, and its newest commit is so old; no check has seen it yet."""
        name = recovery_name(self.service.provider.name)
        self._run(_FAIL_OVER, {"name": name, "ago_s": ago_s})

    def sweep(self) -> None:
        """One whole pass over the provider's lists."""
        self.service.sweep.run_if_due(soon(), every_s=0.0)

    def lose_all_after(self, payment: Payment) -> None:
        """Back to when `payment` was the newest of its key."""
        self._run(_LOSE_LATER, {"payment_id": str(payment.payment_id)})

    def lose_all_but(self, payment: Payment, **columns: object) -> None:
        """Restore the state in which only `payment` existed, with these values in its row."""
        self._run(_LOSE_OTHERS, {"payment_id": str(payment.payment_id)})
        for name, value in columns.items():
            # The columns are named by the tests themselves.
            sql = f"UPDATE payments SET {name} = %(value)s RETURNING 1"  # noqa: S608
            self._run(sql, {"value": value})

    def _run(self, sql: str, params: dict[str, Any]) -> None:
        self.owner.run(Statement("failover", sql), params, soon())

    def pay(self, request: ChargeRequest) -> Payment:
        return self.service.handler.process_payment(request, soon())[0]

    def work(self, rounds: int = 4) -> None:
        """Run the background jobs once, with all rows due."""
        for _ in range(rounds):
            self.service.make_due()
            self.service.drain()
            self.service.settle()

    @property
    def charges(self) -> int:
        return len(self.scripted.movements(None, "charge"))


@contextmanager
def lossy_rigs(running: ScriptedProvider, pool: ConnectionPool, owner_url: str) -> Iterator[Any]:
    """A function from a flow's name to a Rig, on books without any charge."""
    running.clear(books=True)
    with open_pool_of(1, owner_url) as owner, ExitStack() as adapters:

        def of(flow: str, **more: Any) -> Rig:
            kind, shape, honours = FLOWS[flow]
            running.honour_keys(honours)
            provider = adapters.enter_context(running.adapter(kind, flow=shape))
            return Rig(Service(pool, provider, **more), running, owner)

        yield of
