-- Who may still open payments: written by the clock, read with the API key.

ALTER TABLE merchants
    -- True while as many payments as a merchant may have in doubt or queued are.
    ADD COLUMN has_too_many_open boolean NOT NULL DEFAULT false;
