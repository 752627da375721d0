-- oldest: 3
-- Receipts of answers. Their payloads are as they are signed; a signature is added when somebody asks for it.
-- An id begins with its time, so what is old is found by it.
CREATE TABLE receipts (
    id         TEXT PRIMARY KEY,
    at_ms      INTEGER NOT NULL,
    kid        TEXT NOT NULL,
    caller     TEXT NOT NULL,
    -- Its place in a batch; 0 if it is in none.
    batch      INTEGER NOT NULL,
    place      INTEGER NOT NULL,
    -- 1 if it was written before its batch was closed.
    ahead      INTEGER NOT NULL,
    -- 1 if somebody waits for its router to sign it.
    wanted     INTEGER NOT NULL DEFAULT 0,
    payload    BLOB NOT NULL,
    signature  BLOB,
    -- What the front of the node has signed of it, once somebody has asked for it.
    front      TEXT
) STRICT;
CREATE INDEX receipts_by_caller ON receipts (caller, at_ms);
CREATE INDEX receipts_ahead ON receipts (kid, batch, place) WHERE ahead = 1;
CREATE INDEX receipts_wanted ON receipts (kid) WHERE wanted = 1;

-- What the verifier's log has of them, or will have.
CREATE TABLE receipt_batches (
    kid     TEXT NOT NULL,
    number  INTEGER NOT NULL,
    to_ms   INTEGER NOT NULL,
    batch   BLOB NOT NULL,
    leaves  BLOB NOT NULL,
    -- The id of its entry in the log, once the verifier has taken it.
    entry   TEXT,
    PRIMARY KEY (kid, number)
) STRICT;
CREATE INDEX receipt_batches_by_time ON receipt_batches (to_ms);
CREATE INDEX receipt_batches_unsent ON receipt_batches (kid, number) WHERE entry IS NULL;

-- Where the receipts of each API key are, by its pseudonym.
CREATE TABLE receipt_chains (
    pseudonym  TEXT PRIMARY KEY,
    kid        TEXT NOT NULL,
    seq        INTEGER NOT NULL,
    head       TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX receipt_chains_by_kid ON receipt_chains (kid);

-- The receipt keys of all routers that share the store, old ones too.
CREATE TABLE receipt_keys (
    kid       TEXT PRIMARY KEY,
    router    TEXT NOT NULL,
    x         BLOB NOT NULL,
    since_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
