-- Facts that come after a payment has come to rest: disputes, and the checks that find them out.

CREATE TABLE disputes (
    merchant_id  uuid NOT NULL,
    provider     text NOT NULL,
    dispute_ref  text NOT NULL,
    payment_id   uuid NOT NULL,
    amount       bigint NOT NULL CHECK (amount > 0),
    currency     text NOT NULL,
    reason       text NOT NULL,
    -- The provider's own word, for its list grows: needs_response, under_review, won, lost, ..
    status       text NOT NULL,
    opened_at    timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, provider, dispute_ref)
);
CREATE INDEX disputes_by_payment ON disputes (merchant_id, payment_id);
CREATE INDEX disputes_open ON disputes (status)
    WHERE status NOT IN ('won', 'lost', 'warning_closed', 'prevented');

-- Resting payments that the provider must be asked about once more. Only these are here, so that a
-- hint about an old payment costs the rows of new ones nothing.
CREATE TABLE late_checks (
    merchant_id uuid NOT NULL,
    payment_id  uuid NOT NULL,
    provider    text NOT NULL,
    -- The payment ended without money: its intent is to be cancelled, so that it stays so.
    closes      boolean NOT NULL DEFAULT false,
    -- Raised by each hint; a check ends only what had been asked when it began.
    asked       bigint NOT NULL DEFAULT 1,
    tries       integer NOT NULL DEFAULT 0,
    -- NULL: given up.
    due_at      timestamptz DEFAULT now(),
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, payment_id)
);
CREATE INDEX late_checks_due ON late_checks (due_at) WHERE due_at IS NOT NULL;
