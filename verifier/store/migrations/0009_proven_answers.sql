-- oldest: 7

-- How the answers of a node compare with the minted ones (verifier/store/answer_scores.py).
-- A row for each revision and engine that the node had; the newest row carries the score on.
CREATE TABLE answer_scores (
    node_id    TEXT NOT NULL REFERENCES nodes (id),
    model      TEXT NOT NULL,
    reference  TEXT NOT NULL,                  -- digest of the reference value that answers were minted for
    engine     TEXT NOT NULL,                  -- NAME@VERSION, by the node's evidence
    operator   TEXT NOT NULL,
    score      REAL NOT NULL,                  -- of the sequential test, nat
    agrees     INTEGER NOT NULL,
    differs    INTEGER NOT NULL,
    censored   INTEGER NOT NULL,
    prompts    INTEGER NOT NULL,               -- so many prompts were rendered otherwise
    first_ms   INTEGER NOT NULL,
    last_ms    INTEGER NOT NULL,
    rose_ms    INTEGER,                        -- since when the score is above 0
    PRIMARY KEY (node_id, model, reference, engine)
) STRICT, WITHOUT ROWID;
CREATE INDEX answer_scores_of_engine ON answer_scores (model, reference, engine);

-- The same for all nodes of an operator together: a cheat on few answers of many nodes.
CREATE TABLE operator_scores (
    operator   TEXT NOT NULL,
    model      TEXT NOT NULL,
    score      REAL NOT NULL,
    agrees     INTEGER NOT NULL,
    differs    INTEGER NOT NULL,
    suspected_ms INTEGER,
    PRIMARY KEY (operator, model)
) STRICT, WITHOUT ROWID;

-- Nodes whose answers are suspected, and were (verifier/store/suspicions.py).
CREATE TABLE suspicions (
    node_id      TEXT NOT NULL REFERENCES nodes (id),
    model        TEXT NOT NULL,
    level        TEXT NOT NULL CHECK (level IN ('none', 'suspected')),
    since_ms     INTEGER NOT NULL,
    why          TEXT NOT NULL,
    actor        TEXT NOT NULL,
    PRIMARY KEY (node_id, model)
) STRICT, WITHOUT ROWID;
CREATE INDEX suspicions_now ON suspicions (node_id, model) WHERE level = 'suspected';

-- Answers that differ, side by side, for reviewers alone.
CREATE TABLE answer_differences (
    check_id   TEXT PRIMARY KEY,
    node_id    TEXT NOT NULL REFERENCES nodes (id),
    model      TEXT NOT NULL,
    at_ms      INTEGER NOT NULL,
    reporter   TEXT NOT NULL,                  -- the router that asked
    reference  TEXT NOT NULL,
    engine     TEXT NOT NULL,
    code       TEXT NOT NULL,
    sides      TEXT NOT NULL                   -- JSON: asked, expected, found, position, margin, distance
) STRICT, WITHOUT ROWID;
CREATE INDEX answer_differences_of ON answer_differences (node_id, model, at_ms);
