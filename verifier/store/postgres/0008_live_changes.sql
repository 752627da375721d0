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

-- Where a reference value is from: each source that was added, in its order; the value's own columns say which counts.
CREATE TABLE reference_sources (
    digest      TEXT COLLATE "C" NOT NULL,
    number      BIGINT NOT NULL,
    at_ms       BIGINT NOT NULL,
    source      TEXT NOT NULL,
    signer      TEXT,
    not_before  BIGINT,                       -- seconds since 1970
    not_after   BIGINT,
    actor       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    PRIMARY KEY (digest, number)
);

-- What a second engine said about live evaluations (verifier/store/second_opinions.py).
CREATE TABLE second_opinions (
    engine      TEXT COLLATE "C" NOT NULL,
    policy      TEXT COLLATE "C" NOT NULL REFERENCES policies (digest),
    asked       BIGINT NOT NULL,
    differing   BIGINT NOT NULL,
    unanswered  BIGINT NOT NULL,
    skipped     BIGINT NOT NULL,
    PRIMARY KEY (engine, policy)
);

-- The inputs that it judged otherwise.
CREATE TABLE second_opinion_differences (
    engine  TEXT COLLATE "C" NOT NULL,
    policy  TEXT COLLATE "C" NOT NULL REFERENCES policies (digest),
    digest  TEXT COLLATE "C" NOT NULL,                     -- of the input
    input   TEXT COLLATE "C" NOT NULL,                     -- JSON
    here    TEXT COLLATE "C" NOT NULL,
    there   TEXT COLLATE "C" NOT NULL,
    at_ms   BIGINT NOT NULL,
    PRIMARY KEY (engine, policy, digest)
);

-- The answer to a read over the gates alone: the files that change a model's answers (attester/weights/roles.py).
-- NULL in pools of before, whose reads are over all files of the reference value.
ALTER TABLE pool ADD COLUMN gates BYTEA;
ALTER TABLE pool ADD COLUMN gate_table BIGINT;
