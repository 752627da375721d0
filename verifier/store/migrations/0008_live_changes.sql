-- oldest: 7

-- Models of which two revisions are valid at once, until somebody ends it (verifier/store/model_rollouts.py).
CREATE TABLE model_rollouts (
    model       TEXT PRIMARY KEY,
    old         TEXT NOT NULL REFERENCES reference_values (digest),  -- in force
    new         TEXT NOT NULL REFERENCES reference_values (digest),  -- valid beside it
    started_ms  INTEGER NOT NULL,
    until_ms    INTEGER                        -- nothing ends then; it is when somebody is reminded
) STRICT, WITHOUT ROWID;

-- Which revision of a model a node has, as it said or as its evidence showed last, whichever is newer.
CREATE TABLE node_revisions (
    node_id   TEXT NOT NULL REFERENCES nodes (id),
    model     TEXT NOT NULL,
    digest    TEXT NOT NULL,                   -- of a reference value
    at_ms     INTEGER NOT NULL,                -- when it said so, or when the session of the evidence was issued
    said      INTEGER NOT NULL CHECK (said IN (0, 1)),
    since_ms  INTEGER NOT NULL,                -- changes are counted from then on, for an hour
    changes   INTEGER NOT NULL,
    PRIMARY KEY (node_id, model)
) STRICT, WITHOUT ROWID;

-- By model, the reference value for which the pool had no challenge, JSON; NULL: an earlier version opened the session.
ALTER TABLE sessions ADD COLUMN revisions TEXT;
