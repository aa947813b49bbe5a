"""Charges in the provider's books that no payment of ours explains."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.model import LostCharge, Payment
from service.providers.base import ProviderCharge
from service.resilience.deadline import Deadline

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


class OrphanStore:
    """Stores such charges, and finds them again by the client key that made them."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

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
                "merchant_id": merchant_id,
                "payment_id": payment_id,
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
            "merchant_ids": [payment.merchant_id for payment in keyed],
            "key_digests": [payment.key_digest for payment in keyed],
            "provider": provider,
        }
        rows = self._pool.run(_LOST_CHARGES, values, deadline)
        return {digest: LostCharge(*rest) for digest, *rest in rows}
