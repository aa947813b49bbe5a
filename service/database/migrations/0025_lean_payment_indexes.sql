-- outside a transaction
-- Each payment writes an entry into each index in each of its two or three versions; these two had
-- another index for their reads. Repeatable: each index is dropped first.

-- Open payments that wait for an answer, for the payer or for a person. Payments on their way are in
-- the indexes of due rows, and most of them end within seconds.
DROP INDEX CONCURRENTLY IF EXISTS payments_waiting;
CREATE INDEX CONCURRENTLY payments_waiting ON payments (status, created_at)
    WHERE status IN ('requires_capture', 'requires_action', 'unknown', 'needs_review');
DROP INDEX CONCURRENTLY IF EXISTS payments_open;

-- Ids are ordered by time, so that the primary key serves the list of a merchant's payments.
DROP INDEX CONCURRENTLY IF EXISTS payments_by_time;
