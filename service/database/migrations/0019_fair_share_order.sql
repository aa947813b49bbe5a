-- outside a transaction
-- The indexes of shares and lists in an order of NULLs that no other index has. Where one merchant
-- has nearly all rows, the planner took the index by time and stepped over 100,000 rows of it: an
-- order that only one index gives leaves no such choice. No column here is ever NULL.

DROP INDEX CONCURRENTLY IF EXISTS payments_queued_share;
CREATE INDEX CONCURRENTLY payments_queued_share
    ON payments (merchant_id, provider, due_at NULLS FIRST)
    WHERE status = 'accepted' AND due_at IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS payments_queued_of_merchant;

DROP INDEX CONCURRENTLY IF EXISTS payments_look_ups_share;
CREATE INDEX CONCURRENTLY payments_look_ups_share
    ON payments (merchant_id, provider, due_at NULLS FIRST)
    WHERE status <> 'accepted' AND due_at IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS payments_look_ups_of_merchant;

DROP INDEX CONCURRENTLY IF EXISTS payments_list_by_status;
CREATE INDEX CONCURRENTLY payments_list_by_status
    ON payments (merchant_id, status, created_at DESC NULLS LAST, payment_id DESC NULLS LAST);
DROP INDEX CONCURRENTLY IF EXISTS payments_by_status;

DROP INDEX CONCURRENTLY IF EXISTS movements_share;
CREATE INDEX CONCURRENTLY movements_share ON movements (merchant_id, due_at NULLS FIRST)
    WHERE due_at IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS movements_due_of_merchant;

DROP INDEX CONCURRENTLY IF EXISTS webhook_outbox_share;
CREATE INDEX CONCURRENTLY webhook_outbox_share
    ON webhook_outbox (merchant_id, endpoint_id, due_at NULLS FIRST) WHERE due_at IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS webhook_outbox_due_of_endpoint;
