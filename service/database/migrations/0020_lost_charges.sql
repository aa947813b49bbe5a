-- outside a transaction
-- What finds a charge whose row was lost, before its caller's retry is sent.

-- The server that the reconciler has checked: a claim on any other one may miss commits.
ALTER TABLE background_runs ADD COLUMN IF NOT EXISTS server text;

-- Of the client's key, from the provider's metadata: a retry under that key adopts the charge.
ALTER TABLE orphan_charges ADD COLUMN IF NOT EXISTS key_digest text;
CREATE INDEX CONCURRENTLY IF NOT EXISTS orphan_charges_by_key
    ON orphan_charges (merchant_id, key_digest) WHERE key_digest IS NOT NULL;

-- Another payment under the same key may have been charged since then, and its row be lost: the
-- provider's books are searched from here before anything is sent. NULL: no such payment was possible.
ALTER TABLE payments ADD COLUMN IF NOT EXISTS books_from timestamptz;
