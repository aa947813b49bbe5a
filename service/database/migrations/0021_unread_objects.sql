-- What the sweep met in the provider's lists and could not read. Each is looked at again until it
-- can be read, and the rest of its list goes on meanwhile.
CREATE TABLE unread_objects (
    provider     text NOT NULL,
    feed         text NOT NULL,
    -- The object's id, a digest of an object without a readable id, or the bounds of a slice.
    mark         text NOT NULL,
    -- NULL: it has no address of its own, and its slice is read again instead.
    provider_ref text,
    since        timestamptz NOT NULL,
    until        timestamptz NOT NULL,
    -- From our metadata, where that can be read.
    merchant_id  uuid,
    payment_id   uuid,
    key_digest   text,
    reason       text NOT NULL,
    -- It could be the charge of any payment that was lost.
    holds_all    boolean NOT NULL,
    -- A person has looked at it at the provider: it holds nothing any more.
    released     boolean NOT NULL DEFAULT false,
    tries        integer NOT NULL DEFAULT 0,
    due_at       timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, feed, mark)
);
CREATE INDEX unread_objects_due ON unread_objects (provider, due_at);
