-- oldest: 7
-- What people have decided, what they found, and how long it had waited (verifier/store/reviews.py).
CREATE TABLE review_decisions (
    id          TEXT NOT NULL,                 -- of the incident, or KIND/NODE/MODEL of what waits about answers
    kind        TEXT NOT NULL,
    code        TEXT NOT NULL,
    operator    TEXT NOT NULL,
    fault       TEXT NOT NULL CHECK (fault IN ('node', 'ours', 'unclear')),
    opened_ms   INTEGER NOT NULL,
    looked_ms   INTEGER NOT NULL,              -- when a person took the first step
    decided_ms  INTEGER NOT NULL,
    PRIMARY KEY (decided_ms, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX incidents_waiting ON incidents (opened_ms, id)
    WHERE state IN ('open', 'under-review', 'suspected', 'flagged');

-- What checks of answers said, by day (verifier/store/answer_days.py).
CREATE TABLE answer_days (
    node_id    TEXT NOT NULL REFERENCES nodes (id),
    model      TEXT NOT NULL,
    day        INTEGER NOT NULL,               -- since 1970, UTC
    reference  TEXT NOT NULL,                  -- digest of the reference value that answers were minted for
    engine     TEXT NOT NULL,                  -- NAME@VERSION, by the node's evidence
    operator   TEXT NOT NULL,
    agrees     INTEGER NOT NULL,
    differs    INTEGER NOT NULL,
    censored   INTEGER NOT NULL,
    prompts    INTEGER NOT NULL,               -- so many prompts were rendered otherwise
    parts      INTEGER NOT NULL,               -- so many greedy answers leave the minted text somewhere
    parts_of   INTEGER NOT NULL,
    far        INTEGER NOT NULL,               -- so many distances are near the limit
    far_of     INTEGER NOT NULL,
    distances  TEXT NOT NULL,                  -- JSON: how many in each bucket (verifier/answers/days.py)
    PRIMARY KEY (day, model, node_id, reference, engine)
) STRICT, WITHOUT ROWID;

-- Whether the answers of a node have shifted (verifier/store/answer_drift.py, verifier/answers/drift.py).
CREATE TABLE node_drift (
    node_id    TEXT NOT NULL REFERENCES nodes (id),
    model      TEXT NOT NULL,
    reference  TEXT NOT NULL,                  -- with which it was checked last
    engine     TEXT NOT NULL,
    operator   TEXT NOT NULL,
    parts      REAL NOT NULL,                  -- scores, nat
    far        REAL NOT NULL,
    checks     INTEGER NOT NULL,
    last_ms    INTEGER NOT NULL,
    review_ms  INTEGER,                          -- since when a person should look
    PRIMARY KEY (node_id, model)
) STRICT, WITHOUT ROWID;
CREATE INDEX node_drift_of ON node_drift (reference, engine, model);
CREATE INDEX node_drift_review ON node_drift (review_ms) WHERE review_ms IS NOT NULL;

-- The same of an operator's nodes of one engine version together.
CREATE TABLE version_drift (
    model      TEXT NOT NULL,
    reference  TEXT NOT NULL,
    engine     TEXT NOT NULL,
    operator   TEXT NOT NULL,
    differs    REAL NOT NULL,
    parts      REAL NOT NULL,
    far        REAL NOT NULL,
    checks     INTEGER NOT NULL,
    last_ms    INTEGER NOT NULL,
    PRIMARY KEY (model, reference, engine, operator)
) STRICT, WITHOUT ROWID;
CREATE INDEX version_drift_old ON version_drift (last_ms);

-- What a person has accepted as usual for the engines of a family, instead of the table.
CREATE TABLE usual_answers (
    model      TEXT NOT NULL,
    reference  TEXT NOT NULL,
    family     TEXT NOT NULL,
    parts      REAL,                           -- NULL: by the table
    far        REAL,
    at_ms      INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    PRIMARY KEY (model, reference, family)
) STRICT, WITHOUT ROWID;

-- The chat templates and sampling defaults of a node, as its results named them when it was checked.
CREATE TABLE node_prompting (
    node_id    TEXT NOT NULL REFERENCES nodes (id),
    model      TEXT NOT NULL,
    reference  TEXT NOT NULL,
    template   TEXT NOT NULL,
    sampling   TEXT NOT NULL,
    first_ms   INTEGER NOT NULL,
    last_ms    INTEGER NOT NULL,
    PRIMARY KEY (node_id, model, reference, template, sampling)
) STRICT, WITHOUT ROWID;
CREATE INDEX node_prompting_of ON node_prompting (model, reference);
CREATE INDEX node_prompting_old ON node_prompting (last_ms);
