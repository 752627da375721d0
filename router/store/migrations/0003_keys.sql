-- oldest: 2
-- The API keys that `touchstone router key` makes. Those of router.toml are here only once they are revoked.
CREATE TABLE api_keys (
    name        TEXT PRIMARY KEY,
    sha256      TEXT NOT NULL UNIQUE,
    settings    BLOB NOT NULL,
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER,
    revoked_ms  INTEGER,
    revision    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_by_revision ON api_keys (revision);

-- Whose decision it was: when records are dropped, each caller loses its own.
ALTER TABLE decisions ADD COLUMN caller TEXT NOT NULL DEFAULT '';
CREATE INDEX decisions_by_caller ON decisions (caller, at_ms);
