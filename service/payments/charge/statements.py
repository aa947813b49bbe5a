"""The SQL of payments: each statement is a read, or a write that also writes its event."""

from __future__ import annotations

from service.database.pool.pool import Statement
from service.payments.charge.loss import LOSS
from service.payments.events.outbox import OUTBOX

COLUMNS = """
    p.merchant_id, p.payment_id, p.status, p.amount, p.currency, p.payment_method, p.reference,
    p.capture_method, p.customer, p.metadata, p.on_outage, p.expires_at, p.amount_captured,
    p.amount_refunded, p.provider, p.provider_ref, p.key_series, p.decline, p.next_action,
    p.attempts, p.fence, p.leased, p.look_ups, p.due_at,
    extract(epoch FROM now() - p.sent_at)::float8,
    extract(epoch FROM now() - coalesce(p.unknown_since, p.sent_at))::float8,
    coalesce(p.expires_at <= now(), false),
    p.created_at, p.updated_at, p.key_digest, p.promised, p.spent_series, p.books_from
"""

# What a write may change; the rest of a payment is as it was claimed.
CHANGED_COLUMNS = """
    p.status, p.amount_captured, p.amount_refunded, p.provider_ref, p.key_series, p.decline,
    p.next_action, p.attempts, p.fence, p.leased, p.look_ups, p.due_at,
    extract(epoch FROM now() - p.sent_at)::float8,
    extract(epoch FROM now() - coalesce(p.unknown_since, p.sent_at))::float8,
    coalesce(p.expires_at <= now(), false),
    p.updated_at, p.promised, p.spent_series, p.books_from
"""

IS_SURE = """(loss.is_none AND loss.provider_ref IS NULL
               AND %(books_from)s::timestamptz IS NULL)"""
# While commits may be missing, no payment is sent before the provider's books were read: it begins as
# `accepted` in every flow.
_INSERT_PAYMENT = f"""
    {LOSS}, p AS (
        INSERT INTO payments (
            merchant_id, payment_id, status, amount, currency, payment_method, reference,
            capture_method, customer, metadata, on_outage, expires_at, provider, leased, due_at,
            sent_at, key_digest, key_series, promised, books_from)
        SELECT key.merchant_id, key.payment_id,
               CASE WHEN {IS_SURE} THEN %(status)s::text ELSE 'accepted' END,
               %(amount)s::bigint, %(currency)s::text,
               %(payment_method)s::text, %(reference)s::text, %(capture_method)s::text,
               %(customer)s::text, %(metadata)s::jsonb, %(on_outage)s::text,
               coalesce(%(expires_at)s::timestamptz,
                        now() + %(queue_expires_s)s::float8 * interval '1 second'),
               %(provider)s::text, %(leased)s::boolean,
               now() + %(due_in_s)s::float8 * interval '1 second',
               CASE WHEN %(status)s::text = 'sending' AND {IS_SURE} THEN now() END,
               %(key_digest)s::text, %(key_series)s::integer, NOT %(leased)s::boolean,
               %(books_from)s::timestamptz
        FROM key, loss
        RETURNING *
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT merchant_id, %(event_id)s::uuid, payment_id, 'payment.' || status,
               %(detail)s::jsonb
        FROM p
    )
    SELECT NOT {IS_SURE}, lost_from, loss.provider_ref, loss.amount, loss.currency,
           p.status, p.expires_at, coalesce(p.expires_at <= now(), false), p.due_at, p.created_at
    FROM p, loss
"""

# A payment leased to its caller has no promise yet; one left to the background has.
CLAIM = Statement(
    "claim",
    f"""
    WITH key AS (
        INSERT INTO idempotency_keys (merchant_id, idempotency_key, fingerprint, payment_id)
        VALUES (%(merchant_id)s::uuid, %(idempotency_key)s::text, %(fingerprint)s::bytea,
                %(payment_id)s::uuid)
        ON CONFLICT (merchant_id, idempotency_key) DO NOTHING
        RETURNING merchant_id, payment_id
    ), {_INSERT_PAYMENT}""",
)

# The same with a key that a withdrawn payment left free; only one of several callers gets it.
CLAIM_FREED = Statement(
    "key_freed",
    f"""
    WITH key AS (
        UPDATE idempotency_keys
        SET payment_id = %(payment_id)s::uuid, fingerprint = %(fingerprint)s::bytea
        WHERE merchant_id = %(merchant_id)s::uuid
          AND idempotency_key = %(idempotency_key)s::text
          AND payment_id = %(freed_by)s::uuid
        RETURNING merchant_id, payment_id
    ), {_INSERT_PAYMENT}""",
)

# In flight: its caller waits, or the background is about to end an unpromised payment.
# Free: it has ended. The key's row stays, so that its next payment begins another key series.
READ_BY_KEY = Statement(
    "read_by_key",
    f"""
    SELECT k.fingerprint,
           p.leased AND p.due_at > now() AND (p.fence = 1 OR NOT p.promised),
           p.status = 'not_executed' AND NOT p.promised,
           {COLUMNS}
    FROM idempotency_keys k
    JOIN payments p ON p.merchant_id = k.merchant_id AND p.payment_id = k.payment_id
    WHERE k.merchant_id = %(merchant_id)s::uuid AND k.idempotency_key = %(idempotency_key)s::text
    """,
)

GET = Statement(
    "get",
    f"""
    SELECT {COLUMNS} FROM payments p
    WHERE p.merchant_id = %(merchant_id)s::uuid AND p.payment_id = %(payment_id)s::uuid
    """,
)

# Every status change uses this: it changes one row and writes its event, or does neither.
_MOVE_SQL = """
    WITH p AS (
        UPDATE payments SET
            status = %(status)s::text,
            provider_ref = coalesce(%(provider_ref)s::text, provider_ref),
            amount_captured = greatest(amount_captured, %(amount_captured)s::bigint),
            decline = coalesce(%(decline)s::jsonb, decline),
            next_action = CASE WHEN %(status)s::text = 'requires_action'
                               THEN coalesce(%(next_action)s::jsonb, next_action) END,
            attempts = coalesce(%(attempts)s::jsonb, attempts),
            key_series = key_series + %(next_series)s::integer,
            spent_series = CASE WHEN %(spent)s::boolean THEN key_series ELSE spent_series END,
            promised = promised OR %(promised)s::boolean,
            look_ups = look_ups + %(looked_up)s::integer,
            sent_at = CASE WHEN %(sent)s::boolean THEN now() ELSE sent_at END,
            leased = %(leased)s::boolean,
            due_at = now() + %(due_in_s)s::float8 * interval '1 second',
            unknown_since = CASE WHEN %(status)s::text IN ('unknown', 'needs_review')
                                 THEN coalesce(unknown_since, now()) END,
            updated_at = now()
        WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
          AND status = ANY(%(sources)s::text[])
          AND (%(fence)s::bigint IS NULL OR fence = %(fence)s::bigint)
          AND NOT (%(unless_leased)s::boolean AND leased AND due_at > now())
        RETURNING *
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT merchant_id, %(event_id)s::uuid, payment_id, %(event_type)s::text,
               %(detail)s::jsonb
        FROM p
        RETURNING merchant_id, event_id, payment_id, type, created_at
    )
"""
MOVE = Statement("move", f"{_MOVE_SQL} SELECT {CHANGED_COLUMNS} FROM p")
# The same with an outbox row for merchants; intermediate steps have no such cost.
MOVE_AND_TELL = Statement("move_and_tell", f"{_MOVE_SQL}, {OUTBOX} SELECT {CHANGED_COLUMNS} FROM p")

# The same for a charge that was found in the provider's books: as an orphan it is explained now.
ADOPT = Statement(
    "key_adopt",
    f"""{_MOVE_SQL}, orphan AS (
        UPDATE orphan_charges o SET resolved_at = p.updated_at FROM p
        WHERE o.provider = p.provider AND o.provider_ref = p.provider_ref AND o.resolved_at IS NULL
    )
    SELECT {CHANGED_COLUMNS} FROM p
    """,
)

# The same for a payment that ended without money: its intent is closed at the provider, so that
# no payer can pay it later. One statement, so that no declined payment is forgotten.
MOVE_TELL_AND_CLOSE = Statement(
    "late_move_and_close",
    f"""{_MOVE_SQL}, {OUTBOX}, closing AS (
        INSERT INTO late_checks (merchant_id, payment_id, provider, closes, due_at)
        SELECT merchant_id, payment_id, provider, true, now() FROM p WHERE provider_ref IS NOT NULL
        ON CONFLICT (merchant_id, payment_id) DO UPDATE SET
            closes = true, due_at = excluded.due_at
    )
    SELECT {CHANGED_COLUMNS} FROM p
    """,
)

# An unpromised payment ends and frees its key in one statement: until then it is leased, so no
# retry sees it.
WITHDRAW = Statement(
    "withdraw",
    """
    WITH p AS (
        UPDATE payments SET status = 'not_executed', leased = false, due_at = NULL,
            attempts = coalesce(%(attempts)s::jsonb, attempts),
            spent_series = CASE WHEN %(spent)s::boolean THEN key_series ELSE spent_series END,
            updated_at = now()
        WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
          AND status IN ('accepted', 'sending') AND fence = %(fence)s::bigint
          AND NOT promised
        RETURNING *
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT merchant_id, %(event_id)s::uuid, payment_id, 'payment.not_executed',
               %(detail)s::jsonb
        FROM p
    )
    SELECT 1 FROM p
    """,
)

# Runs before a retry is answered with 202. A payment to be refused in an outage is never sent from
# the queue, nor confirmed. No promise is made while the background cancels a recorded charge.
PROMISE = Statement(
    "key_promise",
    f"""
    UPDATE payments p SET promised = true,
        -- Told "not accepted" before, its caller may have paid under the freed key meanwhile.
        books_from = CASE WHEN p.promised THEN p.books_from
                          ELSE coalesce(p.books_from, p.created_at) END
    WHERE p.merchant_id = %(merchant_id)s::uuid AND p.payment_id = %(payment_id)s::uuid
      AND p.status IN ('accepted', 'sending', 'unknown', 'needs_review')
      AND (p.promised OR NOT (
          p.status <> 'accepted' AND p.leased AND p.due_at > now()
          OR p.status IN ('accepted', 'sending') AND p.on_outage = 'reject'))
    RETURNING {COLUMNS}
    """,
)

# The open payments, each from an index of few rows: those on their way are due, and the others wait.
OPEN_PAYMENTS = """(
        SELECT * FROM payments
        WHERE status IN ('requires_capture', 'requires_action', 'unknown', 'needs_review')
        UNION ALL
        SELECT * FROM payments WHERE status = 'accepted' AND due_at IS NOT NULL
        UNION ALL
        SELECT * FROM payments WHERE status = 'sending' AND due_at IS NOT NULL
    )"""

# The bounds of a list are always values, never NULL: the same plan, by index, serves a list with and
# without them, and PostgreSQL may keep it prepared.
_WITHIN = """
          AND created_at >= %(created_gte)s::timestamptz
          AND (created_at, payment_id) < (%(before_at)s::timestamptz, %(before_id)s::uuid)
"""

# The newest rows of each status, from its own part of an index: fast also for a merchant with 10^7
# payments and none of these statuses. A list of all statuses merges these parts, so that no payment
# pays for another index. Only the intended index has this order of NULLs.
_OF_EACH_STATUS = f"""
    SELECT {COLUMNS} FROM unnest(%(statuses)s::text[]) AS wanted (status)
    CROSS JOIN LATERAL (
        SELECT * FROM payments
        WHERE merchant_id = %(merchant_id)s::uuid AND status = wanted.status {{and_more}} {_WITHIN}
        ORDER BY created_at DESC NULLS LAST, payment_id DESC {{nulls}} LIMIT %(limit)s::integer
    ) AS p
    ORDER BY p.created_at DESC, p.payment_id DESC LIMIT %(limit)s::integer
"""
LIST_BY_STATUS = Statement(
    "list_by_status", _OF_EACH_STATUS.format(and_more="", nulls="NULLS LAST")
)
# A reference may be in a million payments, and none of them may have the status.
LIST_BY_REFERENCE = Statement(
    "list_by_reference",
    _OF_EACH_STATUS.format(and_more="AND reference = %(reference)s::text", nulls=""),
)

TIMELINE = Statement(
    "timeline",
    """
    SELECT event_id, payment_id, type, detail, created_at FROM events
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
    ORDER BY event_id LIMIT 1000
    """,
)

# A needs_review payment has no scheduled look-up; an operator's request starts one.
LOOK_NOW = Statement(
    "look_now",
    """
    UPDATE payments SET due_at = now()
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
      AND NOT (leased AND due_at > now()) AND status = ANY(%(statuses)s::text[])
    RETURNING 1
    """,
)

NUDGE = Statement(
    "nudge",
    """
    UPDATE payments p SET due_at = now()
    WHERE p.merchant_id = %(merchant_id)s::uuid AND p.payment_id = %(payment_id)s::uuid
      AND NOT p.leased AND p.due_at > now()
      AND p.updated_at < now() - %(at_most_every_s)s::float8 * interval '1 second'
      -- A client that polls thousands of payments has this many looked at before their time.
      AND (SELECT count(*) FROM (
              SELECT 1 FROM payments q
              WHERE q.merchant_id = %(merchant_id)s::uuid AND q.provider = p.provider
                AND q.status <> 'accepted' AND q.due_at <= now()
              ORDER BY q.due_at NULLS FIRST LIMIT %(most)s::integer
          ) AS waiting (one)) < %(most)s::integer
    RETURNING 1
    """,
)
