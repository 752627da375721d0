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

-- Where a reference value is from: each source that was added, in its order; the value's own columns say which counts.
CREATE TABLE reference_sources (
    digest      TEXT NOT NULL,
    number      INTEGER NOT NULL,
    at_ms       INTEGER NOT NULL,
    source      TEXT NOT NULL,
    signer      TEXT,
    not_before  INTEGER,                       -- seconds since 1970
    not_after   INTEGER,
    actor       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    PRIMARY KEY (digest, number)
) STRICT, WITHOUT ROWID;

-- What a second engine said about live evaluations (verifier/store/second_opinions.py).
CREATE TABLE second_opinions (
    engine      TEXT NOT NULL,
    policy      TEXT NOT NULL REFERENCES policies (digest),
    asked       INTEGER NOT NULL,
    differing   INTEGER NOT NULL,
    unanswered  INTEGER NOT NULL,
    skipped     INTEGER NOT NULL,
    PRIMARY KEY (engine, policy)
) STRICT, WITHOUT ROWID;

-- The inputs that it judged otherwise.
CREATE TABLE second_opinion_differences (
    engine  TEXT NOT NULL,
    policy  TEXT NOT NULL REFERENCES policies (digest),
    digest  TEXT NOT NULL,                     -- of the input
    input   TEXT NOT NULL,                     -- JSON
    here    TEXT NOT NULL,
    there   TEXT NOT NULL,
    at_ms   INTEGER NOT NULL,
    PRIMARY KEY (engine, policy, digest)
) STRICT, WITHOUT ROWID;

-- The answer to a read over the gates alone: the files that change a model's answers (attester/weights/roles.py).
-- NULL in pools of before, whose reads are over all files of the reference value.
ALTER TABLE pool ADD COLUMN gates BLOB;
ALTER TABLE pool ADD COLUMN gate_table INTEGER;
