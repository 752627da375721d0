-- Times are milliseconds since 1970 (UTC), digests and keys are bytes, documents are JSON.

CREATE TABLE tokens (
    digest      BLOB PRIMARY KEY,              -- SHA-256 of the token; the token itself is shown once
    operator    TEXT NOT NULL,
    models      TEXT NOT NULL,
    hardware_class TEXT NOT NULL,
    node_id     TEXT,                          -- for a new key of a node that lost its old one
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    used_ms     INTEGER
) STRICT;

CREATE TABLE nodes (
    id           TEXT PRIMARY KEY,
    ueid         BLOB NOT NULL UNIQUE,
    operator     TEXT NOT NULL,
    models       TEXT NOT NULL,
    hardware_class TEXT NOT NULL,              -- by the operator's word, not the node's
    state        TEXT NOT NULL CHECK (state IN ('active', 'probation', 'retired')),
    enrolled_ms  INTEGER NOT NULL
) STRICT;

CREATE TABLE node_keys (
    kid       BLOB PRIMARY KEY,                -- a key belongs to one node, for ever
    node_id   TEXT NOT NULL REFERENCES nodes (id),
    key       BLOB NOT NULL,
    current   INTEGER NOT NULL CHECK (current IN (0, 1)),
    since_ms  INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX node_keys_current ON node_keys (node_id) WHERE current = 1;

-- A signed request is accepted once: the primary key is what enforces it.
CREATE TABLE seen_requests (
    kid         BLOB NOT NULL,
    random      BLOB NOT NULL,
    expires_ms  INTEGER NOT NULL,
    PRIMARY KEY (kid, random)
) STRICT, WITHOUT ROWID;
CREATE INDEX seen_requests_expiry ON seen_requests (expires_ms);

CREATE TABLE sessions (
    id           TEXT PRIMARY KEY,
    node_id      TEXT REFERENCES nodes (id),
    channel      TEXT NOT NULL CHECK (channel IN ('open', 'announced', 'call', 'caller')),
    nonce        BLOB NOT NULL UNIQUE,         -- one nonce, used once
    issued_ms    INTEGER NOT NULL,
    expires_ms   INTEGER NOT NULL,
    status       TEXT NOT NULL CHECK (status IN ('waiting', 'complete', 'failed')),
    exhausted    TEXT NOT NULL,
    answers      TEXT,
    answer_ms    INTEGER,
    evidence_sha256  BLOB,
    appraisal_id TEXT
) STRICT;
-- While a node's session waits, asking again gives the same one: a request burns nothing twice.
CREATE UNIQUE INDEX sessions_one_waiting ON sessions (node_id, channel)
    WHERE status = 'waiting' AND node_id IS NOT NULL;
CREATE INDEX sessions_of_node ON sessions (node_id, channel, issued_ms);
CREATE INDEX sessions_waiting ON sessions (expires_ms) WHERE status = 'waiting';

CREATE TABLE batches (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    model      TEXT NOT NULL,
    reference  TEXT NOT NULL,
    minted_ms  INTEGER NOT NULL,
    first_used_ms INTEGER                      -- from then on it can be found out to be bad
) STRICT;

CREATE TABLE pool (
    model        TEXT NOT NULL,
    kind         TEXT NOT NULL CHECK (kind IN ('read', 'walk')),
    idx          INTEGER NOT NULL,
    batch        INTEGER NOT NULL REFERENCES batches (id),
    parameters   TEXT NOT NULL,
    commitments  BLOB NOT NULL,
    session_id   TEXT REFERENCES sessions (id),
    PRIMARY KEY (model, kind, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX pool_free ON pool (model, kind, idx) WHERE session_id IS NULL;
CREATE INDEX pool_session ON pool (session_id) WHERE session_id IS NOT NULL;

CREATE TABLE reference_values (
    digest     TEXT PRIMARY KEY,
    model      TEXT NOT NULL,
    document   TEXT NOT NULL,
    added_ms   INTEGER NOT NULL,
    active     INTEGER NOT NULL CHECK (active IN (0, 1))
) STRICT;
CREATE UNIQUE INDEX reference_values_active ON reference_values (model) WHERE active = 1;

CREATE TABLE appraisals (
    id          TEXT PRIMARY KEY,
    session_id  TEXT NOT NULL UNIQUE REFERENCES sessions (id),  -- one result a session
    node_id     TEXT NOT NULL REFERENCES nodes (id),
    issued_ms   INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    status      TEXT NOT NULL,
    token       TEXT NOT NULL,
    claims      TEXT NOT NULL,
    evidence    BLOB NOT NULL,
    public      INTEGER NOT NULL CHECK (public IN (0, 1)),
    revoked_ms  INTEGER
) STRICT;
CREATE INDEX appraisals_node ON appraisals (node_id, issued_ms) WHERE public = 1;
CREATE INDEX appraisals_live ON appraisals (expires_ms, node_id) WHERE public = 1;
CREATE INDEX appraisals_issued ON appraisals (issued_ms);

CREATE TABLE walks (
    seq         INTEGER PRIMARY KEY,           -- the order they came in, also within a millisecond
    session_id  TEXT NOT NULL REFERENCES sessions (id),
    node_id     TEXT NOT NULL REFERENCES nodes (id),
    model       TEXT NOT NULL,
    called      INTEGER NOT NULL CHECK (called IN (0, 1)),
    record      TEXT NOT NULL,
    at_ms       INTEGER NOT NULL,
    UNIQUE (session_id, model)
) STRICT;
CREATE INDEX walks_node ON walks (node_id, model, called, seq);

CREATE TABLE endpoints (
    pin      TEXT PRIMARY KEY,                 -- one live node a TLS key
    node_id  TEXT NOT NULL REFERENCES nodes (id)
) STRICT;

CREATE TABLE tallies (
    cause     TEXT NOT NULL,
    operator  TEXT NOT NULL,
    passed    INTEGER NOT NULL CHECK (passed IN (0, 1)),
    PRIMARY KEY (cause, operator, passed)
) STRICT, WITHOUT ROWID;

CREATE TABLE incidents (
    id           TEXT PRIMARY KEY,
    kind         TEXT NOT NULL,
    severity     TEXT NOT NULL,
    state        TEXT NOT NULL,
    node_id      TEXT REFERENCES nodes (id),
    operator     TEXT,
    code         TEXT NOT NULL,
    detail       TEXT NOT NULL,
    cause        TEXT,                         -- the first one
    session_id   TEXT,
    count        INTEGER NOT NULL DEFAULT 1,
    opened_ms    INTEGER NOT NULL,
    last_ms      INTEGER NOT NULL,
    due_ms       INTEGER NOT NULL
) STRICT;
CREATE INDEX incidents_node ON incidents (node_id, state);
CREATE INDEX incidents_cause ON incidents (cause, state);
CREATE INDEX incidents_suspected ON incidents (opened_ms) WHERE state = 'suspected';

-- What of ours an incident rests on. One that rests on several is over when the last is gone.
CREATE TABLE incident_causes (
    incident_id  TEXT NOT NULL REFERENCES incidents (id),
    cause        TEXT NOT NULL,
    void         INTEGER NOT NULL DEFAULT 0 CHECK (void IN (0, 1)),
    PRIMARY KEY (incident_id, cause)
) STRICT, WITHOUT ROWID;
CREATE INDEX incident_causes_cause ON incident_causes (cause);

CREATE TABLE incident_steps (
    incident_id  TEXT NOT NULL REFERENCES incidents (id),
    at_ms        INTEGER NOT NULL,
    actor        TEXT NOT NULL,
    state        TEXT NOT NULL,
    reason       TEXT NOT NULL
) STRICT;
CREATE INDEX incident_steps_incident ON incident_steps (incident_id);

-- What routers follow. AUTOINCREMENT: a number is never given twice.
CREATE TABLE events (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms  INTEGER NOT NULL,
    type   TEXT NOT NULL,
    data   TEXT NOT NULL
) STRICT;
