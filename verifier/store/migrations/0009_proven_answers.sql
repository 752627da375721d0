-- oldest: 7

-- Minted answers: runs of minting, of one engine each (verifier/store/answer_pool.py).
CREATE TABLE answer_batches (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    model      TEXT NOT NULL,
    reference  TEXT NOT NULL REFERENCES reference_values (digest),
    operation  TEXT NOT NULL,
    family     TEXT NOT NULL,                  -- of the engine
    engine     TEXT NOT NULL,                  -- JSON
    minted_ms  INTEGER NOT NULL,
    wanted     INTEGER NOT NULL,               -- how many the run set out to mint
    minted     INTEGER NOT NULL,
    taken      INTEGER NOT NULL
) STRICT;
CREATE INDEX answer_batches_reference ON answer_batches (reference, model, family, operation, id);

-- A minted answer, sealed whole with a key that is not in the database (verifier/answers/sealing.py).
CREATE TABLE minted_answers (
    model     TEXT NOT NULL,
    idx       INTEGER NOT NULL,
    batch     INTEGER NOT NULL REFERENCES answer_batches (id),
    drawn     INTEGER NOT NULL CHECK (drawn IN (0, 1)),
    sealed    BLOB NOT NULL,
    check_id  TEXT,
    PRIMARY KEY (model, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX minted_answers_free ON minted_answers (batch, idx) WHERE check_id IS NULL;

-- Prompts that were minted, by a keyed digest: none is asked twice.
CREATE TABLE answer_prompts (
    model   TEXT NOT NULL,
    prompt  BLOB NOT NULL,
    PRIMARY KEY (model, prompt)
) STRICT, WITHOUT ROWID;

-- Checks that routers took (verifier/store/answer_checks.py).
CREATE TABLE answer_checks (
    id          TEXT PRIMARY KEY,
    model       TEXT NOT NULL,
    idx         INTEGER NOT NULL,
    node_id     TEXT NOT NULL REFERENCES nodes (id),
    router      TEXT NOT NULL,
    reference   TEXT NOT NULL,
    taken_ms    INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('open', 'judged', 'failed')),
    ended_ms    INTEGER,
    result      TEXT,                          -- the jti by which the router chose the node
    given       BLOB,                          -- SHA-256 of what the router sent
    verdict     TEXT                           -- JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX answer_checks_router ON answer_checks (router, taken_ms);
CREATE INDEX answer_checks_node ON answer_checks (node_id, router, taken_ms);
CREATE INDEX answer_checks_taken ON answer_checks (taken_ms, model);
