-- What routers remember. Several share one file; each writes its own rows of standings and budgets.

-- Aggregates, not requests: what one router has seen of a node for a tier.
CREATE TABLE standings (
    node TEXT NOT NULL,
    tier TEXT NOT NULL,
    router TEXT NOT NULL,
    account BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (node, tier, router)
);
CREATE INDEX standings_by_revision ON standings (revision);

-- What a router itself keeps work from, and what it wants people to look at.
CREATE TABLE holds (
    id TEXT PRIMARY KEY,
    node TEXT,
    operator TEXT NOT NULL,
    kind TEXT NOT NULL,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    evidence BLOB NOT NULL,
    holding INTEGER NOT NULL,
    state TEXT NOT NULL,
    opened_ms INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,
    incident TEXT
);
CREATE INDEX holds_open ON holds (state);

-- One open hold for a node and kind: a second router that sees the same adds nothing.
CREATE UNIQUE INDEX holds_once ON holds (coalesce(node, ''), kind) WHERE state = 'open';

CREATE TABLE hold_steps (
    hold TEXT NOT NULL REFERENCES holds (id),
    number INTEGER NOT NULL,
    step TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (hold, number)
);

CREATE TABLE decisions (
    id TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    router TEXT NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX decisions_by_time ON decisions (at_ms);

CREATE TABLE budgets (
    router TEXT NOT NULL,
    name TEXT NOT NULL,
    day INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (router, name)
);
