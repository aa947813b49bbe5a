-- The audit log: one row for each privileged act, written in the act's own transaction. The serving
-- role may insert and read rows, never change or delete them (RIGHTS in migrate.py).

CREATE TABLE audit_log (
    audit_id    uuid PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    action      text NOT NULL CHECK (action ~ '^[a-z_]+\.[a-z_]+$'),
    -- The owner of the object; NULL where the act concerns the whole instance.
    merchant_id uuid,
    actor_kind  text NOT NULL CHECK (actor_kind IN ('api_key', 'cli', 'service')),
    -- The id of an API key, the name of an operating-system user, or a program of ours.
    actor       text NOT NULL,
    actor_label text,
    -- The peer's address as the server saw it; for a command its host name.
    address     text,
    request_id  text,
    target      text,
    detail      jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_log_by_target ON audit_log (target, audit_id DESC);

-- The platform scope is a column of its own, not a word in `scopes`: the version before this one
-- lists the words of `scopes` and knows no fifth.
ALTER TABLE api_keys ADD COLUMN platform boolean NOT NULL DEFAULT false;

-- The key that a first start made could do everything, and still can. It is the default merchant's
-- oldest: without it, no other key could have been made over REST.
UPDATE api_keys SET platform = true
WHERE key_id = (
    SELECT key_id FROM api_keys WHERE merchant_id = '00000000-0000-7000-8000-000000000001'
    ORDER BY created_at, key_id LIMIT 1
) AND label = 'bootstrap' AND 'operator' = ANY(scopes);
