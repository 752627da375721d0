-- oldest: 7
-- What people have decided, what they found, and how long it had waited (verifier/store/reviews.py).
CREATE TABLE review_decisions (
    id          TEXT COLLATE "C" NOT NULL,     -- of the incident, or KIND/NODE/MODEL of what waits about answers
    kind        TEXT COLLATE "C" NOT NULL,
    code        TEXT COLLATE "C" NOT NULL,
    operator    TEXT COLLATE "C" NOT NULL,
    fault       TEXT COLLATE "C" NOT NULL CHECK (fault IN ('node', 'ours', 'unclear')),
    opened_ms   BIGINT NOT NULL,
    looked_ms   BIGINT NOT NULL,               -- when a person took the first step
    decided_ms  BIGINT NOT NULL,
    PRIMARY KEY (decided_ms, id)
);
CREATE INDEX incidents_waiting ON incidents (opened_ms, id)
    WHERE state IN ('open', 'under-review', 'suspected', 'flagged');

-- What checks of answers said, by day (verifier/store/answer_days.py).
CREATE TABLE answer_days (
    node_id    TEXT COLLATE "C" NOT NULL REFERENCES nodes (id),
    model      TEXT COLLATE "C" NOT NULL,
    day        BIGINT NOT NULL,               -- since 1970, UTC
    reference  TEXT COLLATE "C" NOT NULL,                  -- digest of the reference value that answers were minted for
    engine     TEXT COLLATE "C" NOT NULL,                  -- NAME@VERSION, by the node's evidence
    operator   TEXT COLLATE "C" NOT NULL,
    agrees     BIGINT NOT NULL,
    differs    BIGINT NOT NULL,
    censored   BIGINT NOT NULL,
    prompts    BIGINT NOT NULL,               -- so many prompts were rendered otherwise
    parts      BIGINT NOT NULL,               -- so many greedy answers leave the minted text somewhere
    parts_of   BIGINT NOT NULL,
    far        BIGINT NOT NULL,               -- so many distances are near the limit
    far_of     BIGINT NOT NULL,
    distances  TEXT NOT NULL,                  -- JSON: how many in each bucket (verifier/answers/days.py)
    PRIMARY KEY (day, model, node_id, reference, engine)
);

-- Whether the answers of a node have shifted (verifier/store/answer_drift.py, verifier/answers/drift.py).
CREATE TABLE node_drift (
    node_id    TEXT COLLATE "C" NOT NULL REFERENCES nodes (id),
    model      TEXT COLLATE "C" NOT NULL,
    reference  TEXT COLLATE "C" NOT NULL,                  -- with which it was checked last
    engine     TEXT COLLATE "C" NOT NULL,
    operator   TEXT COLLATE "C" NOT NULL,
    parts      DOUBLE PRECISION NOT NULL,                  -- scores, nat
    far        DOUBLE PRECISION NOT NULL,
    checks     BIGINT NOT NULL,
    last_ms    BIGINT NOT NULL,
    review_ms  BIGINT,                          -- since when a person should look
    PRIMARY KEY (node_id, model)
);
CREATE INDEX node_drift_of ON node_drift (reference, engine, model);
CREATE INDEX node_drift_review ON node_drift (review_ms) WHERE review_ms IS NOT NULL;

-- The same of an operator's nodes of one engine version together.
CREATE TABLE version_drift (
    model      TEXT COLLATE "C" NOT NULL,
    reference  TEXT COLLATE "C" NOT NULL,
    engine     TEXT COLLATE "C" NOT NULL,
    operator   TEXT COLLATE "C" NOT NULL,
    differs    DOUBLE PRECISION NOT NULL,
    parts      DOUBLE PRECISION NOT NULL,
    far        DOUBLE PRECISION NOT NULL,
    checks     BIGINT NOT NULL,
    last_ms    BIGINT NOT NULL,
    PRIMARY KEY (model, reference, engine, operator)
);
CREATE INDEX version_drift_old ON version_drift (last_ms);

-- What a person has accepted as usual for the engines of a family, instead of the table.
CREATE TABLE usual_answers (
    model      TEXT COLLATE "C" NOT NULL,
    reference  TEXT COLLATE "C" NOT NULL,
    family     TEXT COLLATE "C" NOT NULL,
    parts      DOUBLE PRECISION,                           -- NULL: by the table
    far        DOUBLE PRECISION,
    at_ms      BIGINT NOT NULL,
    actor      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    PRIMARY KEY (model, reference, family)
);

-- The chat templates and sampling defaults of a node, as its results named them when it was checked.
CREATE TABLE node_prompting (
    node_id    TEXT COLLATE "C" NOT NULL REFERENCES nodes (id),
    model      TEXT COLLATE "C" NOT NULL,
    reference  TEXT COLLATE "C" NOT NULL,
    template   TEXT COLLATE "C" NOT NULL,
    sampling   TEXT COLLATE "C" NOT NULL,
    first_ms   BIGINT NOT NULL,
    last_ms    BIGINT NOT NULL,
    PRIMARY KEY (node_id, model, reference, template, sampling)
);
CREATE INDEX node_prompting_of ON node_prompting (model, reference);
CREATE INDEX node_prompting_old ON node_prompting (last_ms);
