-- oldest: 4
-- Changes of the table of workloads. One of them is live at a time: the others have no `live`.
CREATE TABLE changes (
    id        TEXT COLLATE "C" PRIMARY KEY,
    number    BIGINT NOT NULL UNIQUE,
    live      BIGINT UNIQUE,
    stage     TEXT NOT NULL,
    -- Per cent of the traffic that the candidate decides about.
    share     BIGINT NOT NULL,
    -- The digest of the table that was in force when it was proposed, and its own.
    base      TEXT COLLATE "C" NOT NULL,
    digest    TEXT COLLATE "C" NOT NULL,
    -- As a person has written it.
    document  BYTEA NOT NULL,
    settings  BYTEA NOT NULL,
    -- Draws which traffic is in the share. Nobody is told.
    secret    BYTEA NOT NULL,
    -- When its share was first above 0; its tests count from there.
    shared_ms BIGINT,
    revision  BIGINT NOT NULL
);
CREATE INDEX changes_by_revision ON changes (revision);

-- What was done about a change: by whom, why and when.
CREATE TABLE change_steps (
    change_id  TEXT COLLATE "C" NOT NULL,
    number     BIGINT NOT NULL,
    step       TEXT NOT NULL,
    actor      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    at_ms      BIGINT NOT NULL,
    -- What stopped it, if the router did.
    evidence   BYTEA,
    PRIMARY KEY (change_id, number)
);

-- What each router has seen of a change.
CREATE TABLE change_sights (
    change_id  TEXT COLLATE "C" NOT NULL,
    router     TEXT COLLATE "C" NOT NULL,
    at_ms      BIGINT NOT NULL,
    seen       BYTEA NOT NULL,
    PRIMARY KEY (change_id, router)
);
