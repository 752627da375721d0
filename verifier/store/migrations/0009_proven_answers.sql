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
