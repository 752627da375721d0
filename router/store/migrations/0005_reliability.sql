-- oldest: 4
-- Changes of the table of workloads. One of them is live at a time: the others have no `live`.
CREATE TABLE changes (
    id        TEXT PRIMARY KEY,
    number    INTEGER NOT NULL UNIQUE,
    live      INTEGER UNIQUE,
    stage     TEXT NOT NULL,
    -- Per cent of the traffic that the candidate decides about.
    share     INTEGER NOT NULL,
    -- The digest of the table that was in force when it was proposed, and its own.
    base      TEXT NOT NULL,
    digest    TEXT NOT NULL,
    -- As a person has written it.
    document  BLOB NOT NULL,
    settings  BLOB NOT NULL,
    -- Draws which traffic is in the share. Nobody is told.
    secret    BLOB NOT NULL,
    -- When its share was first above 0; its tests count from there.
    shared_ms INTEGER,
    revision  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX changes_by_revision ON changes (revision);

-- What was done about a change: by whom, why and when.
CREATE TABLE change_steps (
    change_id  TEXT NOT NULL,
    number     INTEGER NOT NULL,
    step       TEXT NOT NULL,
    actor      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    at_ms      INTEGER NOT NULL,
    -- What stopped it, if the router did.
    evidence   BLOB,
    PRIMARY KEY (change_id, number)
) STRICT, WITHOUT ROWID;

-- What each router has seen of a change.
CREATE TABLE change_sights (
    change_id  TEXT NOT NULL,
    router     TEXT NOT NULL,
    at_ms      INTEGER NOT NULL,
    seen       BLOB NOT NULL,
    PRIMARY KEY (change_id, router)
) STRICT, WITHOUT ROWID;
