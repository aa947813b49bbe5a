"""The leases of payments: which rows are due, and who works on each."""

from __future__ import annotations

import random
from collections.abc import Sequence

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.model import Payment
from service.payments.charge.reader import payment_of
from service.payments.leases.due_rows import pick_due
from service.payments.leases.fair_share import Due, FairShare
from service.payments.settling.lease_statements import (
    DOUBTFUL,
    LOOK_UP_IS,
    OLDEST_EXPIRED,
    QUEUED_IS,
    RESCHEDULE_NOW,
    LeaseStatements,
    lease_statements,
)
from service.resilience.deadline import Deadline

# The rows of one statement when doubtful payments are rescheduled, and the number of statements.
RESCHEDULED_AT_ONCE, RESCHEDULED_PAGES = 1000, 20
RESCHEDULED_WITHIN_S = 2.0

# No look-up took place, so no event is written, and the schedule does not advance.
_POSTPONE = Statement(
    "postpone",
    """
    UPDATE payments SET leased = false,
        due_at = now() + %(due_in_s)s::float8 * interval '1 second'
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
      AND fence = %(fence)s::bigint AND leased
    RETURNING 1
    """,
)


class LeaseStore:
    """Leases payments to this process. A lease is committed before any call to the provider.

    Only rows made with `provider` are leased (None: rows of any provider); a process with their
    own provider leases the rest.
    """

    def __init__(
        self, pool: ConnectionPool, *, lease_s: float, provider: str | None = None
    ) -> None:
        self._pool = pool
        self._lease_s = lease_s
        self._provider = provider
        has_provider = provider is not None
        self._queued = lease_statements("queued", QUEUED_IS, has_provider=has_provider)
        self._look_ups = lease_statements("look_ups", LOOK_UP_IS, has_provider=has_provider)
        self._turn_of_queued, self._turn_of_look_ups = FairShare(), FairShare()

    def lease_look_ups(self, limit: int, deadline: Deadline) -> list[Payment]:
        """Take up to `limit` payments whose look-up is due, merchants in turn, for `lease_s`."""
        return self._take(
            self._look_ups,
            self._pick(self._look_ups, self._turn_of_look_ups, limit, deadline),
            deadline,
        )

    def lease_queued(
        self, limit: int, deadline: Deadline, *, only_expired: bool = False
    ) -> list[Payment]:
        """Take up to `limit` queued payments, merchants in turn, each merchant's oldest first.

        Expired ones get up to half of the places: ending them sends no call.
        """
        places = limit if only_expired else (limit + 1) // 2
        expired = self._pool.run(OLDEST_EXPIRED, {"limit": places}, deadline)
        picked = [Due((str(merchant_id),), str(payment_id)) for merchant_id, payment_id in expired]
        if not only_expired and len(picked) < limit:
            queued = self._pick(self._queued, self._turn_of_queued, limit, deadline)
            picked = list(dict.fromkeys([*picked, *queued]))[:limit]
        return self._take(self._queued, picked, deadline)

    def _pick(
        self, statements: LeaseStatements, turn: FairShare, limit: int, deadline: Deadline
    ) -> list[Due]:
        return pick_due(
            self._pool,
            turn,
            oldest=statements.oldest,
            of_merchants=statements.of_merchants,
            provider=self._provider,
            limit=limit,
            deadline=deadline,
        )

    def _take(
        self, statements: LeaseStatements, picked: Sequence[Due], deadline: Deadline
    ) -> list[Payment]:
        if not picked:
            return []
        values = {
            "merchant_ids": [due.owner[0] for due in picked],
            "payment_ids": [due.key for due in picked],
            "lease_s": self._lease_s,
        }
        taken = {
            str(payment.payment_id): payment
            for payment in map(payment_of, self._pool.run(statements.take, values, deadline))
        }
        return [taken[due.key] for due in picked if due.key in taken]

    def postpone(self, payment: Payment, due_in_s: float, deadline: Deadline) -> None:
        """Release an unused lease; the row is due again in `due_in_s`."""
        self._pool.run(
            _POSTPONE,
            {
                "merchant_id": payment.merchant_id,
                "payment_id": payment.payment_id,
                "fence": payment.fence,
                "due_in_s": due_in_s,
            },
            deadline,
        )

    def reschedule_now(self, deadline: Deadline) -> int:
        """Schedule look-ups of doubtful payments within 2 s, as the provider is back; returns their number.

        At most RESCHEDULED_PAGES x RESCHEDULED_AT_ONCE; the rest keep their own schedule.
        """
        hastened = 0
        for _ in range(RESCHEDULED_PAGES):
            rows = self._pool.run(
                DOUBTFUL, {"limit": RESCHEDULED_AT_ONCE, "within_s": RESCHEDULED_WITHIN_S}, deadline
            )
            if rows:
                values = {
                    "merchant_ids": [merchant_id for merchant_id, _ in rows],
                    "payment_ids": [payment_id for _, payment_id in rows],
                    # Spread at random, so that they do not cause another outage.
                    "due_in_s": [random.uniform(0, RESCHEDULED_WITHIN_S) for _ in rows],  # noqa: S311
                }
                hastened += len(self._pool.run(RESCHEDULE_NOW, values, deadline))
            if len(rows) < RESCHEDULED_AT_ONCE or deadline.expired:
                break
        return hastened
