-- Rehearsals: each simulation and drill with its report, and who asked for what.

CREATE TABLE rehearsals (
    rehearsal_id uuid PRIMARY KEY,
    kind         text NOT NULL CHECK (kind IN ('simulation', 'drill')),
    name         text NOT NULL,
    scope        text NOT NULL CHECK (scope IN ('instance', 'pair')),
    requested_by text NOT NULL,
    reason       text NOT NULL DEFAULT '',
    started_at   timestamptz NOT NULL DEFAULT now(),
    ended_at     timestamptz,
    verdict      text,
    -- The whole run as people are shown it; written once, at the end.
    report       jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX rehearsals_by_time ON rehearsals (started_at DESC);
CREATE INDEX rehearsals_last_verdict ON rehearsals (name, ended_at DESC) WHERE verdict IS NOT NULL;

-- Never changed afterwards: also what was refused, and the lever.
CREATE TABLE rehearsal_audit (
    audit_id     uuid PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT now(),
    action       text NOT NULL CHECK (action IN ('started', 'refused', 'stopped', 'ended', 'lever')),
    requested_by text NOT NULL,
    rehearsal_id uuid,
    detail       jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX rehearsal_audit_by_time ON rehearsal_audit (at DESC);
