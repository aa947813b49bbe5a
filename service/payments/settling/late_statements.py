"""The SQL of late facts: due checks, transitions of settled rows, disputes."""

from __future__ import annotations

from service.database.pool.pool import Statement
from service.payments.charge.statements import COLUMNS
from service.payments.events.outbox import OUTBOX
from service.payments.settling.late_facts import AFTERWARDS, NEWS, RESTING

_NEWS_VALUES = ", ".join(
    f"('{event_type}', '{status.value}')"
    for event_type, statuses in NEWS.items()
    for status in statuses
)
_AFTERWARDS = ", ".join(f"'{name}'" for name in AFTERWARDS)
_RESTING = ", ".join(f"'{status.value}'" for status in RESTING)

# A hint makes look-ups due at once: those of the payment and of its movements. For a settled payment
# it requests a late check, if its type is news. It waits while its row is missing, while a process
# looks the payment up, or while its money is not settled.
# Only our own constants are inserted.
APPLY_HINTS = Statement(
    "late_apply_hints",
    f"""
    WITH hint AS (
        SELECT provider, event_id, type, merchant_id, payment_id, provider_ref FROM webhook_inbox
        WHERE due_at <= now() AND (payment_id IS NOT NULL OR provider_ref IS NULL)
        ORDER BY due_at LIMIT %(limit)s::integer
        FOR UPDATE SKIP LOCKED
    ), named AS (
        -- The row that holds the charge comes first: a payment that was lost, or that ended before its
        -- call was executed, gave its charge to the retry that adopted it. Both shapes of charge
        -- share an account's events; with the provider the index finds the reference.
        SELECT h.provider, h.event_id, h.type, h.merchant_id, coalesce(
            (SELECT p.payment_id FROM payments p
             WHERE p.merchant_id = h.merchant_id AND p.provider_ref = h.provider_ref
               AND p.provider = ANY(ARRAY[h.provider, h.provider || '_charges']) LIMIT 1),
            (SELECT p.payment_id FROM payments p
             WHERE p.merchant_id = h.merchant_id AND p.payment_id = h.payment_id)
        ) AS payment_id
        FROM hint h
    ), known AS (
        SELECT h.provider, h.event_id, p.merchant_id, p.payment_id, p.provider AS charged_by,
               p.status IN ({_RESTING}) AS rests,
               (p.leased AND p.status NOT IN ({_RESTING}))
                   OR (h.type IN ({_AFTERWARDS}) AND p.status NOT IN ({_RESTING})) AS waits,
               (h.type, p.status) IN ({_NEWS_VALUES}) AS is_news,
               (p.due_at IS NOT NULL OR p.status = 'needs_review') AND NOT p.leased AS can_nudge
        FROM named h JOIN payments p USING (merchant_id, payment_id)
    ), late AS (
        INSERT INTO late_checks AS c (merchant_id, payment_id, provider, due_at)
        SELECT DISTINCT merchant_id, payment_id, charged_by, now() FROM known WHERE is_news
        ON CONFLICT (merchant_id, payment_id) DO UPDATE SET
            asked = c.asked + 1, tries = 0, due_at = excluded.due_at
        RETURNING payment_id
    ), nudged AS (
        UPDATE payments p SET due_at = now() FROM known k
        WHERE k.can_nudge AND NOT k.rests
          AND p.merchant_id = k.merchant_id AND p.payment_id = k.payment_id
          AND NOT p.leased AND coalesce(p.due_at > now(), true)
        RETURNING p.payment_id
    ), moving AS (
        UPDATE movements m SET due_at = now() FROM known k
        WHERE m.merchant_id = k.merchant_id AND m.payment_id = k.payment_id
          AND m.status NOT IN ('succeeded', 'declined') AND NOT m.leased
          AND coalesce(m.due_at > now(), true)
        RETURNING m.payment_id
    )
    UPDATE webhook_inbox i SET
        tries = i.tries + 1,
        due_at = CASE
            -- Of another instance on the same account: it will never be about a row of ours.
            WHEN NOT EXISTS (SELECT 1 FROM merchants m WHERE m.merchant_id = i.merchant_id)
                THEN NULL
            WHEN EXISTS (SELECT 1 FROM known k WHERE k.provider = i.provider
                         AND k.event_id = i.event_id AND NOT k.waits) THEN NULL
            WHEN i.tries >= %(max_tries)s::integer THEN NULL
            ELSE now() + least(2 ^ i.tries, 3600) * interval '1 second' END
    FROM hint h WHERE i.provider = h.provider AND i.event_id = h.event_id
    RETURNING i.due_at IS NULL
    """,
)

# Hints with an object of the provider and no payment: a dispute, a refund by hand. Our own
# references come first, at no question to the provider: a probe of the unique index for each
# merchant. LATERAL with LIMIT, so that no plan reads all payments instead.
# An event that neither names our charge nor is a refund or dispute has our metadata if it is ours.
NAME_OWN_HINTS = Statement(
    "late_name_own_hints",
    f"""
    WITH hint AS (
        SELECT provider, event_id, provider_ref FROM webhook_inbox
        WHERE due_at <= now() AND payment_id IS NULL AND provider_ref IS NOT NULL AND tries = 0
        ORDER BY due_at LIMIT %(limit)s::integer
        FOR UPDATE SKIP LOCKED
    ), own AS (
        SELECT DISTINCT ON (h.provider, h.event_id)
               h.provider, h.event_id, m.merchant_id, p.payment_id
        FROM hint h CROSS JOIN merchants m CROSS JOIN LATERAL (
            SELECT payment_id FROM payments
            WHERE merchant_id = m.merchant_id AND provider_ref = h.provider_ref
              AND provider = ANY(ARRAY[h.provider, h.provider || '_charges']) LIMIT 1
        ) AS p (payment_id)
    )
    UPDATE webhook_inbox i SET
        merchant_id = own.merchant_id, payment_id = own.payment_id,
        tries = CASE WHEN own.payment_id IS NULL THEN 1 ELSE 0 END,
        due_at = CASE WHEN own.payment_id IS NOT NULL OR i.type IN ({_AFTERWARDS}) THEN now() END
    FROM hint h LEFT JOIN own USING (provider, event_id)
    WHERE i.provider = h.provider AND i.event_id = h.event_id
    RETURNING own.payment_id IS NOT NULL
    """,
)

# The rest: each costs a question to the provider, so the caller has a budget for them.
UNNAMED_HINTS = Statement(
    "late_unnamed_hints",
    """
    WITH hint AS (
        SELECT provider, event_id FROM webhook_inbox
        WHERE due_at <= now() AND payment_id IS NULL AND provider_ref IS NOT NULL AND tries > 0
        ORDER BY due_at LIMIT %(limit)s::integer
        FOR UPDATE SKIP LOCKED
    )
    UPDATE webhook_inbox i SET tries = i.tries + 1,
        due_at = CASE WHEN i.tries < %(max_tries)s::integer
                      THEN now() + least(10 * 2 ^ i.tries, 3600) * interval '1 second' END
    FROM hint h WHERE i.provider = h.provider AND i.event_id = h.event_id
    RETURNING i.provider, i.provider_ref
    """,
)

# All that wait for the same answer.
NAME_HINTS = Statement(
    "late_name_hints",
    """
    UPDATE webhook_inbox SET merchant_id = %(merchant_id)s::uuid, payment_id = %(payment_id)s::uuid,
        tries = 0, due_at = CASE WHEN %(payment_id)s::uuid IS NOT NULL THEN now() END
    WHERE provider = %(provider)s::text AND provider_ref = %(provider_ref)s::text
      AND due_at IS NOT NULL AND payment_id IS NULL AND provider_ref IS NOT NULL
    RETURNING 1
    """,
)

# A whole page of the provider's feed; events that arrived by webhook are stored already.
RECEIVE_MANY = Statement(
    "late_receive_many",
    """
    INSERT INTO webhook_inbox
        (provider, event_id, type, provider_ref, merchant_id, payment_id, due_at)
    SELECT %(provider)s::text, event_id, type, provider_ref, merchant_id, payment_id, now()
    FROM unnest(%(event_ids)s::text[], %(types)s::text[], %(provider_refs)s::text[],
                %(merchant_ids)s::uuid[], %(payment_ids)s::uuid[])
        AS e (event_id, type, provider_ref, merchant_id, payment_id)
    WHERE e.merchant_id IS NULL
       OR EXISTS (SELECT 1 FROM merchants m WHERE m.merchant_id = e.merchant_id)
    ON CONFLICT (provider, event_id) DO NOTHING
    RETURNING 1
    """,
)

# One read of all rows that the sweep compares with a page.
PAYMENTS = Statement(
    "late_payments",
    f"""
    SELECT {COLUMNS}
    FROM unnest(%(merchant_ids)s::uuid[], %(payment_ids)s::uuid[]) AS e (merchant_id, payment_id)
    JOIN payments p USING (merchant_id, payment_id)
    """,
)

# The rows of charges, independent of the rows in their metadata: by reference, else the row of the same
# client key with a call in progress and without a reference. Read once a page, only for charges that
# the rows in their metadata do not have: the second part reads a merchant's open rows.
HOLDERS = Statement(
    "late_holders",
    f"""
    WITH asked AS (
        SELECT DISTINCT merchant_id, provider_ref, key_digest
        FROM unnest(%(merchant_ids)s::uuid[], %(provider_refs)s::text[], %(key_digests)s::text[])
            AS e (merchant_id, provider_ref, key_digest)
    ), held AS (
        SELECT a.provider_ref AS charge_ref, h.payment_id, a.merchant_id
        FROM asked a CROSS JOIN LATERAL (
            SELECT payment_id, key_digest FROM payments
            WHERE merchant_id = a.merchant_id AND provider = %(provider)s::text
              AND provider_ref = a.provider_ref LIMIT 1
        ) AS h (payment_id, key_digest)
        WHERE h.key_digest = a.key_digest
    ), open AS MATERIALIZED (
        SELECT merchant_id, payment_id, key_digest FROM payments
        WHERE merchant_id = ANY(%(merchant_ids)s::uuid[]) AND status = ANY(%(open)s::text[])
          AND provider = %(provider)s::text AND provider_ref IS NULL
          AND key_digest = ANY(%(key_digests)s::text[])
    ), found AS (
        SELECT charge_ref, merchant_id, payment_id FROM held
        UNION ALL
        SELECT a.provider_ref, o.merchant_id, o.payment_id
        FROM asked a JOIN open o USING (merchant_id, key_digest)
        WHERE NOT EXISTS (SELECT 1 FROM held h WHERE h.charge_ref = a.provider_ref
                          AND h.merchant_id = a.merchant_id)
    )
    SELECT f.charge_ref, {COLUMNS}
    FROM found f JOIN payments p ON p.merchant_id = f.merchant_id AND p.payment_id = f.payment_id
    """,
)

# A payment that ended unsent, and was charged before: its row had been set back by lost commits.
TAKE_BACK = Statement(
    "late_take_back",
    """
    UPDATE payments SET provider_ref = %(provider_ref)s::text
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
      AND provider_ref IS NULL AND status = %(status)s::text
    RETURNING 1
    """,
)

ASK = Statement(
    "late_ask",
    """
    INSERT INTO late_checks AS c (merchant_id, payment_id, provider, due_at)
    VALUES (%(merchant_id)s::uuid, %(payment_id)s::uuid, %(provider)s::text, now())
    ON CONFLICT (merchant_id, payment_id) DO UPDATE SET
        asked = c.asked + 1, tries = 0, due_at = excluded.due_at
    RETURNING 1
    """,
)

# Foreign merchants, and whether a charge of theirs was already reported.
STRANGERS = Statement(
    "late_strangers",
    """
    SELECT e.merchant_id, EXISTS (
        SELECT 1 FROM orphan_charges o WHERE o.merchant_id = e.merchant_id) AS is_told
    FROM unnest(%(merchant_ids)s::uuid[]) AS e (merchant_id)
    WHERE NOT EXISTS (SELECT 1 FROM merchants m WHERE m.merchant_id = e.merchant_id)
    """,
)

REFUND_STATUSES = Statement(
    "late_refund_statuses",
    """
    SELECT m.movement_id, m.status
    FROM unnest(%(merchant_ids)s::uuid[], %(movement_ids)s::uuid[]) AS e (merchant_id, movement_id)
    JOIN movements m USING (merchant_id, movement_id)
    """,
)

# As the leases of payments (lease_statements.py): the oldest of all, each merchant's oldest, the take.
DUE_CHECKS = Statement(
    "late_due_checks",
    """
    SELECT merchant_id, payment_id, provider FROM late_checks
    WHERE due_at <= now() ORDER BY due_at LIMIT %(limit)s::integer
    """,
)


def due_checks_of_merchants(*, has_provider: bool) -> Statement:
    """Each merchant's oldest checks; without `has_provider` any provider's are ours."""
    # An equality, not a coalesce: other providers' rows are stepped over in the index.
    provider_is = "AND provider = %(provider)s::text" if has_provider else ""
    return Statement(
        f"late_due_checks_of_merchants{'' if has_provider else '_of_any'}",
        f"""
        SELECT m.merchant_id, c.payment_id FROM merchants m
        CROSS JOIN LATERAL (
            SELECT payment_id FROM late_checks
            WHERE merchant_id = m.merchant_id {provider_is} AND due_at <= now()
            ORDER BY due_at NULLS FIRST LIMIT %(places)s::integer
        ) AS c (payment_id)
        WHERE m.merchant_id > %(after)s::uuid
        ORDER BY m.merchant_id LIMIT %(limit)s::integer
        """,
    )


LEASE_CHECKS = Statement(
    "late_lease_checks",
    """
    UPDATE late_checks SET tries = tries + 1,
        due_at = now() + %(lease_s)s::float8 * interval '1 second'
    WHERE due_at <= now()
      AND (merchant_id, payment_id) IN (
          SELECT due.merchant_id, due.payment_id
          FROM unnest(%(merchant_ids)s::uuid[], %(payment_ids)s::uuid[])
              AS due (merchant_id, payment_id))
    RETURNING merchant_id, payment_id, closes, asked, tries
    """,
)

# Done, unless a new hint has arrived: then due at once again.
END_CHECK = Statement(
    "late_end_check",
    """
    DELETE FROM late_checks
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
      AND asked = %(asked)s::bigint
    RETURNING 1
    """,
)

POSTPONE_CHECK = Statement(
    "late_postpone_check",
    """
    UPDATE late_checks SET due_at = now() + %(due_in_s)s::float8 * interval '1 second'
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
      AND asked = %(asked)s::bigint
    RETURNING 1
    """,
)

# Not while a capture or a void of ours is in progress: its look-up finds the result.
LATE_MOVE = Statement(
    "late_move",
    f"""
    WITH p AS (
        UPDATE payments SET
            status = %(status)s::text,
            amount_captured = greatest(amount_captured, %(amount_captured)s::bigint),
            decline = NULL, next_action = NULL, leased = false, due_at = NULL,
            unknown_since = NULL, updated_at = now()
        WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
          AND status = ANY(%(sources)s::text[]) AND amount_settling = 0
        RETURNING *
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT merchant_id, %(event_id)s::uuid, payment_id, 'payment.' || status, %(detail)s::jsonb
        FROM p
        RETURNING merchant_id, event_id, payment_id, type, created_at
    ), {OUTBOX}
    SELECT {COLUMNS} FROM p
    """,
)

# A refund that has ended, another way: the amounts of the payment follow in the same statement. One
# that is pending at the provider after all is open again, and its amount is held.
LATE_REFUND_MOVE = Statement(
    "late_refund_move",
    f"""
    WITH m AS (
        UPDATE movements SET
            status = %(status)s::text, decline = %(decline)s::jsonb, leased = false,
            due_at = now() + %(due_in_s)s::float8 * interval '1 second',
            sent_at = coalesce(%(sent_at)s::timestamptz, sent_at),
            provider_ref = coalesce(provider_ref, %(provider_ref)s::text), updated_at = now(),
            -- Withdrawn and executed all the same: a retry of its caller finds it by the digest,
            -- unless the freed key belongs to another movement by now.
            withdrawn = withdrawn AND EXISTS (
                SELECT 1 FROM movements o
                WHERE o.merchant_id = %(merchant_id)s::uuid
                  AND o.key_digest = movements.key_digest AND NOT o.withdrawn)
        WHERE merchant_id = %(merchant_id)s::uuid AND movement_id = %(movement_id)s::uuid
          AND kind = 'refund' AND status = %(source)s::text
        RETURNING *
    ), p AS (
        UPDATE payments p SET
            amount_refunded = p.amount_refunded
                + CASE WHEN m.status = 'succeeded' THEN m.amount ELSE 0 END
                - CASE WHEN %(source)s::text = 'succeeded' THEN m.amount ELSE 0 END,
            amount_refunding = p.amount_refunding
                + CASE WHEN m.status = 'pending' THEN m.amount ELSE 0 END,
            updated_at = now()
        FROM m WHERE p.merchant_id = m.merchant_id AND p.payment_id = m.payment_id
        RETURNING p.payment_id
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT m.merchant_id, %(event_id)s::uuid, m.payment_id, 'refund.' || m.status,
               %(detail)s::jsonb
        FROM m JOIN p USING (payment_id)
        RETURNING merchant_id, event_id, payment_id, type, created_at
    ), {OUTBOX}
    SELECT 1 FROM p
    """,
)

# A refund of the provider without a row of ours. An ended one is never due; a pending one holds its
# amount, and its look-ups by reference find its end. It is never sent.
ADD_REFUND = Statement(
    "late_add_refund",
    f"""
    WITH p AS (
        UPDATE payments SET
            amount_refunded = amount_refunded
                + CASE WHEN %(status)s::text = 'succeeded' THEN %(amount)s::bigint ELSE 0 END,
            amount_refunding = amount_refunding
                + CASE WHEN %(status)s::text = 'pending' THEN %(amount)s::bigint ELSE 0 END,
            updated_at = now()
        WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = %(payment_id)s::uuid
          AND status = 'succeeded'
        RETURNING *
    ), m AS (
        INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount, reason,
                               provider_ref, key_digest, due_at, sent_at)
        SELECT merchant_id, %(movement_id)s::uuid, payment_id, 'refund', %(status)s::text,
               %(amount)s::bigint, %(reason)s::text, %(provider_ref)s::text,
               decode(%(key_digest)s::text, 'hex'),
               now() + %(due_in_s)s::float8 * interval '1 second', %(sent_at)s::timestamptz
        FROM p
        RETURNING *
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT merchant_id, %(event_id)s::uuid, payment_id, 'refund.' || status, %(detail)s::jsonb
        FROM m
        RETURNING merchant_id, event_id, payment_id, type, created_at
    ), {OUTBOX}
    SELECT 1 FROM m
    """,
)

# An event is written for a new dispute, for an inquiry that becomes a dispute and takes the money, and
# at the end; intermediate states are only in the row.
PUT_DISPUTE = Statement(
    "late_put_dispute",
    f"""
    WITH old AS (
        SELECT status FROM disputes
        WHERE merchant_id = %(merchant_id)s::uuid AND provider = %(provider)s::text
          AND dispute_ref = %(dispute_ref)s::text
    ), d AS (
        INSERT INTO disputes AS d (merchant_id, provider, dispute_ref, payment_id, amount, currency,
                                   reason, status, opened_at, updated_at)
        VALUES (%(merchant_id)s::uuid, %(provider)s::text, %(dispute_ref)s::text,
                %(payment_id)s::uuid, %(amount)s::bigint, %(currency)s::text, %(reason)s::text,
                %(status)s::text, %(opened_at)s::timestamptz, now())
        ON CONFLICT (merchant_id, provider, dispute_ref) DO UPDATE SET
            status = excluded.status, amount = excluded.amount, updated_at = excluded.updated_at
            WHERE d.status <> excluded.status OR d.amount <> excluded.amount
        RETURNING merchant_id, payment_id, status
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT merchant_id, %(event_id)s::uuid, payment_id, 'payment.disputed', %(detail)s::jsonb
        FROM d WHERE NOT EXISTS (
            SELECT 1 FROM old
            WHERE NOT starts_with(old.status, 'warning_') OR starts_with(d.status, 'warning_'))
        UNION ALL
        SELECT merchant_id, %(end_event_id)s::uuid, payment_id, %(end_type)s::text,
               %(detail)s::jsonb
        FROM d WHERE %(end_type)s::text IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM old WHERE old.status = d.status)
        RETURNING merchant_id, event_id, payment_id, type, created_at
    ), {OUTBOX}
    SELECT type FROM event
    """,
)

DISPUTES_OF = Statement(
    "late_disputes_of",
    """
    SELECT payment_id, dispute_ref, amount, currency, reason, status, opened_at, updated_at
    FROM disputes
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id = ANY(%(payment_ids)s::uuid[])
    ORDER BY opened_at, dispute_ref
    """,
)

OPEN_DISPUTES = Statement(
    "late_open_disputes",
    """
    SELECT count(*) FROM disputes
    WHERE status NOT IN ('won', 'lost', 'warning_closed', 'prevented')
    """,
)
