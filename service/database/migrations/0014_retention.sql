-- outside a transaction
-- What the background removes is found by its age, and tables that change all the time are
-- vacuumed early. Repeatable: each index is dropped first.

DROP INDEX CONCURRENTLY IF EXISTS webhook_inbox_done;
CREATE INDEX CONCURRENTLY webhook_inbox_done ON webhook_inbox (received_at) WHERE due_at IS NULL;

DROP INDEX CONCURRENTLY IF EXISTS webhook_outbox_by_time;
CREATE INDEX CONCURRENTLY webhook_outbox_by_time ON webhook_outbox (event_at);

-- A queue's dead rows lie where the next read begins, and a fifth of 10^7 rows (the default) is far
-- too many to step over. Truncation would lock the table for the readers that wait behind it.
ALTER TABLE webhook_outbox SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0.02, vacuum_truncate = false);
ALTER TABLE webhook_inbox SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500,
    vacuum_truncate = false);
-- Two updates each: 2 % dead rows keep the partial indexes of what is due small.
ALTER TABLE payments SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE movements SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
