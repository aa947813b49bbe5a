-- outside a transaction
-- Late checks by merchant, in an order of NULLs that no other index has (as 0019 has it for payments):
-- many doubtful facts of one merchant delay the checks of no other.
DROP INDEX CONCURRENTLY IF EXISTS late_checks_share;
CREATE INDEX CONCURRENTLY late_checks_share
    ON late_checks (merchant_id, provider, due_at NULLS FIRST) WHERE due_at IS NOT NULL;

-- Hints by what is done with them. A flood of one kind is stepped over by no read of another: hints
-- that name a payment are applied, unnamed ones are compared with our references, and only the rest
-- costs a question to the provider.
DROP INDEX CONCURRENTLY IF EXISTS webhook_inbox_named;
CREATE INDEX CONCURRENTLY webhook_inbox_named ON webhook_inbox (due_at)
    WHERE due_at IS NOT NULL AND (payment_id IS NOT NULL OR provider_ref IS NULL);
DROP INDEX CONCURRENTLY IF EXISTS webhook_inbox_unnamed;
CREATE INDEX CONCURRENTLY webhook_inbox_unnamed ON webhook_inbox (due_at)
    WHERE due_at IS NOT NULL AND payment_id IS NULL AND provider_ref IS NOT NULL AND tries = 0;
DROP INDEX CONCURRENTLY IF EXISTS webhook_inbox_foreign;
CREATE INDEX CONCURRENTLY webhook_inbox_foreign ON webhook_inbox (due_at)
    WHERE due_at IS NOT NULL AND payment_id IS NULL AND provider_ref IS NOT NULL AND tries > 0;
-- One answer of the provider about a charge is the answer to all hints about it.
DROP INDEX CONCURRENTLY IF EXISTS webhook_inbox_about;
CREATE INDEX CONCURRENTLY webhook_inbox_about ON webhook_inbox (provider, provider_ref)
    WHERE due_at IS NOT NULL AND payment_id IS NULL AND provider_ref IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS webhook_inbox_due;
