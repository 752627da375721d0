-- Statements that looked at every row have an index or a counter, and what is old can be deleted in small steps.

-- An endpoint is looked up by its node with each attestation.
CREATE INDEX endpoints_node ON endpoints (node_id);

-- Of each node only the newest result counts, and it is found by the node.
DROP INDEX appraisals_live;
DROP INDEX appraisals_issued;

-- A session is deleted after its results: both are looked for by the session.
CREATE INDEX appraisals_of_session ON appraisals (session_id);

CREATE INDEX sessions_ended ON sessions (expires_ms) WHERE status <> 'waiting';

-- How many challenges of a batch were minted and taken.
CREATE TABLE pool_counts (
    batch   INTEGER NOT NULL REFERENCES batches (id),
    kind    TEXT NOT NULL,
    minted  INTEGER NOT NULL,
    taken   INTEGER NOT NULL,
    PRIMARY KEY (batch, kind)
) STRICT, WITHOUT ROWID;
INSERT INTO pool_counts SELECT batch, kind, count(*), sum(session_id IS NOT NULL) FROM pool GROUP BY batch, kind;

-- The first index that was never used: used challenges are deleted in time, and no seed may come twice.
CREATE TABLE pool_indexes (
    model     TEXT NOT NULL,
    kind      TEXT NOT NULL,
    next_idx  INTEGER NOT NULL,
    PRIMARY KEY (model, kind)
) STRICT, WITHOUT ROWID;
INSERT INTO pool_indexes SELECT model, kind, max(idx) + 1 FROM pool GROUP BY model, kind;

CREATE TABLE totals (
    name   TEXT PRIMARY KEY,
    value  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO totals SELECT 'recordings', coalesce(sum(size), 0) FROM recordings;

-- Which process does what only one may do at a time, and until when.
CREATE TABLE leases (
    name      TEXT PRIMARY KEY,
    holder    TEXT NOT NULL,
    until_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which process holds a node's channel, and since when no process holds it.
CREATE TABLE channels (
    node_id    TEXT PRIMARY KEY REFERENCES nodes (id),
    replica    TEXT NOT NULL,
    closed_ms  INTEGER
) STRICT, WITHOUT ROWID;

-- When a call was pushed and by which process, where several share the database.
ALTER TABLE sessions ADD COLUMN pushed_ms INTEGER;
ALTER TABLE sessions ADD COLUMN pushed_by TEXT;
