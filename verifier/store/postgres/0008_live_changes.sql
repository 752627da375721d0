-- oldest: 7

-- Models of which two revisions are valid at once, until somebody ends it (verifier/store/model_rollouts.py).
CREATE TABLE model_rollouts (
    model       TEXT COLLATE "C" PRIMARY KEY,
    old         TEXT COLLATE "C" NOT NULL REFERENCES reference_values (digest),  -- in force
    new         TEXT COLLATE "C" NOT NULL REFERENCES reference_values (digest),  -- valid beside it
    started_ms  BIGINT NOT NULL,
    until_ms    BIGINT                         -- nothing ends then; it is when somebody is reminded
);

-- Which revision of a model a node has, as it said or as its evidence showed last, whichever is newer.
CREATE TABLE node_revisions (
    node_id   TEXT COLLATE "C" NOT NULL REFERENCES nodes (id),
    model     TEXT COLLATE "C" NOT NULL,
    digest    TEXT COLLATE "C" NOT NULL,       -- of a reference value
    at_ms     BIGINT NOT NULL,                 -- when it said so, or when the session of the evidence was issued
    said      BIGINT NOT NULL CHECK (said IN (0, 1)),
    since_ms  BIGINT NOT NULL,                 -- changes are counted from then on, for an hour
    changes   BIGINT NOT NULL,
    PRIMARY KEY (node_id, model)
);

-- By model, the reference value for which the pool had no challenge, JSON; NULL: an earlier version opened the session.
ALTER TABLE sessions ADD COLUMN revisions TEXT;
