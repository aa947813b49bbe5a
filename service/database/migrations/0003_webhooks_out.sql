-- Where merchants want to hear of events, and what they are still to be told.

CREATE TABLE webhook_endpoints (
    merchant_id     uuid NOT NULL,
    endpoint_id     uuid NOT NULL,
    url             text NOT NULL,
    description     text,
    -- '*' is every type that is told to merchants.
    event_types     text[] NOT NULL,
    status          text NOT NULL DEFAULT 'enabled' CHECK (status IN ('enabled', 'paused')),
    paused_reason   text CHECK (paused_reason IN ('failing', 'gone', 'asked')),
    -- Kept as it is, not as a hash: we sign with it.
    secret          bytea NOT NULL,
    -- While a secret is being replaced, both sign.
    old_secret      bytea,
    old_secret_until timestamptz,
    -- Tries in a row that brought no 2xx, since when, and why the last one did not.
    failures        integer NOT NULL DEFAULT 0,
    failing_since   timestamptz,
    last_error      text,
    last_delivered_at timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, endpoint_id),
    CHECK ((status = 'paused') = (paused_reason IS NOT NULL))
);

-- One row for each event and endpoint until it is delivered; written by the statement that writes
-- the event, so that neither is there without the other.
CREATE TABLE webhook_outbox (
    merchant_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    event_id    uuid NOT NULL,
    payment_id  uuid,
    type        text NOT NULL,
    event_at    timestamptz NOT NULL,
    tries       integer NOT NULL DEFAULT 0,
    -- The lease: who raised it last delivers, until `due_at`.
    fence       bigint NOT NULL DEFAULT 1,
    -- NULL: given up; it waits to be asked for again.
    due_at      timestamptz DEFAULT now(),
    PRIMARY KEY (merchant_id, endpoint_id, event_id)
);
CREATE INDEX webhook_outbox_due ON webhook_outbox (due_at) WHERE due_at IS NOT NULL;
