"""The SQL of leases: bounded reads of due rows, and the lease by compare-and-set.

Two kinds that share no index: payments to send (queued) and payments to look up. For each, the
oldest rows of all merchants and each merchant's oldest. No row is locked before the UPDATE: its
own check of `due_at`, on the row's newest version, decides who gets the lease.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.database.pool.pool import Statement
from service.payments.charge.statements import COLUMNS

QUEUED_IS = "status = 'accepted'"
LOOK_UP_IS = "status <> 'accepted'"


@dataclass(frozen=True, slots=True)
class LeaseStatements:
    """The three statements of one kind of work; without `has_provider` for rows of any provider."""

    oldest: Statement
    of_merchants: Statement
    take: Statement


def lease_statements(kind: str, kind_is: str, *, has_provider: bool) -> LeaseStatements:
    """The statements for payments of a kind; `kind_is` must be one index's own condition."""
    suffix = "" if has_provider else "_of_any"
    # An equality, not a coalesce: other providers' rows are stepped over in the index.
    provider_is = "AND provider = %(provider)s::text" if has_provider else ""
    return LeaseStatements(
        Statement(f"due_{kind}", _OLDEST.format(kind_is=kind_is)),
        Statement(
            f"due_{kind}_of_merchants{suffix}",
            _OF_MERCHANTS.format(kind_is=kind_is, provider_is=provider_is),
        ),
        Statement(f"lease_{kind}", _TAKE.format(kind_is=kind_is)),
    )


_OLDEST = """
    SELECT merchant_id, payment_id, provider FROM payments
    WHERE {kind_is} AND due_at <= now()
    ORDER BY due_at LIMIT %(limit)s::integer
"""

# One probe of the index for each merchant; the outer LIMIT ends it as soon as all places are filled.
# NULLS FIRST: an order that the index by time does not have; with that index the planner would skip
# over one merchant's 100,000 rows.
_OF_MERCHANTS = """
    SELECT m.merchant_id, p.payment_id FROM merchants m
    CROSS JOIN LATERAL (
        SELECT payment_id FROM payments
        WHERE merchant_id = m.merchant_id AND {kind_is} {provider_is} AND due_at <= now()
        ORDER BY due_at NULLS FIRST LIMIT %(places)s::integer
    ) AS p (payment_id)
    WHERE m.merchant_id > %(after)s::uuid
    ORDER BY m.merchant_id LIMIT %(limit)s::integer
"""

# Queued and expired: also for another provider, because no call is sent.
OLDEST_EXPIRED = Statement(
    "due_expired",
    """
    SELECT merchant_id, payment_id FROM payments
    WHERE status = 'accepted' AND due_at <= now() AND expires_at <= now()
    ORDER BY expires_at LIMIT %(limit)s::integer
    """,
)

_TAKE = f"""
    WITH p AS (
        UPDATE payments SET fence = fence + 1, leased = true,
            due_at = now() + %(lease_s)s::float8 * interval '1 second'
        WHERE {{kind_is}} AND due_at <= now()
          AND (merchant_id, payment_id) IN (
              SELECT due.merchant_id, due.payment_id
              FROM unnest(%(merchant_ids)s::uuid[], %(payment_ids)s::uuid[])
                  AS due (merchant_id, payment_id))
        RETURNING *
    )
    SELECT {COLUMNS} FROM p
"""

# The outage explains their doubt. The soonest first; the caller draws the pauses at random, so that
# payments that failed together are not retried together.
DOUBTFUL = Statement(
    "due_later",
    """
    SELECT merchant_id, payment_id FROM payments
    WHERE status <> 'accepted' AND status IN ('sending', 'unknown') AND NOT leased
      AND due_at > now() + %(within_s)s::float8 * interval '1 second'
    ORDER BY due_at LIMIT %(limit)s::integer
    """,
)
RESCHEDULE_NOW = Statement(
    "hasten",
    """
    UPDATE payments p SET due_at = now() + doubtful.due_in_s * interval '1 second'
    FROM unnest(%(merchant_ids)s::uuid[], %(payment_ids)s::uuid[], %(due_in_s)s::float8[])
        AS doubtful (merchant_id, payment_id, due_in_s)
    WHERE p.merchant_id = doubtful.merchant_id AND p.payment_id = doubtful.payment_id
      AND p.status IN ('sending', 'unknown') AND NOT p.leased AND p.due_at > now()
    RETURNING 1
    """,
)
