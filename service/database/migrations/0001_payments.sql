-- Merchants, keys, payments and their events. Ids are made by the application (UUIDv7), amounts are
-- bigint in minor units, every unique key begins with merchant_id, so that the tables can be spread.

CREATE TABLE merchants (
    merchant_id uuid PRIMARY KEY,
    name        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- An API key is looked up by its public id before the merchant is known: the one exception.
CREATE TABLE api_keys (
    key_id        text PRIMARY KEY,
    merchant_id   uuid NOT NULL,
    secret_sha256 bytea NOT NULL,
    mode          text NOT NULL CHECK (mode IN ('test', 'live')),
    scopes        text[] NOT NULL,
    label         text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_used_at  timestamptz,
    expires_at    timestamptz,
    revoked_at    timestamptz
);
CREATE INDEX api_keys_by_merchant ON api_keys (merchant_id);

CREATE TABLE payments (
    merchant_id     uuid NOT NULL,
    payment_id      uuid NOT NULL,
    status          text NOT NULL CHECK (status IN (
        'accepted', 'sending', 'succeeded', 'requires_capture', 'requires_action', 'declined',
        'unknown', 'not_executed', 'needs_review', 'canceled', 'expired')),
    amount          bigint NOT NULL CHECK (amount > 0),
    currency        text NOT NULL CHECK (currency ~ '^[a-z]{3}$'),
    payment_method  text NOT NULL,
    reference       text,
    capture_method  text NOT NULL CHECK (capture_method IN ('automatic', 'manual')),
    customer        text,
    metadata        jsonb NOT NULL DEFAULT '{}',
    on_outage       text NOT NULL CHECK (on_outage IN ('queue', 'reject')),
    expires_at      timestamptz,
    -- Never more captured than authorised, never more refunded than captured; what is reserved for
    -- refunds under way counts as spent.
    amount_captured bigint NOT NULL DEFAULT 0 CHECK (amount_captured BETWEEN 0 AND amount),
    amount_refunded bigint NOT NULL DEFAULT 0 CHECK (amount_refunded >= 0),
    amount_refunding bigint NOT NULL DEFAULT 0 CHECK (amount_refunding >= 0),
    provider        text NOT NULL,
    provider_ref    text,
    key_series      integer NOT NULL DEFAULT 1 CHECK (key_series >= 1),
    decline         jsonb,
    next_action     jsonb,
    attempts        jsonb NOT NULL DEFAULT '[]',
    -- The lease: whoever raised `fence` last owns the payment until `due_at`; then it is anybody's.
    -- Not leased, `due_at` is the next look-up, which a nudge may bring forward.
    fence           bigint NOT NULL DEFAULT 1,
    leased          boolean NOT NULL DEFAULT false,
    due_at          timestamptz,
    -- When the money call was last begun: before a new one, the old one must have come to rest.
    sent_at         timestamptz,
    look_ups        integer NOT NULL DEFAULT 0,
    -- When money first came into doubt; the age of the oldest is what people are woken by.
    unknown_since   timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, payment_id),
    CHECK (amount_refunded + amount_refunding <= amount_captured),
    CHECK (status <> 'succeeded' OR amount_captured > 0)
) WITH (fillfactor = 80);  -- Each payment is updated twice at once; leave room on its page.

-- One provider reference belongs to one payment: a second row would be a second charge.
CREATE UNIQUE INDEX payments_by_provider_ref ON payments (merchant_id, provider, provider_ref)
    WHERE provider_ref IS NOT NULL;
CREATE INDEX payments_by_time ON payments (merchant_id, created_at DESC, payment_id DESC);
CREATE INDEX payments_by_reference ON payments (merchant_id, reference) WHERE reference IS NOT NULL;
-- Only open payments are due, so these stay small however many payments there are.
CREATE INDEX payments_due ON payments (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX payments_open ON payments (status, created_at)
    WHERE status NOT IN ('succeeded', 'declined', 'not_executed', 'canceled', 'expired');

-- Not partitioned by time: a key must be found for as long as its payment lives.
CREATE TABLE idempotency_keys (
    merchant_id     uuid NOT NULL,
    idempotency_key text NOT NULL,
    fingerprint     bytea NOT NULL,
    payment_id      uuid NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, idempotency_key)
);

-- What happened, in order, written with what it tells of; never changed afterwards.
CREATE TABLE events (
    merchant_id uuid NOT NULL,
    event_id    uuid NOT NULL,
    payment_id  uuid,
    type        text NOT NULL,
    detail      jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, event_id, created_at)
) PARTITION BY RANGE (created_at);
CREATE TABLE events_other PARTITION OF events DEFAULT;
CREATE INDEX events_by_payment ON events (merchant_id, payment_id, event_id);

-- What a provider told us by webhook; a hint that leads to a look-up, never a fact by itself.
CREATE TABLE webhook_inbox (
    provider     text NOT NULL,
    event_id     text NOT NULL,
    type         text NOT NULL,
    provider_ref text,
    merchant_id  uuid,
    payment_id   uuid,
    received_at  timestamptz NOT NULL DEFAULT now(),
    due_at       timestamptz,
    tries        integer NOT NULL DEFAULT 0,
    PRIMARY KEY (provider, event_id)
);
CREATE INDEX webhook_inbox_due ON webhook_inbox (due_at) WHERE due_at IS NOT NULL;

-- Charges in the provider's books that ours cannot explain: each one pages somebody.
CREATE TABLE orphan_charges (
    provider     text NOT NULL,
    provider_ref text NOT NULL,
    merchant_id  uuid,
    payment_id   uuid,
    amount       bigint NOT NULL,
    currency     text NOT NULL,
    reason       text NOT NULL,
    found_at     timestamptz NOT NULL DEFAULT now(),
    resolved_at  timestamptz,
    PRIMARY KEY (provider, provider_ref)
);

-- The clocks of the background work: who ran what last, and a lease so that one runs at a time.
CREATE TABLE background_runs (
    name        text PRIMARY KEY,
    fence       bigint NOT NULL DEFAULT 0,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    last_run_at timestamptz,
    detail      jsonb NOT NULL DEFAULT '{}'
);
