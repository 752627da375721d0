-- oldest: 5

-- Calls in two steps: how long the answer to the read took, and when the node was then told of the walk.
ALTER TABLE sessions ADD COLUMN read_ms INTEGER;
ALTER TABLE sessions ADD COLUMN told_ms INTEGER;

-- Calls that nobody has answered for long: it is looked for them every second.
CREATE INDEX sessions_called ON sessions (issued_ms) WHERE status = 'waiting' AND channel = 'call';

-- Recordings: those that an undecided incident rests on stay, and the nodes that have most lose theirs first.
ALTER TABLE recordings ADD COLUMN session_id TEXT NOT NULL DEFAULT '';
CREATE INDEX recordings_share ON recordings (node_id, size);

-- Who may call what: API keys. A row holds the digest of a key, which is shown once when it is made.
CREATE TABLE api_keys (
    digest      BLOB PRIMARY KEY,              -- SHA-256 of the key
    name        TEXT NOT NULL,                 -- the actor of every step that its holder takes
    roles       TEXT NOT NULL,                 -- JSON
    operator    TEXT,
    created_ms  INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    expires_ms  INTEGER,
    revoked_ms  INTEGER
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX api_keys_name ON api_keys (name) WHERE revoked_ms IS NULL;
-- An operator sees its own nodes and incidents, by pages.
CREATE INDEX nodes_operator ON nodes (operator, id);
CREATE INDEX incidents_operator ON incidents (operator, id);

-- The order of results: each node's have growing numbers (verifier/store/sequence.py).
ALTER TABLE appraisals ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0;
-- Up to which number a node's results are void.
CREATE INDEX appraisals_revoked ON appraisals (node_id, sequence) WHERE revoked_ms IS NOT NULL;

-- When each key signs results, and when it leaves the JWKS (verifier/store/signing_keys.py).
CREATE TABLE signing_keys (
    kid           TEXT PRIMARY KEY,
    jwk           TEXT NOT NULL,               -- the public key, JSON
    signs_ms      INTEGER NOT NULL,            -- from then on, unless a later key signs
    leaves_ms     INTEGER,                     -- from then on it is not listed any more
    withdrawn_ms  INTEGER
) STRICT, WITHOUT ROWID;
