-- oldest: 7

-- How the answers of a node compare with the minted ones (verifier/store/answer_scores.py).
-- A row for each revision and engine that the node had; the newest row carries the score on.
CREATE TABLE answer_scores (
    node_id    TEXT COLLATE "C" NOT NULL REFERENCES nodes (id),
    model      TEXT COLLATE "C" NOT NULL,
    reference  TEXT COLLATE "C" NOT NULL,                  -- digest of the reference value that answers were minted for
    engine     TEXT COLLATE "C" NOT NULL,                  -- NAME@VERSION, by the node's evidence
    operator   TEXT COLLATE "C" NOT NULL,
    score      DOUBLE PRECISION NOT NULL,                  -- of the sequential test, nat
    agrees     BIGINT NOT NULL,
    differs    BIGINT NOT NULL,
    censored   BIGINT NOT NULL,
    prompts    BIGINT NOT NULL,               -- so many prompts were rendered otherwise
    first_ms   BIGINT NOT NULL,
    last_ms    BIGINT NOT NULL,
    rose_ms    BIGINT,                        -- since when the score is above 0
    PRIMARY KEY (node_id, model, reference, engine)
);
CREATE INDEX answer_scores_of_engine ON answer_scores (model, reference, engine);

-- The same for all nodes of an operator together: a cheat on few answers of many nodes.
CREATE TABLE operator_scores (
    operator   TEXT COLLATE "C" NOT NULL,
    model      TEXT COLLATE "C" NOT NULL,
    score      DOUBLE PRECISION NOT NULL,
    agrees     BIGINT NOT NULL,
    differs    BIGINT NOT NULL,
    suspected_ms BIGINT,
    PRIMARY KEY (operator, model)
);

-- Nodes whose answers are suspected, and were (verifier/store/suspicions.py).
CREATE TABLE suspicions (
    node_id      TEXT COLLATE "C" NOT NULL REFERENCES nodes (id),
    model        TEXT COLLATE "C" NOT NULL,
    level        TEXT COLLATE "C" NOT NULL CHECK (level IN ('none', 'suspected')),
    since_ms     BIGINT NOT NULL,
    why          TEXT NOT NULL,
    actor        TEXT NOT NULL,
    PRIMARY KEY (node_id, model)
);
CREATE INDEX suspicions_now ON suspicions (node_id, model) WHERE level = 'suspected';

-- Answers that differ, side by side, for reviewers alone.
CREATE TABLE answer_differences (
    check_id   TEXT COLLATE "C" PRIMARY KEY,
    node_id    TEXT COLLATE "C" NOT NULL REFERENCES nodes (id),
    model      TEXT COLLATE "C" NOT NULL,
    at_ms      BIGINT NOT NULL,
    reporter   TEXT COLLATE "C" NOT NULL,                  -- the router that asked
    reference  TEXT COLLATE "C" NOT NULL,
    engine     TEXT COLLATE "C" NOT NULL,
    code       TEXT COLLATE "C" NOT NULL,
    sides      TEXT NOT NULL                   -- JSON: asked, expected, found, position, margin, distance
);
CREATE INDEX answer_differences_of ON answer_differences (node_id, model, at_ms);
