-- outside a transaction
-- Each rule about money and each list reads the rows that it needs by an index, however many payments
-- there are. Repeatable: each index is dropped first.

-- The rule that a payment has one key reads the key of the payments that have changed.
DROP INDEX CONCURRENTLY IF EXISTS idempotency_keys_by_payment;
CREATE INDEX CONCURRENTLY idempotency_keys_by_payment
    ON idempotency_keys (merchant_id, payment_id) WHERE movement_id IS NULL;

-- One charge under payments of two merchants: the unique index begins with the merchant and finds it
-- within one merchant only.
DROP INDEX CONCURRENTLY IF EXISTS payments_by_charge;
CREATE INDEX CONCURRENTLY payments_by_charge ON payments (provider_ref, provider)
    WHERE provider_ref IS NOT NULL;

-- A list by reference in its own order: a reference may stand in a million payments, and none of them
-- may have the status that is asked for. The order of NULLs as in 0019.
DROP INDEX CONCURRENTLY IF EXISTS payments_list_by_reference;
CREATE INDEX CONCURRENTLY payments_list_by_reference ON payments
    (merchant_id, reference, status, created_at DESC NULLS LAST, payment_id DESC)
    WHERE reference IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS payments_by_reference;

-- Deliveries that were given up are few; without this index they are counted among all that wait.
DROP INDEX CONCURRENTLY IF EXISTS webhook_outbox_given_up;
CREATE INDEX CONCURRENTLY webhook_outbox_given_up ON webhook_outbox (merchant_id, endpoint_id)
    WHERE due_at IS NULL;
