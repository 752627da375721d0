-- Policy bundles as published: never changed, never removed.
CREATE TABLE policies (
    digest       TEXT PRIMARY KEY,
    id           TEXT NOT NULL,                -- as results name it
    name         TEXT NOT NULL,
    version      TEXT NOT NULL,
    author       TEXT NOT NULL,
    description  TEXT NOT NULL,
    archive      BLOB NOT NULL,                -- zip, the author's signature in it
    signer       TEXT NOT NULL,                -- whose key signed it
    added_ms     INTEGER NOT NULL
) STRICT;

-- Every change of ours, with who and why. The newest row is the rollout as it stands.
CREATE TABLE changes (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms       INTEGER NOT NULL,
    actor       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    action      TEXT NOT NULL,
    subject     TEXT NOT NULL,                 -- digest of a policy or reference value, id of a block
    detail      TEXT NOT NULL,
    generation  INTEGER NOT NULL,              -- the newest change that results depend on, this one included
    active      TEXT REFERENCES policies (digest),
    shadow      TEXT REFERENCES policies (digest),
    canary      TEXT REFERENCES policies (digest),
    permille    INTEGER NOT NULL               -- share of nodes under the canary
) STRICT;

CREATE TABLE blocks (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL CHECK (kind IN ('digest', 'engine-version', 'device')),
    value      TEXT NOT NULL,
    added_ms   INTEGER NOT NULL,
    lifted_ms  INTEGER
) STRICT;
CREATE UNIQUE INDEX blocks_live ON blocks (kind, value) WHERE lifted_ms IS NULL;

-- What live evidence would have come to under the shadow policy.
CREATE TABLE shadow_counts (
    policy     TEXT PRIMARY KEY REFERENCES policies (digest),
    appraised  INTEGER NOT NULL,
    differing  INTEGER NOT NULL,
    failed     INTEGER NOT NULL,
    skipped    INTEGER NOT NULL
) STRICT;
CREATE TABLE shadow_differences (
    policy    TEXT NOT NULL REFERENCES policies (digest),
    node_id   TEXT NOT NULL,
    submod    TEXT NOT NULL,
    change    TEXT NOT NULL,                   -- from and to, JSON
    count     INTEGER NOT NULL,
    first_ms  INTEGER NOT NULL,
    last_ms   INTEGER NOT NULL,
    PRIMARY KEY (policy, node_id, submod, change)
) STRICT, WITHOUT ROWID;

-- Free challenges by batch: those of a value that is no longer in force are not walked past.
DROP INDEX pool_free;
CREATE INDEX pool_free ON pool (model, kind, batch, idx) WHERE session_id IS NULL;
CREATE INDEX batches_reference ON batches (reference, id);

-- What was received, and all that its appraisal looked at: so that it can be appraised again.
CREATE TABLE recordings (
    appraisal_id  TEXT PRIMARY KEY,
    node_id       TEXT NOT NULL REFERENCES nodes (id),
    at_ms         INTEGER NOT NULL,
    evidence      BLOB NOT NULL,
    input         TEXT NOT NULL,               -- the policy's input, JSON; empty before this version
    gist          TEXT NOT NULL,               -- what a policy can change, and what it came to, JSON
    record        BLOB NOT NULL,               -- context and findings, JSON, zlib
    size          INTEGER NOT NULL,
    public        INTEGER NOT NULL CHECK (public IN (0, 1))  -- whether trials are of it
) STRICT;
-- Covering: what is kept is added up and counted without reading it.
CREATE INDEX recordings_at ON recordings (at_ms, appraisal_id, public, size);
CREATE INDEX recordings_node ON recordings (node_id, at_ms);
INSERT INTO recordings SELECT id, node_id, issued_ms, evidence, '', '', x'', length(evidence), 0 FROM appraisals ORDER BY rowid;

-- A session has one appraisal of its own; judged anew under another policy it has a further result.
CREATE TABLE appraisals_new (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    session_id  TEXT NOT NULL REFERENCES sessions (id),
    node_id     TEXT NOT NULL REFERENCES nodes (id),
    issued_ms   INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    status      TEXT NOT NULL,
    token       TEXT NOT NULL,
    claims      TEXT NOT NULL,
    public      INTEGER NOT NULL CHECK (public IN (0, 1)),
    revoked_ms  INTEGER,
    origin      TEXT NOT NULL,                 -- the appraisal whose recording it rests on: itself, or an earlier one
    basis       TEXT NOT NULL,                 -- policy, reference values and blocks, JSON; empty before this version
    generation  INTEGER NOT NULL               -- the newest change that it was judged under
) STRICT;
INSERT INTO appraisals_new (id, session_id, node_id, issued_ms, expires_ms, status, token, claims, public, revoked_ms,
    origin, basis, generation)
    SELECT id, session_id, node_id, issued_ms, expires_ms, status, token, claims, public, revoked_ms, id, '', 0
    FROM appraisals ORDER BY rowid;
DROP TABLE appraisals;
ALTER TABLE appraisals_new RENAME TO appraisals;
CREATE UNIQUE INDEX appraisals_session ON appraisals (session_id) WHERE origin = id;
CREATE INDEX appraisals_node ON appraisals (node_id, seq) WHERE public = 1;
CREATE INDEX appraisals_unrevoked ON appraisals (node_id, expires_ms) WHERE revoked_ms IS NULL;
CREATE INDEX appraisals_live ON appraisals (expires_ms, node_id) WHERE public = 1;
CREATE INDEX appraisals_issued ON appraisals (issued_ms);

-- A reference value: in force, replaced (for a while only a warning), waiting to be chosen, or withdrawn.
ALTER TABLE reference_values ADD COLUMN state TEXT NOT NULL DEFAULT 'superseded'
    CHECK (state IN ('active', 'superseded', 'candidate', 'retired'));
UPDATE reference_values SET state = 'active' WHERE active = 1;
DROP INDEX reference_values_active;
ALTER TABLE reference_values DROP COLUMN active;
ALTER TABLE reference_values ADD COLUMN source TEXT NOT NULL DEFAULT 'measured';
ALTER TABLE reference_values ADD COLUMN signer TEXT;
ALTER TABLE reference_values ADD COLUMN not_before INTEGER;  -- seconds since 1970
ALTER TABLE reference_values ADD COLUMN not_after INTEGER;
ALTER TABLE reference_values ADD COLUMN grace_until_ms INTEGER NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX reference_values_active ON reference_values (model) WHERE state = 'active';
CREATE INDEX reference_values_model ON reference_values (model, state);
