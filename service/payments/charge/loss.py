"""Detects possibly lost commits inside a claim: the SQL in the claim's own statement.

After a failover or a restore, a claim before the next background check must not be trusted. So the
claim compares the server that executes it with the one that the reconciler has checked: in the
statement itself, because a pooler may exchange the server behind an open connection.
"""

from __future__ import annotations

# Every running reconciler writes its check; a database without one for this time was restored, or
# ours was down for three sweeps: in both cases the books are compared before the queue continues.
GAP_S = 900.0

# The running server: a failover, a restore and a restart all change its start. The table's own
# number changes where a dump is read back into the same server. Both come from memory.
SERVER = """extract(epoch FROM pg_postmaster_start_time())::text
    || '/' || 'payments'::regclass::oid::text"""

# One row: whether the rows can be trusted, what may be missing, and the charge that the sweep has
# found under the client's key, with no payment here. Two probes, each on a primary key or an index.
# Without any check yet, only a merchant that had payments before can miss some.
LOSS = f"""
    loss AS (
        SELECT coalesce(
                   r.detail ->> 'since' IS NULL AND CASE WHEN r.server IS NULL
                       THEN r.last_run_at > now() - {GAP_S:.0f} * interval '1 second'
                       ELSE r.server = {SERVER} END,
                   NOT EXISTS (
                       SELECT 1 FROM payments e WHERE e.merchant_id = %(merchant_id)s::uuid
                         AND e.created_at < now() - {GAP_S:.0f} * interval '1 second')) AS is_none,
               CASE WHEN r.detail ->> 'since' IS NOT NULL
                    THEN (r.detail ->> 'from')::timestamptz
                    WHEN r.server IS NOT NULL THEN r.last_run_at END AS lost_from,
               o.provider_ref, o.amount, o.currency
        FROM (VALUES (1)) AS one
        LEFT JOIN background_runs r ON r.name = %(recovery)s::text
        LEFT JOIN (
            SELECT provider_ref, amount, currency FROM orphan_charges
            WHERE merchant_id = %(merchant_id)s::uuid AND key_digest = %(key_digest)s::text
              AND provider = %(provider)s::text
            -- What moved money comes before what only could.
            ORDER BY resolved_at NULLS FIRST LIMIT 1
        ) AS o ON true
    )"""


def recovery_name(provider: str) -> str:
    """The row of `background_runs` with the check for lost commits."""
    return f"recovery {provider}"
