-- Walks of so many rows that arithmetic bounds them tell one device from two.
CREATE TABLE pool_new (
    model        TEXT NOT NULL,
    kind         TEXT NOT NULL CHECK (kind IN ('read', 'walk', 'wide')),
    idx          INTEGER NOT NULL,
    batch        INTEGER NOT NULL REFERENCES batches (id),
    parameters   TEXT NOT NULL,
    commitments  BLOB NOT NULL,
    session_id   TEXT REFERENCES sessions (id),
    PRIMARY KEY (model, kind, idx)
) STRICT, WITHOUT ROWID;
INSERT INTO pool_new SELECT model, kind, idx, batch, parameters, commitments, session_id FROM pool;
DROP TABLE pool;
ALTER TABLE pool_new RENAME TO pool;
CREATE INDEX pool_free ON pool (model, kind, idx) WHERE session_id IS NULL;
CREATE INDEX pool_session ON pool (session_id) WHERE session_id IS NOT NULL;

-- How many nodes of the operator were called at the same moment.
ALTER TABLE sessions ADD COLUMN together INTEGER NOT NULL DEFAULT 0;

ALTER TABLE walks ADD COLUMN wide INTEGER NOT NULL DEFAULT 0;
DROP INDEX walks_node;
CREATE INDEX walks_node ON walks (node_id, model, called, wide, seq);

-- What a run of minting set out to make, so that it can be taken up again.
ALTER TABLE batches ADD COLUMN goal TEXT NOT NULL DEFAULT '{}';

CREATE TABLE devices (
    device   TEXT PRIMARY KEY,                 -- the first live node that declares it
    node_id  TEXT NOT NULL REFERENCES nodes (id)
) STRICT;
CREATE INDEX devices_node ON devices (node_id);
