"""Bulk reads and writes of the reconciler: leases, the webhook inbox, orphans, the figures."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.model import LostCharge, Payment
from service.payments.charge.store import payment_of
from service.payments.leases.due_rows import pick_due
from service.payments.leases.fair_share import Due, FairShare
from service.payments.settling.late_statements import APPLY_HINTS
from service.payments.settling.lease_statements import (
    DOUBTFUL,
    LOOK_UP_IS,
    OLDEST_EXPIRED,
    QUEUED_IS,
    RESCHEDULE_NOW,
    LeaseStatements,
    lease_statements,
)
from service.providers.base import ProviderCharge
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

_RECEIVE_WEBHOOK = Statement(
    "receive_webhook",
    """
    INSERT INTO webhook_inbox
        (provider, event_id, type, provider_ref, merchant_id, payment_id, due_at)
    VALUES (%(provider)s::text, %(event_id)s::text, %(type)s::text, %(provider_ref)s::text,
            %(merchant_id)s::uuid, %(payment_id)s::uuid, now())
    ON CONFLICT (provider, event_id) DO NOTHING
    RETURNING 1
    """,
)

# The reason for a charge of ours without a row that may still be paid: a retry finds it, and it does not page.
_NOT_PAID = "not paid yet"

_ADD_ORPHAN = Statement(
    "add_orphan",
    f"""
    INSERT INTO orphan_charges
        (provider, provider_ref, merchant_id, payment_id, amount, currency, reason, key_digest,
         resolved_at)
    VALUES (%(provider)s::text, %(provider_ref)s::text, %(merchant_id)s::uuid,
            %(payment_id)s::uuid, %(amount)s::bigint, %(currency)s::text, %(reason)s::text,
            %(key_digest)s::text, CASE WHEN %(reason)s::text = '{_NOT_PAID}' THEN now() END)
    ON CONFLICT (provider, provider_ref) DO UPDATE SET
        reason = excluded.reason, resolved_at = excluded.resolved_at
        WHERE orphan_charges.reason = '{_NOT_PAID}' AND excluded.reason <> '{_NOT_PAID}'
    RETURNING 1
    """,
)

# The charges of lost rows, as the sweep has found them, by the digest of their client's key.
_LOST_CHARGES = Statement(
    "orphans_by_key",
    """
    SELECT k.key_digest, o.provider_ref, o.amount, o.currency
    FROM unnest(%(merchant_ids)s::uuid[], %(key_digests)s::text[]) AS k (merchant_id, key_digest)
    CROSS JOIN LATERAL (
        SELECT * FROM orphan_charges
        WHERE merchant_id = k.merchant_id AND key_digest = k.key_digest
          AND provider = %(provider)s::text
        ORDER BY resolved_at NULLS FIRST LIMIT 1
    ) AS o
    """,
)

_LEASE_RUN = Statement(
    "lease_run",
    """
    INSERT INTO background_runs (name, fence, leased_until)
    VALUES (%(name)s::text, 1, now() + %(lease_s)s::float8 * interval '1 second')
    ON CONFLICT (name) DO UPDATE SET
        fence = background_runs.fence + 1,
        leased_until = now() + %(lease_s)s::float8 * interval '1 second'
    WHERE background_runs.leased_until <= now()
      AND (background_runs.last_run_at IS NULL
           OR background_runs.last_run_at <= now() - %(every_s)s::float8 * interval '1 second')
    RETURNING fence, last_run_at, detail
    """,
)

_END_RUN = Statement(
    "end_run",
    """
    UPDATE background_runs SET leased_until = now(), last_run_at = now(), detail = %(detail)s::jsonb
    WHERE name = %(name)s::text AND fence = %(fence)s::bigint
    RETURNING 1
    """,
)

_HEARTBEAT = Statement(
    "heartbeat",
    """
    INSERT INTO background_runs (name, last_run_at) VALUES (%(name)s::text, now())
    ON CONFLICT (name) DO UPDATE SET last_run_at = now()
    RETURNING 1
    """,
)

_LAST_HEARTBEAT = Statement(
    "last_heartbeat", "SELECT last_run_at FROM background_runs WHERE name = %(name)s::text"
)

_OPEN_FIGURES = Statement(
    "open_figures",
    """
    SELECT kind, status, currency, count(*), sum(amount)::bigint,
           coalesce(max(extract(epoch FROM now() - coalesce(unknown_since, created_at))), 0)::float8,
           coalesce(max(extract(epoch FROM now() - due_at)) FILTER (WHERE due_at < now()), 0)::float8
    FROM (
        SELECT 'payment' AS kind, status, currency, amount, unknown_since, created_at, due_at
        FROM payments
        WHERE status NOT IN ('succeeded', 'declined', 'not_executed', 'canceled', 'expired')
        UNION ALL
        SELECT m.kind, m.status, p.currency, m.amount, m.unknown_since, m.created_at, m.due_at
        FROM movements m JOIN payments p USING (merchant_id, payment_id)
        WHERE m.status NOT IN ('succeeded', 'declined')
    ) AS open
    GROUP BY kind, status, currency
    """,
)


@dataclass(frozen=True, slots=True)
class OpenFigure:
    """The open rows of one kind, status and currency, as one row of the figures."""

    # payment, capture, void or refund.
    kind: str
    status: str
    currency: str
    count: int
    amount_minor: int
    oldest_age_s: float
    overdue_s: float


@dataclass(frozen=True, slots=True)
class BackgroundRun:
    """A background run leased to the caller; `fence` ends it."""

    name: str
    fence: int
    last_run_at: datetime | None
    detail: Mapping[str, Any]


class SettlingStore:
    """Leases and bulk reads. A lease is committed before any call to the provider.

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
                "merchant_id": str(payment.merchant_id),
                "payment_id": str(payment.payment_id),
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
                    "merchant_ids": [str(merchant_id) for merchant_id, _ in rows],
                    "payment_ids": [str(payment_id) for _, payment_id in rows],
                    # Spread at random, so that they do not cause another outage.
                    "due_in_s": [random.uniform(0, RESCHEDULED_WITHIN_S) for _ in rows],  # noqa: S311
                }
                hastened += len(self._pool.run(RESCHEDULE_NOW, values, deadline))
            if len(rows) < RESCHEDULED_AT_ONCE or deadline.expired:
                break
        return hastened

    def receive_webhook(
        self,
        deadline: Deadline,
        *,
        provider: str,
        event_id: str,
        type_: str,
        provider_ref: str | None,
        merchant_id: UUID | None,
        payment_id: UUID | None,
    ) -> bool:
        """Store a provider's event; False: it was stored already."""
        rows = self._pool.run(
            _RECEIVE_WEBHOOK,
            {
                "provider": provider,
                "event_id": event_id,
                "type": type_,
                "provider_ref": provider_ref,
                "merchant_id": str(merchant_id) if merchant_id else None,
                "payment_id": str(payment_id) if payment_id else None,
            },
            deadline,
        )
        return bool(rows)

    def apply_hints(self, limit: int, deadline: Deadline) -> int:
        """Reschedule the look-ups of webhook hints; returns the number of consumed hints."""
        rows = self._pool.run(APPLY_HINTS, {"limit": limit, "max_tries": 24}, deadline)
        return sum(used_up for (used_up,) in rows)

    def add_orphan(
        self,
        charge: ProviderCharge,
        *,
        provider: str,
        merchant_id: UUID | None,
        payment_id: UUID | None,
        reason: str,
        deadline: Deadline,
    ) -> bool:
        """Store a charge that our books cannot explain; False: it was stored already."""
        rows = self._pool.run(
            _ADD_ORPHAN,
            {
                "provider": provider,
                "provider_ref": charge.provider_ref,
                "merchant_id": str(merchant_id) if merchant_id else None,
                "payment_id": str(payment_id) if payment_id else None,
                "amount": charge.amount_minor,
                "currency": charge.currency,
                "reason": reason,
                "key_digest": charge.key_digest,
            },
            deadline,
        )
        return bool(rows)

    def keep_unpaid(
        self,
        charge: ProviderCharge,
        *,
        provider: str,
        merchant_id: UUID,
        payment_id: UUID,
        deadline: Deadline,
    ) -> None:
        """Store a charge of ours with a lost row, which may still be paid, for its key's retry."""
        self.add_orphan(
            charge,
            provider=provider,
            merchant_id=merchant_id,
            payment_id=payment_id,
            reason=_NOT_PAID,
            deadline=deadline,
        )

    def lost_charges(
        self, payments: Sequence[Payment], provider: str, deadline: Deadline
    ) -> dict[str, LostCharge]:
        """The sweep's charges under the keys of these payments, by the key's digest."""
        keyed = [payment for payment in payments if payment.key_digest is not None]
        if not keyed:
            return {}
        values = {
            "merchant_ids": [str(payment.merchant_id) for payment in keyed],
            "key_digests": [payment.key_digest for payment in keyed],
            "provider": provider,
        }
        rows = self._pool.run(_LOST_CHARGES, values, deadline)
        return {digest: LostCharge(*rest) for digest, *rest in rows}

    def lease_run(
        self, name: str, *, every_s: float, lease_s: float, deadline: Deadline
    ) -> BackgroundRun | None:
        """Lease a run that takes place once every `every_s` in all processes; None: not due, or leased."""
        rows = self._pool.run(
            _LEASE_RUN, {"name": name, "every_s": every_s, "lease_s": lease_s}, deadline
        )
        return BackgroundRun(name, *rows[0]) if rows else None

    def end_run(self, run: BackgroundRun, detail: Mapping[str, Any], deadline: Deadline) -> None:
        """Record the end of the run; without effect when another process has its lease."""
        self._pool.run(
            _END_RUN,
            {"name": run.name, "fence": run.fence, "detail": json.dumps(dict(detail))},
            deadline,
        )

    def heartbeat(self, name: str, deadline: Deadline) -> None:
        """Write a background process's heartbeat; health checks read its age."""
        self._pool.run(_HEARTBEAT, {"name": name}, deadline)

    def last_heartbeat(self, name: str, deadline: Deadline) -> datetime | None:
        """The time of the newest heartbeat of such a background process; None: never."""
        rows = self._pool.run(_LAST_HEARTBEAT, {"name": name}, deadline)
        return rows[0][0] if rows else None

    def open_figures(self, deadline: Deadline) -> list[OpenFigure]:
        """Counts, sums and ages of all open rows; reads only those, for any number of closed ones."""
        return [OpenFigure(*row) for row in self._pool.run(_OPEN_FIGURES, {}, deadline)]
