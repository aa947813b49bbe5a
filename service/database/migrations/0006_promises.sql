-- What is promised about a payment, and what finds its charge when a failover lost our newest commits.

ALTER TABLE payments
    -- SHA-256 over merchant, client key and operation: the provider keys are made from it, and it
    -- stands in the provider's metadata. NULL: a row from before, keyed by its payment id.
    ADD COLUMN key_digest text,
    -- Whether a caller was told that we own it (202): the background sends nothing else. A row from
    -- before, or claimed by a worker from before, counts as promised.
    ADD COLUMN promised boolean NOT NULL DEFAULT true,
    -- The key series whose saved answer is an error: it can execute nothing more.
    ADD COLUMN spent_series integer;
