-- outside a transaction
-- Work that is due, by merchant and by kind: a long queue of one merchant is neither in the way of
-- look-ups nor of another merchant. Each index is dropped first, since a build that was cut short
-- leaves an invalid one behind.

DROP INDEX CONCURRENTLY IF EXISTS payments_queued;
CREATE INDEX CONCURRENTLY payments_queued ON payments (due_at)
    WHERE status = 'accepted' AND due_at IS NOT NULL;

DROP INDEX CONCURRENTLY IF EXISTS payments_queued_of_merchant;
CREATE INDEX CONCURRENTLY payments_queued_of_merchant ON payments (merchant_id, provider, due_at)
    WHERE status = 'accepted' AND due_at IS NOT NULL;

-- A queued payment ends at expires_at even where the provider is down or another's.
DROP INDEX CONCURRENTLY IF EXISTS payments_queued_expiry;
CREATE INDEX CONCURRENTLY payments_queued_expiry ON payments (expires_at)
    WHERE status = 'accepted' AND due_at IS NOT NULL;

DROP INDEX CONCURRENTLY IF EXISTS payments_look_ups;
CREATE INDEX CONCURRENTLY payments_look_ups ON payments (due_at)
    WHERE status <> 'accepted' AND due_at IS NOT NULL;

DROP INDEX CONCURRENTLY IF EXISTS payments_look_ups_of_merchant;
CREATE INDEX CONCURRENTLY payments_look_ups_of_merchant
    ON payments (merchant_id, provider, due_at)
    WHERE status <> 'accepted' AND due_at IS NOT NULL;

-- A list by status reads the rows that it shows, also where a merchant has none of that status.
DROP INDEX CONCURRENTLY IF EXISTS payments_by_status;
CREATE INDEX CONCURRENTLY payments_by_status
    ON payments (merchant_id, status, created_at DESC, payment_id DESC);

DROP INDEX CONCURRENTLY IF EXISTS movements_due_of_merchant;
CREATE INDEX CONCURRENTLY movements_due_of_merchant ON movements (merchant_id, due_at)
    WHERE due_at IS NOT NULL;

DROP INDEX CONCURRENTLY IF EXISTS webhook_outbox_due_of_endpoint;
CREATE INDEX CONCURRENTLY webhook_outbox_due_of_endpoint
    ON webhook_outbox (merchant_id, endpoint_id, due_at) WHERE due_at IS NOT NULL;

-- Queued payments and look-ups shared this one: each statement has its own now.
DROP INDEX CONCURRENTLY IF EXISTS payments_due;
