-- What routers reported. An id of theirs counts once: the unique constraint is what enforces it.
CREATE TABLE incident_reports (
    seq          INTEGER PRIMARY KEY,
    report       TEXT UNIQUE,                  -- as the router names it; NULL where it does not
    incident_id  TEXT REFERENCES incidents (id),  -- NULL only within the transaction that counts it
    at_ms        INTEGER NOT NULL,
    evidence     TEXT                          -- JSON
) STRICT;
CREATE INDEX incident_reports_incident ON incident_reports (incident_id, seq);

-- The step that a person took or proposed; NULL for what the verifier did, and before this version.
ALTER TABLE incident_steps ADD COLUMN step TEXT;

-- Releases that wait for a second person.
CREATE TABLE proposals (
    incident_id  TEXT NOT NULL REFERENCES incidents (id),
    cause        TEXT NOT NULL,                -- what of ours it is to rest on no longer; '' for its release
    actor        TEXT NOT NULL,
    at_ms        INTEGER NOT NULL,
    PRIMARY KEY (incident_id, cause)
) STRICT, WITHOUT ROWID;

-- Calls that ended without evidence were noted without the node's operator.
UPDATE incidents SET operator = (SELECT operator FROM nodes WHERE nodes.id = incidents.node_id)
    WHERE operator IS NULL AND node_id IS NOT NULL;
