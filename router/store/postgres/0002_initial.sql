-- The schema of the SQLite migrations 1 and 2, for PostgreSQL.
-- What routers remember. Several share one database; each writes its own rows of standings and budgets.

-- Aggregates, not requests: what one router has seen of a node for a tier.
CREATE TABLE standings (
    node      TEXT COLLATE "C" NOT NULL,
    tier      TEXT COLLATE "C" NOT NULL,
    router    TEXT COLLATE "C" NOT NULL,
    account   BYTEA NOT NULL,
    at_ms     BIGINT NOT NULL,
    revision  BIGINT NOT NULL,
    PRIMARY KEY (node, tier, router)
);
CREATE INDEX standings_by_revision ON standings (revision);

-- What a router itself keeps work from, and what it wants people to look at.
CREATE TABLE holds (
    id         TEXT COLLATE "C" PRIMARY KEY,
    node       TEXT,
    operator   TEXT NOT NULL,
    kind       TEXT NOT NULL,
    code       TEXT NOT NULL,
    detail     TEXT NOT NULL,
    evidence   BYTEA NOT NULL,
    holding    BIGINT NOT NULL,
    state      TEXT NOT NULL,
    opened_ms  BIGINT NOT NULL,
    due_ms     BIGINT NOT NULL,
    incident   TEXT
);
CREATE INDEX holds_open ON holds (state);

-- One open hold for a node and kind: a second router that sees the same adds nothing.
CREATE UNIQUE INDEX holds_once ON holds (coalesce(node, ''), kind) WHERE state = 'open';

CREATE TABLE hold_steps (
    hold    TEXT COLLATE "C" NOT NULL REFERENCES holds (id),
    number  BIGINT NOT NULL,
    step    TEXT NOT NULL,
    actor   TEXT NOT NULL,
    reason  TEXT NOT NULL,
    at_ms   BIGINT NOT NULL,
    PRIMARY KEY (hold, number)
);

CREATE TABLE decisions (
    id      TEXT COLLATE "C" PRIMARY KEY,
    at_ms   BIGINT NOT NULL,
    router  TEXT NOT NULL,
    record  BYTEA NOT NULL
);
CREATE INDEX decisions_by_time ON decisions (at_ms);

CREATE TABLE budgets (
    router  TEXT COLLATE "C" NOT NULL,
    name    TEXT COLLATE "C" NOT NULL,
    day     BIGINT NOT NULL,
    tokens  BIGINT NOT NULL,
    PRIMARY KEY (router, name)
);

-- Which router has a name, and until when.
CREATE TABLE leases (
    name      TEXT PRIMARY KEY,
    holder    TEXT NOT NULL,
    until_ms  BIGINT NOT NULL
);
