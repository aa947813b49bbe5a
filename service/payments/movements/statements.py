"""The SQL of captures, voids and refunds: each statement also writes its events."""

from __future__ import annotations

from service.database.pool.pool import Statement
from service.payments.charge.loss import LOSS
from service.payments.charge.statements import COLUMNS
from service.payments.events.outbox import OUTBOX
from service.payments.movements.model import Kind

MOVEMENT_COLUMNS = """
    m.merchant_id, m.movement_id, m.payment_id, m.kind, m.status, m.amount, m.reason,
    m.provider_ref, m.key_series, encode(m.key_digest, 'hex'),
    m.key_spent, m.promised, m.withdrawn, m.decline, m.attempts, m.fence, m.leased, m.look_ups,
    m.due_at,
    extract(epoch FROM now() - m.sent_at)::float8,
    extract(epoch FROM now() - coalesce(m.unknown_since, m.sent_at))::float8,
    m.created_at, m.updated_at
"""


# The payment has this status, and no row of ours caused it.
_ENDED_WITHOUT_US = """capture_method = 'manual' AND provider_ref IS NOT NULL
    AND NOT EXISTS (
        SELECT 1 FROM movements o
        WHERE o.merchant_id = %(merchant_id)s::uuid AND o.payment_id = %(payment_id)s::uuid
          AND o.kind IN ('capture', 'void') AND o.status <> 'declined')"""


def _claim(
    name: str,
    *,
    allowed: str,
    reserve: str,
    status: str = "sending",
    payment_event: str | None = None,
) -> Statement:
    """The statement that reserves the money: it succeeds completely or not at all.

    The key's insert has no ON CONFLICT: of two calls with one key the loser's whole statement
    fails, so that it cannot have reserved any money.
    """
    return Statement(
        name,
        f"""
        WITH p AS (
            UPDATE payments SET {reserve}, updated_at = now()
            WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
              AND {allowed}
              AND currency <> ALL(%(currencies_without)s::text[])
            RETURNING *
        ), key AS (
            INSERT INTO idempotency_keys
                (merchant_id, idempotency_key, fingerprint, payment_id, movement_id)
            SELECT merchant_id, %(idempotency_key)s::text, %(fingerprint)s::bytea, payment_id,
                   %(movement_id)s::uuid
            FROM p
        ), m AS (
            INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount,
                                   reason, idempotency_key, key_digest, promised, key_series,
                                   leased, due_at, sent_at)
            SELECT merchant_id, %(movement_id)s::uuid, payment_id, %(kind)s::text, '{status}',
                   coalesce(%(amount)s::bigint, amount), %(reason)s::text,
                   %(idempotency_key)s::text, decode(%(key_digest)s::text, 'hex'), '{status}' <> 'sending',
                   -- A key that was freed begins a new series: the provider may remember the old.
                   1 + coalesce((
                       SELECT max(w.key_series) FROM movements w
                       WHERE w.merchant_id = %(merchant_id)s::uuid AND w.withdrawn
                         AND w.key_digest = decode(%(key_digest)s::text, 'hex')), 0),
                   '{status}' = 'sending',
                   CASE WHEN '{status}' = 'sending'
                        THEN now() + %(lease_s)s::float8 * interval '1 second' END,
                   CASE WHEN '{status}' = 'sending' THEN now() END
            FROM p
            RETURNING *
        ), event AS (
            INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
            SELECT merchant_id, %(event_id)s::uuid, payment_id, kind || '.{status}',
                   %(detail)s::jsonb
            FROM m
            UNION ALL
            SELECT merchant_id, %(payment_event_id)s::uuid, payment_id, '{payment_event}',
                   %(detail)s::jsonb
            FROM p WHERE {payment_event is not None}
            RETURNING merchant_id, event_id, payment_id, type, created_at
        ), {OUTBOX}
        SELECT 1 FROM m
        """,
    )


CLAIMS = {
    Kind.REFUND: [
        _claim(
            "claim_refund",
            allowed="""status = 'succeeded' AND provider_ref IS NOT NULL
                AND amount_captured - amount_refunded - amount_refunding >= %(amount)s::bigint""",
            reserve="amount_refunding = amount_refunding + %(amount)s::bigint",
        )
    ],
    Kind.CAPTURE: [
        _claim(
            "claim_capture",
            allowed="""status = 'requires_capture' AND amount_settling = 0
                AND coalesce(%(amount)s::bigint, amount) <= amount""",
            reserve="amount_settling = coalesce(%(amount)s::bigint, amount)",
        ),
        # A capture with a lost row: the sweep has found it, and its caller repeats the call.
        _claim(
            "adopt_capture",
            allowed=f"""status = 'succeeded' AND {_ENDED_WITHOUT_US}
                AND amount_captured = coalesce(%(amount)s::bigint, amount)""",
            reserve="amount_settling = 0",
            status="succeeded",
        ),
    ],
    Kind.VOID: [
        _claim(
            "claim_void",
            allowed="status IN ('requires_capture', 'requires_action') AND amount_settling = 0",
            reserve="amount_settling = amount",
        ),
        # No call was sent, and without this row's status none will be. The row may have been set
        # back by a failover, so the provider's books come first (`MovementHandler`).
        _claim(
            "cancel_queued",
            allowed="status = 'accepted' AND %(is_looked_for)s::boolean",
            reserve="status = 'canceled', leased = false, due_at = NULL",
            status="succeeded",
            payment_event="payment.canceled",
        ),
        _claim(
            "adopt_void",
            allowed=f"status = 'canceled' AND {_ENDED_WITHOUT_US}",
            reserve="amount_settling = 0",
            status="succeeded",
        ),
    ],
}

READ_BY_KEY = Statement(
    "read_movement_by_key",
    f"""
    SELECT k.fingerprint, coalesce(m.leased AND m.fence = 1 AND m.due_at > now(), false),
           {MOVEMENT_COLUMNS}, {COLUMNS}
    FROM idempotency_keys k
    JOIN payments p ON p.merchant_id = k.merchant_id AND p.payment_id = k.payment_id
    LEFT JOIN movements m ON m.merchant_id = k.merchant_id AND m.movement_id = k.movement_id
    WHERE k.merchant_id = %(merchant_id)s::uuid AND k.idempotency_key = %(idempotency_key)s::text
    """,
)

GET = Statement(
    "get_movement",
    f"""
    SELECT {MOVEMENT_COLUMNS}, {COLUMNS} FROM movements m JOIN payments p USING (merchant_id, payment_id)
    WHERE m.merchant_id = %(merchant_id)s::uuid AND m.movement_id = %(movement_id)s::uuid
    """,
)

# A row that lost its key with a commit, or that the sweep restored: the digest still finds it.
READ_BY_DIGEST = Statement(
    "read_movement_by_digest",
    f"""
    SELECT {MOVEMENT_COLUMNS}, {COLUMNS} FROM movements m JOIN payments p USING (merchant_id, payment_id)
    WHERE m.merchant_id = %(merchant_id)s::uuid AND m.key_digest = decode(%(key_digest)s::text, 'hex')
      AND NOT m.withdrawn
    """,
)

# Stores the key of such a row again.
ADD_KEY = Statement(
    "add_movement_key",
    """
    INSERT INTO idempotency_keys
        (merchant_id, idempotency_key, fingerprint, payment_id, movement_id)
    VALUES (%(merchant_id)s::uuid, %(idempotency_key)s::text, %(fingerprint)s::bytea,
            %(payment_id)s::uuid, %(movement_id)s::uuid)
    ON CONFLICT (merchant_id, idempotency_key) DO NOTHING
    RETURNING 1
    """,
)

# Written before a 202: from now on the background sends it. A promise needs no lease.
PROMISE = Statement(
    "promise_movement",
    """
    UPDATE movements SET promised = true
    WHERE merchant_id = %(merchant_id)s::uuid AND movement_id = %(movement_id)s::uuid
      AND NOT withdrawn
    RETURNING 1
    """,
)

# Ends a claim that the provider's books lack: its key and its amount are free again. Merchants get no
# event, because it had no promise, except where a promise could not be kept.
WITHDRAW = Statement(
    "withdraw_movement",
    """
    WITH m AS (
        UPDATE movements SET status = 'declined', withdrawn = true, leased = false, due_at = NULL,
            decline = %(decline)s::jsonb, unknown_since = NULL, updated_at = now(),
            look_ups = look_ups + %(looked_up)s::integer
        WHERE merchant_id = %(merchant_id)s::uuid AND movement_id = %(movement_id)s::uuid
          AND status NOT IN ('succeeded', 'declined', 'pending') AND NOT promised
          AND fence = %(fence)s::bigint
        RETURNING *
    ), key AS (
        DELETE FROM idempotency_keys k USING m
        WHERE k.merchant_id = m.merchant_id AND k.idempotency_key = m.idempotency_key
          AND k.movement_id = m.movement_id
    ), p AS (
        UPDATE payments p SET
            amount_settling = CASE WHEN m.kind = 'refund' THEN p.amount_settling ELSE 0 END,
            amount_refunding = p.amount_refunding
                - CASE WHEN m.kind = 'refund' THEN m.amount ELSE 0 END,
            updated_at = now()
        FROM m WHERE p.merchant_id = m.merchant_id AND p.payment_id = m.payment_id
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT merchant_id, %(event_id)s::uuid, payment_id, kind || '.withdrawn', %(detail)s::jsonb
        FROM m
    )
    SELECT 1 FROM m
    """,
)

# A key without its movement is invalid: the call starts again, and the digest still protects it.
FREE_KEY = Statement(
    "free_movement_key",
    """
    DELETE FROM idempotency_keys k
    WHERE k.merchant_id = %(merchant_id)s::uuid AND k.idempotency_key = %(idempotency_key)s::text
      AND k.movement_id IS NOT NULL AND NOT EXISTS (
          SELECT 1 FROM movements m
          WHERE m.merchant_id = %(merchant_id)s::uuid AND m.movement_id = k.movement_id)
    RETURNING 1
    """,
)

# Whether nothing tells of lost commits, nor of a charge that the sweep found under the payment's key.
IS_TRUSTED = Statement(
    "key_is_trusted",
    f"""
    WITH {LOSS}
    SELECT loss.is_none AND loss.provider_ref IS NULL FROM loss
    """,
)

READ_PAYMENT = Statement(
    "read_payment_reserved",
    """
    SELECT status, amount, amount_captured - amount_refunded - amount_refunding, amount_settling,
           provider_ref, currency
    FROM payments
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
    """,
)

# At most one capture or void of a payment has not been declined.
GET_END = Statement(
    "late_movement_end",
    f"""
    SELECT {MOVEMENT_COLUMNS}, {COLUMNS} FROM movements m JOIN payments p USING (merchant_id, payment_id)
    WHERE m.merchant_id = %(merchant_id)s::uuid AND m.payment_id = %(payment_id)s::uuid
      AND m.kind = %(kind)s::text
    ORDER BY m.status = 'declined', m.movement_id DESC LIMIT 1
    """,
)

LIST_REFUNDS = Statement(
    "list_refunds",
    f"""
    SELECT {MOVEMENT_COLUMNS} FROM movements m
    WHERE m.merchant_id = %(merchant_id)s::uuid AND m.payment_id = %(payment_id)s::uuid
      AND m.kind = 'refund'
      AND m.movement_id < %(before)s::uuid
    ORDER BY m.movement_id DESC LIMIT %(limit)s::integer
    """,
)

# Every change of a movement uses this. Its reserved amount is spent or released in the same statement
# that ends it.
MOVE = Statement(
    "move_movement",
    f"""
    WITH m AS (
        UPDATE movements SET
            status = %(status)s::text,
            provider_ref = coalesce(%(provider_ref)s::text, provider_ref),
            decline = coalesce(%(decline)s::jsonb, decline),
            attempts = coalesce(%(attempts)s::jsonb, attempts),
            key_series = key_series + %(next_series)s::integer,
            key_spent = (key_spent OR %(key_spent)s::boolean) AND %(next_series)s::integer = 0,
            promised = promised OR %(promised)s::boolean,
            look_ups = look_ups + %(looked_up)s::integer,
            sent_at = CASE WHEN %(sent)s::boolean THEN now() ELSE sent_at END,
            leased = %(leased)s::boolean,
            due_at = now() + %(due_in_s)s::float8 * interval '1 second',
            unknown_since = CASE WHEN %(status)s::text IN ('unknown', 'needs_review')
                                 THEN coalesce(unknown_since, now()) END,
            updated_at = now()
        WHERE merchant_id = %(merchant_id)s::uuid AND movement_id = %(movement_id)s::uuid
          AND status = ANY(%(sources)s::text[])
          AND (%(fence)s::bigint IS NULL OR fence = %(fence)s::bigint)
        RETURNING *
    ), p AS (
        UPDATE payments p SET
            status = coalesce(%(payment_status)s::text, p.status),
            next_action = CASE WHEN %(payment_status)s::text IS NULL THEN p.next_action END,
            leased = p.leased AND %(payment_status)s::text IS NULL,
            due_at = CASE WHEN %(payment_status)s::text IS NULL THEN p.due_at END,
            amount_captured = greatest(p.amount_captured, %(amount_captured)s::bigint),
            amount_settling = CASE WHEN m.kind = 'refund' THEN p.amount_settling ELSE 0 END,
            amount_refunding = p.amount_refunding
                - CASE WHEN m.kind = 'refund' THEN m.amount ELSE 0 END,
            amount_refunded = p.amount_refunded
                + CASE WHEN m.kind = 'refund' AND m.status = 'succeeded' THEN m.amount ELSE 0 END,
            updated_at = now()
        FROM m
        WHERE p.merchant_id = m.merchant_id AND p.payment_id = m.payment_id
          AND m.status IN ('succeeded', 'declined')
          AND (%(payment_status)s::text IS NULL OR p.status = ANY(%(payment_sources)s::text[]))
        RETURNING p.merchant_id, p.payment_id
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT merchant_id, %(event_id)s::uuid, payment_id, kind || '.' || %(event)s::text,
               %(detail)s::jsonb
        FROM m
        UNION ALL
        SELECT merchant_id, %(payment_event_id)s::uuid, payment_id,
               'payment.' || %(payment_status)s::text, %(detail)s::jsonb
        FROM p WHERE %(payment_status)s::text IS NOT NULL
        RETURNING merchant_id, event_id, payment_id, type, created_at
    ), {OUTBOX}
    SELECT 1 FROM m
    """,
)

# Like the leases of payments: the oldest of all, each merchant's oldest, and the lease itself.
DUE = Statement(
    "due_movements",
    """
    SELECT m.merchant_id, m.movement_id, p.provider
    FROM (
        SELECT merchant_id, movement_id, payment_id, due_at FROM movements
        WHERE due_at <= now() ORDER BY due_at LIMIT %(limit)s::integer
    ) AS m (merchant_id, movement_id, payment_id, due_at)
    JOIN payments p ON p.merchant_id = m.merchant_id AND p.payment_id = m.payment_id
    ORDER BY m.due_at
    """,
)

DUE_OF_MERCHANTS = Statement(
    "due_movements_of_merchants",
    """
    SELECT w.merchant_id, m.movement_id FROM merchants w
    CROSS JOIN LATERAL (
        SELECT d.movement_id FROM movements d
        JOIN payments p ON p.merchant_id = d.merchant_id AND p.payment_id = d.payment_id
        WHERE d.merchant_id = w.merchant_id AND d.due_at <= now()
          AND (%(provider)s::text IS NULL OR p.provider = %(provider)s::text)
        ORDER BY d.due_at NULLS FIRST LIMIT %(places)s::integer
    ) AS m (movement_id)
    WHERE w.merchant_id > %(after)s::uuid
    ORDER BY w.merchant_id LIMIT %(limit)s::integer
    """,
)

LEASE = Statement(
    "lease_movements",
    f"""
    WITH m AS (
        UPDATE movements SET fence = fence + 1, leased = true,
            due_at = now() + %(lease_s)s::float8 * interval '1 second'
        WHERE due_at <= now()
          AND (merchant_id, movement_id) IN (
              SELECT due.merchant_id, due.movement_id
              FROM unnest(%(merchant_ids)s::uuid[], %(movement_ids)s::uuid[])
                  AS due (merchant_id, movement_id))
        RETURNING *
    )
    SELECT {MOVEMENT_COLUMNS}, {COLUMNS} FROM m JOIN payments p USING (merchant_id, payment_id)
    """,
)

POSTPONE = Statement(
    "postpone_movement",
    """
    UPDATE movements SET leased = false,
        due_at = now() + %(due_in_s)s::float8 * interval '1 second'
    WHERE merchant_id = %(merchant_id)s::uuid AND movement_id = %(movement_id)s::uuid
      AND fence = %(fence)s::bigint AND leased
    RETURNING 1
    """,
)

# Includes movements for a person's decision: they have no scheduled look-up.
LOOK_NOW = Statement(
    "look_now_movements",
    """
    UPDATE movements SET due_at = now()
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
      AND status NOT IN ('succeeded', 'declined') AND NOT (leased AND due_at > now())
    RETURNING movement_id
    """,
)

UNDER_WAY = Statement(
    "movements_under_way",
    """
    SELECT 1 FROM movements
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
      AND status NOT IN ('succeeded', 'declined') AND leased AND due_at > now() LIMIT 1
    """,
)

NUDGE = Statement(
    "nudge_movement",
    """
    UPDATE movements SET due_at = now()
    WHERE merchant_id = %(merchant_id)s::uuid AND movement_id = %(movement_id)s::uuid
      AND NOT leased AND due_at > now() AND updated_at < now() - interval '2 seconds'
      -- A client that polls thousands of refunds has this many looked at before their time.
      AND (SELECT count(*) FROM (
              SELECT 1 FROM movements WHERE merchant_id = %(merchant_id)s::uuid AND due_at <= now()
              ORDER BY due_at NULLS FIRST LIMIT %(most)s::integer) AS waiting (one)) < %(most)s::integer
    RETURNING 1
    """,
)
