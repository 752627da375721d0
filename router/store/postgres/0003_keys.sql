-- oldest: 2
-- The API keys that `touchstone router key` makes. Those of router.toml are here only once they are revoked.
CREATE TABLE api_keys (
    name        TEXT COLLATE "C" PRIMARY KEY,
    sha256      TEXT COLLATE "C" NOT NULL UNIQUE,
    settings    BYTEA NOT NULL,
    created_ms  BIGINT NOT NULL,
    expires_ms  BIGINT,
    revoked_ms  BIGINT,
    revision    BIGINT NOT NULL
);
CREATE INDEX api_keys_by_revision ON api_keys (revision);

-- Whose decision it was: when records are dropped, each caller loses its own.
ALTER TABLE decisions ADD COLUMN caller TEXT COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX decisions_by_caller ON decisions (caller, at_ms);
