-- oldest: 3
-- Receipts of answers. Their payloads are as they are signed; a signature is added when somebody asks for it.
CREATE TABLE receipts (
    id         TEXT COLLATE "C" PRIMARY KEY,
    at_ms      BIGINT NOT NULL,
    kid        TEXT COLLATE "C" NOT NULL,
    caller     TEXT COLLATE "C" NOT NULL,
    -- Its place in a batch; 0 if it is in none.
    batch      BIGINT NOT NULL,
    place      BIGINT NOT NULL,
    -- 1 if it was written before its batch was closed.
    ahead      BIGINT NOT NULL,
    -- 1 if somebody waits for its router to sign it.
    wanted     BIGINT NOT NULL DEFAULT 0,
    payload    BYTEA NOT NULL,
    signature  BYTEA,
    -- What the front of the node has signed of it, once somebody has asked for it.
    front      TEXT
);
CREATE INDEX receipts_by_caller ON receipts (caller, at_ms);
CREATE INDEX receipts_ahead ON receipts (kid, batch, place) WHERE ahead = 1;
CREATE INDEX receipts_wanted ON receipts (kid) WHERE wanted = 1;

-- What the verifier's log has of them, or will have.
CREATE TABLE receipt_batches (
    kid     TEXT COLLATE "C" NOT NULL,
    number  BIGINT NOT NULL,
    to_ms   BIGINT NOT NULL,
    batch   BYTEA NOT NULL,
    leaves  BYTEA NOT NULL,
    -- The id of its entry in the log, once the verifier has taken it.
    entry   TEXT COLLATE "C",
    PRIMARY KEY (kid, number)
);
CREATE INDEX receipt_batches_by_time ON receipt_batches (to_ms);
CREATE INDEX receipt_batches_unsent ON receipt_batches (kid, number) WHERE entry IS NULL;

-- Where the receipts of each API key are, by its pseudonym.
CREATE TABLE receipt_chains (
    pseudonym  TEXT COLLATE "C" PRIMARY KEY,
    kid        TEXT COLLATE "C" NOT NULL,
    seq        BIGINT NOT NULL,
    head       TEXT COLLATE "C" NOT NULL
);
CREATE INDEX receipt_chains_by_kid ON receipt_chains (kid);

-- The receipt keys of all routers that share the store, old ones too.
CREATE TABLE receipt_keys (
    kid       TEXT COLLATE "C" PRIMARY KEY,
    router    TEXT COLLATE "C" NOT NULL,
    x         BYTEA NOT NULL,
    since_ms  BIGINT NOT NULL
);
