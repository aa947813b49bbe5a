-- Captures, voids and refunds survive the loss of their newest commits, and only promised ones are
-- sent by the background.

ALTER TABLE movements
    -- SHA-256 over merchant, client key and operation: a retry after a lost commit derives the same
    -- provider key. NULL: a row of an older version, whose key is derived from its id.
    ADD COLUMN key_digest bytea,
    -- The client's key, to free it where the movement is withdrawn.
    ADD COLUMN idempotency_key text,
    -- A caller was told that the movement is ours (202). Older versions send whatever they claimed.
    ADD COLUMN promised boolean NOT NULL DEFAULT true,
    -- The provider replayed a saved error under the key of this series: it executes nothing any more.
    ADD COLUMN key_spent boolean NOT NULL DEFAULT false,
    -- The claim was ended unsent, its amount and its key are free again.
    ADD COLUMN withdrawn boolean NOT NULL DEFAULT false;

-- Two movements of one client key, whatever became of the row that held the key.
CREATE UNIQUE INDEX movements_by_key_digest ON movements (merchant_id, key_digest)
    WHERE key_digest IS NOT NULL AND NOT withdrawn;
-- Few: the keys that were freed, and the series that each of them has used.
CREATE INDEX movements_withdrawn ON movements (merchant_id, key_digest) WHERE withdrawn;
