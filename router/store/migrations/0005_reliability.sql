-- oldest: 4
-- Whose fault a person has found it to be; NULL if nobody has said so.
ALTER TABLE hold_steps ADD COLUMN fault TEXT;
CREATE INDEX hold_steps_released ON hold_steps (at_ms) WHERE step = 'release';

-- What nodes claim to have done on a day of UTC, as they have signed it.  A day is claimed once.
CREATE TABLE usage_claims (
    node      TEXT NOT NULL,
    -- For which router, by its name in the verifier's list.
    router    TEXT NOT NULL,
    day       TEXT NOT NULL,
    -- The node's operator when the claim came.
    operator  TEXT NOT NULL,
    at_ms     INTEGER NOT NULL,
    claim     BLOB NOT NULL,
    PRIMARY KEY (node, router, day)
) STRICT;
CREATE INDEX usage_claims_by_day ON usage_claims (day, node, router);

-- What relying parties report of work that they have dispatched themselves: once for a decision and a node.
CREATE TABLE dispatch_receipts (
    decision   TEXT NOT NULL,
    node       TEXT NOT NULL,
    caller     TEXT NOT NULL,
    -- Callers that may act together are one party.
    party      TEXT NOT NULL,
    at_ms      INTEGER NOT NULL,
    completed  INTEGER NOT NULL,
    receipt    TEXT NOT NULL,
    PRIMARY KEY (decision, node)
) STRICT;
CREATE INDEX dispatch_receipts_by_node ON dispatch_receipts (node, at_ms);

-- Statements as they are signed.  None is ever changed; a correction has the next number.
CREATE TABLE statements (
    id        TEXT PRIMARY KEY,
    operator  TEXT NOT NULL,
    period    TEXT NOT NULL,
    number    INTEGER NOT NULL,
    made_ms   INTEGER NOT NULL,
    token     TEXT NOT NULL,
    UNIQUE (operator, period, number)
) STRICT;
CREATE INDEX statements_by_time ON statements (made_ms, id);

-- The receipts behind each line of a statement, in the order of their ids.
CREATE TABLE statement_receipts (
    statement  TEXT NOT NULL REFERENCES statements (id),
    receipt    TEXT NOT NULL,
    line       INTEGER NOT NULL,
    -- A receipt whose answer two nodes gave is in two lines.
    PRIMARY KEY (statement, receipt, line)
) STRICT;
CREATE INDEX statement_receipts_by_receipt ON statement_receipts (receipt);

CREATE TABLE disputes (
    id           TEXT PRIMARY KEY,
    statement    TEXT NOT NULL REFERENCES statements (id),
    line         INTEGER NOT NULL,
    -- The receipt that it is about, if it is about one.
    receipt      TEXT NOT NULL,
    actor        TEXT NOT NULL,
    reason       TEXT NOT NULL,
    opened_ms    INTEGER NOT NULL,
    -- open, upheld or rejected.
    state        TEXT NOT NULL,
    resolver     TEXT NOT NULL DEFAULT '',
    resolution   TEXT NOT NULL DEFAULT '',
    resolved_ms  INTEGER
) STRICT;
CREATE INDEX disputes_by_statement ON disputes (statement, line);
CREATE INDEX disputes_by_actor ON disputes (actor) WHERE state = 'open';
CREATE UNIQUE INDEX disputes_once ON disputes (statement, line, receipt, actor) WHERE state = 'open';

-- When a router may have lost receipts.
CREATE TABLE receipt_gaps (
    router   TEXT NOT NULL,
    from_ms  INTEGER NOT NULL,
    to_ms    INTEGER NOT NULL,
    -- Of one node, at most.
    lost     INTEGER NOT NULL,
    why      TEXT NOT NULL,
    PRIMARY KEY (router, from_ms, to_ms)
) STRICT;
CREATE INDEX receipt_gaps_by_time ON receipt_gaps (to_ms);
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
-- Files of callers, and the jobs that are made of them: the Files and Batch API. What is in them is users' text.
CREATE TABLE files (
    id          TEXT PRIMARY KEY,
    owner       TEXT NOT NULL,
    purpose     TEXT NOT NULL,
    name        TEXT NOT NULL,
    bytes       INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER,
    -- 0 while it is written, 1 once it is there, 2 while it is deleted.
    state       INTEGER NOT NULL,
    -- The job whose results it is, and which of them: 0 answers, 1 errors. Otherwise its bytes are in file_parts.
    job         TEXT,
    side        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX files_by_owner ON files (owner, id);
CREATE INDEX files_by_expiry ON files (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE INDEX files_unready ON files (created_ms) WHERE state <> 1;

CREATE TABLE file_parts (
    file    TEXT NOT NULL,
    number  INTEGER NOT NULL,
    data    BLOB NOT NULL,
    PRIMARY KEY (file, number)
) STRICT;

CREATE TABLE jobs (
    id                 TEXT PRIMARY KEY,
    owner              TEXT NOT NULL,
    -- The limits of an owner that has a token of the issuer and no key.
    guest              BLOB,
    status             TEXT NOT NULL,
    -- 1 until it has ended.
    is_open            INTEGER NOT NULL,
    endpoint           TEXT NOT NULL,
    input_file         TEXT NOT NULL,
    completion_window  TEXT NOT NULL,
    created_ms         INTEGER NOT NULL,
    expires_ms         INTEGER NOT NULL,
    -- When it came to each status, JSON.
    times              BLOB NOT NULL,
    metadata           BLOB NOT NULL,
    model              TEXT,
    total              INTEGER NOT NULL DEFAULT 0,
    completed          INTEGER NOT NULL DEFAULT 0,
    failed             INTEGER NOT NULL DEFAULT 0,
    prompt_tokens      INTEGER NOT NULL DEFAULT 0,
    completion_tokens  INTEGER NOT NULL DEFAULT 0,
    output_bytes       INTEGER NOT NULL DEFAULT 0,
    error_bytes        INTEGER NOT NULL DEFAULT 0,
    -- What is wrong with the input, JSON.
    errors             BLOB,
    output_file        TEXT,
    error_file         TEXT,
    keep_output_s      INTEGER,
    -- Who validates or ends it now, and until when.
    router             TEXT NOT NULL DEFAULT '',
    holder             TEXT NOT NULL DEFAULT '',
    until_ms           INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX jobs_by_owner ON jobs (owner, id);
CREATE INDEX jobs_open ON jobs (owner) WHERE is_open = 1;
CREATE INDEX jobs_by_input ON jobs (input_file) WHERE is_open = 1;
CREATE INDEX jobs_ended ON jobs (created_ms) WHERE is_open = 0;

-- Some lines of a job that follow each other: one router does them, while it has the lease.
CREATE TABLE job_ranges (
    job         TEXT NOT NULL,
    number      INTEGER NOT NULL,
    first_line  INTEGER NOT NULL,
    lines       INTEGER NOT NULL,
    -- Where they are in the input file, in bytes.
    start       INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    tries       INTEGER NOT NULL DEFAULT 0,
    due_ms      INTEGER NOT NULL DEFAULT 0,
    is_done     INTEGER NOT NULL DEFAULT 0,
    router      TEXT NOT NULL DEFAULT '',
    holder      TEXT NOT NULL DEFAULT '',
    until_ms    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_ranges_open ON job_ranges (job, number) WHERE is_done = 0;
CREATE INDEX job_ranges_held ON job_ranges (holder) WHERE holder <> '';
CREATE INDEX job_ranges_of_router ON job_ranges (router) WHERE holder <> '';

-- What came of each line: a line of the output, or of the errors. There is one at most.
CREATE TABLE job_lines (
    job     TEXT NOT NULL,
    line    INTEGER NOT NULL,
    failed  INTEGER NOT NULL,
    data    BLOB NOT NULL,
    PRIMARY KEY (job, line)
) STRICT;
CREATE INDEX job_lines_by_side ON job_lines (job, failed, line);
