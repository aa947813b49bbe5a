"""The promises about money as SQL: each counts rows that break one, and each must be 0.

The recent ones are read by the primary key (ids are ordered by time), so the cost does not grow
with the payments stored.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from service.database.pool import ConnectionPool, Statement
from service.resilience.deadline import Deadline

EVERY_S = 60.0
# Long enough that every payment is looked at many times while it can still be mended quietly.
WINDOW = timedelta(hours=6)

_RECENT = """
    recent AS (
        SELECT p.* FROM merchants m
        JOIN payments p ON p.merchant_id = m.merchant_id AND p.payment_id >= %(since_id)s::uuid
    )
"""

# Payments of any age whose money was moved lately.
_MOVED = """
    moved AS (
        SELECT DISTINCT m.merchant_id, m.payment_id FROM merchants
        JOIN movements m ON m.merchant_id = merchants.merchant_id
                        AND m.movement_id >= %(since_id)s::uuid
    )
"""
_REFUNDS = "coalesce(sum(m.amount) FILTER (WHERE m.kind = 'refund' AND m.status {which}), 0)"

RULES = {
    "one_payment_a_key": f"""
        WITH {_RECENT} SELECT count(*) FROM (
            SELECT 1 FROM recent r JOIN idempotency_keys k USING (merchant_id, payment_id)
            WHERE k.movement_id IS NULL
            GROUP BY r.merchant_id, r.payment_id HAVING count(*) > 1) AS broken""",
    "one_payment_a_reference": f"""
        WITH {_RECENT} SELECT count(*) FROM (
            SELECT 1 FROM recent WHERE provider_ref IS NOT NULL
            GROUP BY provider, provider_ref HAVING count(*) > 1) AS broken""",
    "captured_within_authorised": f"""
        WITH {_RECENT} SELECT count(*) FROM recent WHERE amount_captured > amount""",
    "refunded_within_captured": f"""
        WITH {_RECENT} SELECT count(*) FROM recent
        WHERE amount_refunded + amount_refunding > amount_captured""",
    "refunds_add_up": f"""
        WITH {_MOVED} SELECT count(*) FROM (
            SELECT p.payment_id FROM payments p JOIN moved USING (merchant_id, payment_id)
            JOIN movements m USING (merchant_id, payment_id)
            GROUP BY p.merchant_id, p.payment_id
            HAVING p.amount_refunded <> {_REFUNDS.format(which="= 'succeeded'")}
                OR p.amount_refunding
                   <> {_REFUNDS.format(which="NOT IN ('succeeded', 'declined')")}) AS broken""",
    "captured_once": f"""
        WITH {_MOVED} SELECT count(*) FROM (
            SELECT p.payment_id FROM payments p JOIN moved USING (merchant_id, payment_id)
            JOIN movements m USING (merchant_id, payment_id)
            WHERE m.kind IN ('capture', 'void') AND m.status = 'succeeded'
            GROUP BY p.merchant_id, p.payment_id
            HAVING count(*) > 1 OR max(m.amount) FILTER (WHERE m.kind = 'capture')
                                   <> p.amount_captured) AS broken""",
    "payment_has_events": f"""
        WITH {_RECENT} SELECT count(*) FROM recent r WHERE NOT EXISTS (
            SELECT 1 FROM events e
            WHERE e.merchant_id = r.merchant_id AND e.payment_id = r.payment_id
              AND e.type = 'payment.' || r.status)""",
    "terminal_stays": f"""
        WITH {_RECENT} SELECT count(*) FROM (
            SELECT 1 FROM recent r JOIN events e USING (merchant_id, payment_id)
            WHERE e.type IN ('payment.succeeded', 'payment.declined', 'payment.not_executed',
                             'payment.canceled', 'payment.expired')
              AND coalesce(e.detail ->> 'op', '') <> 'late'
            GROUP BY r.merchant_id, r.payment_id HAVING count(*) > 1) AS broken""",
    "charge_has_payment": """
        SELECT count(*) FROM orphan_charges WHERE resolved_at IS NULL""",
}

_STATEMENTS = {rule: Statement(f"invariant_{rule}", sql) for rule, sql in RULES.items()}


def check_invariants(
    pool: ConnectionPool, deadline: Deadline, *, window: timedelta = WINDOW
) -> dict[str, int]:
    """Count the violations of each rule among the payments of the last `window`."""
    since_ms = int((datetime.now(UTC) - window).timestamp() * 1000)
    # The smallest version 7 UUID of that millisecond (RFC 9562).
    since_id = f"{since_ms:012x}" + "7" + "0" * 19
    return {
        rule: int(pool.run(statement, {"since_id": since_id}, deadline)[0][0])
        for rule, statement in _STATEMENTS.items()
    }
