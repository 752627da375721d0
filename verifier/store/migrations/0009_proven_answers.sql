-- oldest: 7

-- What is to be logged and has no place yet (verifier/store/log.py), written with what it records.
CREATE TABLE log_pending (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    kind     TEXT NOT NULL,
    subject  TEXT NOT NULL,                    -- what it is about, by which it is found
    entry    BLOB NOT NULL                     -- canonical JSON, as it is logged
) STRICT;

-- The logs of this database. The last one is written; those before it ended with a restore, or with their key.
CREATE TABLE logs (
    number    INTEGER PRIMARY KEY,
    origin    TEXT NOT NULL UNIQUE,
    vkey      TEXT NOT NULL,                   -- C2SP signed-note
    begun_ms  INTEGER NOT NULL,
    ended_ms  INTEGER                            -- from then on nothing more is signed
) STRICT;

-- The leaves of a log: never changed, never deleted.
CREATE TABLE log_entries (
    log      INTEGER NOT NULL REFERENCES logs (number),
    place    INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    subject  TEXT NOT NULL,
    entry    BLOB NOT NULL,
    PRIMARY KEY (log, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX log_entries_subject ON log_entries (kind, subject);

-- Hashes of 32 bytes, 256 in a full tile (C2SP tlog-tiles); the last tile of a level is replaced as it grows.
CREATE TABLE log_tiles (
    log     INTEGER NOT NULL REFERENCES logs (number),
    level   INTEGER NOT NULL,
    number  INTEGER NOT NULL,
    hashes  BLOB NOT NULL,
    PRIMARY KEY (log, level, number)
) STRICT;

-- The newest checkpoints of a log (C2SP tlog-checkpoint), with the cosignatures that witnesses gave.
CREATE TABLE log_checkpoints (
    log           INTEGER NOT NULL REFERENCES logs (number),
    size          INTEGER NOT NULL,
    root          BLOB NOT NULL,
    at_ms         INTEGER NOT NULL,
    note          TEXT NOT NULL,               -- signed by the log
    cosignatures  TEXT NOT NULL,               -- the lines of witnesses
    witnesses     INTEGER NOT NULL,            -- how many lines these are
    PRIMARY KEY (log, size)
) STRICT, WITHOUT ROWID;

-- The keys by which routers sign receipts.
CREATE TABLE receipt_keys (
    kid          TEXT PRIMARY KEY,             -- RFC 7638
    router       TEXT NOT NULL,                -- its own name, by which its receipts name it
    caller       TEXT NOT NULL,                -- the name of its credential
    x            TEXT NOT NULL,                -- of the JWK, base64url
    spki         BLOB NOT NULL,                -- SHA-256 of the identity's public key that vouched for it
    since_ms     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX receipt_keys_router ON receipt_keys (router);
CREATE INDEX receipt_keys_caller ON receipt_keys (caller, since_ms);

-- The batches of receipts whose roots routers sent: one root for each number.
CREATE TABLE receipt_batches (
    kid      TEXT NOT NULL REFERENCES receipt_keys (kid),
    number   INTEGER NOT NULL,
    root     BLOB NOT NULL,
    digest   BLOB NOT NULL,                    -- SHA-256 of all that was sent
    at_ms    INTEGER NOT NULL,
    PRIMARY KEY (kid, number)
) STRICT, WITHOUT ROWID;

-- Minted answers: runs of minting, of one engine each (verifier/store/answer_pool.py).
CREATE TABLE answer_batches (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    model      TEXT NOT NULL,
    reference  TEXT NOT NULL REFERENCES reference_values (digest),
    operation  TEXT NOT NULL,
    family     TEXT NOT NULL,                  -- of the engine
    dtype      TEXT NOT NULL,
    engine     TEXT NOT NULL,                  -- JSON
    minted_ms  INTEGER NOT NULL,
    wanted     INTEGER NOT NULL,               -- how many the run set out to mint
    minted     INTEGER NOT NULL,
    taken      INTEGER NOT NULL
) STRICT;
CREATE INDEX answer_batches_reference ON answer_batches (reference, model, family, operation, id);

-- A minted answer, sealed whole with a key that is not in the database (verifier/challenges/sealing.py).
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
    fast       INTEGER NOT NULL,               -- so many answers came faster than the device can read the weights
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

-- What nodes say of answers of other operators' nodes, in numbers (verifier/store/peer_scores.py).
CREATE TABLE peer_reports (
    id             TEXT PRIMARY KEY,           -- drawn by the router
    router         TEXT NOT NULL,
    node_id        TEXT NOT NULL REFERENCES nodes (id),  -- whose answer it is
    by_id          TEXT NOT NULL REFERENCES nodes (id),  -- who has scored it
    model          TEXT NOT NULL,
    at_ms          INTEGER NOT NULL,
    given          BLOB NOT NULL,              -- SHA-256 of what the router sent
    is_above       INTEGER NOT NULL CHECK (is_above IN (0, 1)),
    tokens         INTEGER NOT NULL,
    mean_nll       REAL NOT NULL,
    mean_gap       REAL NOT NULL,
    largest_gap    REAL NOT NULL,
    disagreements  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX peer_reports_router ON peer_reports (router, at_ms);
CREATE INDEX peer_reports_node ON peer_reports (node_id, router, at_ms);
CREATE INDEX peer_reports_by ON peer_reports (by_id, router, at_ms);
CREATE INDEX peer_reports_at ON peer_reports (at_ms);

-- The sequential test over them, for each node as the one that answered and as the one that scored.
CREATE TABLE peer_scores (
    node_id    TEXT NOT NULL REFERENCES nodes (id),
    model      TEXT NOT NULL,
    role       TEXT NOT NULL CHECK (role IN ('answered', 'scored')),
    score      REAL NOT NULL,                  -- nat
    agrees     INTEGER NOT NULL,
    differs    INTEGER NOT NULL,
    first_ms   INTEGER NOT NULL,
    last_ms    INTEGER NOT NULL,
    review_ms  INTEGER,                          -- since when a person should look
    PRIMARY KEY (node_id, model, role)
) STRICT, WITHOUT ROWID;
CREATE INDEX peer_scores_review ON peer_scores (review_ms) WHERE review_ms IS NOT NULL;
