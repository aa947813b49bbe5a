-- What is done with a payment's money after it was authorised: captures, voids and refunds, each a
-- row of its own that is claimed, leased, sent and settled as payments are.

ALTER TABLE payments
    -- What the capture or the void under way has taken hold of: while it is not 0 no second begins.
    -- (A refund's share is amount_refunding.)
    ADD COLUMN amount_settling bigint NOT NULL DEFAULT 0
        CHECK (amount_settling BETWEEN 0 AND amount);

-- The key of a capture, void or refund; NULL: the key of the payment itself.
ALTER TABLE idempotency_keys ADD COLUMN movement_id uuid;

CREATE TABLE movements (
    merchant_id   uuid NOT NULL,
    movement_id   uuid NOT NULL,
    payment_id    uuid NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('capture', 'void', 'refund')),
    status        text NOT NULL CHECK (status IN (
        'accepted', 'sending', 'pending', 'succeeded', 'declined', 'unknown', 'needs_review')),
    amount        bigint NOT NULL CHECK (amount > 0),
    reason        text,
    provider_ref  text,
    key_series    integer NOT NULL DEFAULT 1 CHECK (key_series >= 1),
    decline       jsonb,
    attempts      jsonb NOT NULL DEFAULT '[]',
    -- Lease, schedule and doubt: as in payments.
    fence         bigint NOT NULL DEFAULT 1,
    leased        boolean NOT NULL DEFAULT false,
    due_at        timestamptz,
    sent_at       timestamptz,
    look_ups      integer NOT NULL DEFAULT 0,
    unknown_since timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, movement_id)
) WITH (fillfactor = 80);

CREATE INDEX movements_by_payment ON movements (merchant_id, payment_id, movement_id);
-- A second capture, or a void beside a capture, whatever the code above it believes.
CREATE UNIQUE INDEX movements_one_end ON movements (merchant_id, payment_id)
    WHERE kind IN ('capture', 'void') AND status <> 'declined';
-- One refund of the provider's belongs to one of ours.
CREATE UNIQUE INDEX movements_by_provider_ref ON movements (merchant_id, provider_ref)
    WHERE kind = 'refund' AND provider_ref IS NOT NULL;
CREATE INDEX movements_due ON movements (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX movements_open ON movements (status, created_at)
    WHERE status NOT IN ('succeeded', 'declined');
