-- oldest: 4
-- Whose fault a person has found it to be; NULL if nobody has said so.
ALTER TABLE hold_steps ADD COLUMN fault TEXT COLLATE "C";
CREATE INDEX hold_steps_released ON hold_steps (at_ms) WHERE step = 'release';

-- What nodes claim to have done on a day of UTC, as they have signed it.  A day is claimed once.
CREATE TABLE usage_claims (
    node      TEXT COLLATE "C" NOT NULL,
    -- For which router, by its name in the verifier's list.
    router    TEXT COLLATE "C" NOT NULL,
    day       TEXT COLLATE "C" NOT NULL,
    -- The node's operator when the claim came.
    operator  TEXT COLLATE "C" NOT NULL,
    at_ms     BIGINT NOT NULL,
    claim     BYTEA NOT NULL,
    PRIMARY KEY (node, router, day)
);
CREATE INDEX usage_claims_by_day ON usage_claims (day, node, router);

-- What relying parties report of work that they have dispatched themselves: once for a decision and a node.
CREATE TABLE dispatch_receipts (
    decision   TEXT COLLATE "C" NOT NULL,
    node       TEXT COLLATE "C" NOT NULL,
    caller     TEXT COLLATE "C" NOT NULL,
    -- Callers that may act together are one party.
    party      TEXT COLLATE "C" NOT NULL,
    at_ms      BIGINT NOT NULL,
    completed  BIGINT NOT NULL,
    receipt    TEXT NOT NULL,
    PRIMARY KEY (decision, node)
);
CREATE INDEX dispatch_receipts_by_node ON dispatch_receipts (node, at_ms);

-- Statements as they are signed.  None is ever changed; a correction has the next number.
CREATE TABLE statements (
    id        TEXT COLLATE "C" PRIMARY KEY,
    operator  TEXT COLLATE "C" NOT NULL,
    period    TEXT COLLATE "C" NOT NULL,
    number    BIGINT NOT NULL,
    made_ms   BIGINT NOT NULL,
    token     TEXT NOT NULL,
    UNIQUE (operator, period, number)
);
CREATE INDEX statements_by_time ON statements (made_ms, id);

-- The receipts behind each line of a statement, in the order of their ids.
CREATE TABLE statement_receipts (
    statement  TEXT COLLATE "C" NOT NULL REFERENCES statements (id),
    receipt    TEXT COLLATE "C" NOT NULL,
    line       BIGINT NOT NULL,
    -- A receipt whose answer two nodes gave is in two lines.
    PRIMARY KEY (statement, receipt, line)
);
CREATE INDEX statement_receipts_by_receipt ON statement_receipts (receipt);

CREATE TABLE disputes (
    id           TEXT COLLATE "C" PRIMARY KEY,
    statement    TEXT COLLATE "C" NOT NULL REFERENCES statements (id),
    line         BIGINT NOT NULL,
    -- The receipt that it is about, if it is about one.
    receipt      TEXT COLLATE "C" NOT NULL,
    actor        TEXT COLLATE "C" NOT NULL,
    reason       TEXT NOT NULL,
    opened_ms    BIGINT NOT NULL,
    -- open, upheld or rejected.
    state        TEXT COLLATE "C" NOT NULL,
    resolver     TEXT COLLATE "C" NOT NULL DEFAULT '',
    resolution   TEXT NOT NULL DEFAULT '',
    resolved_ms  BIGINT
);
CREATE INDEX disputes_by_statement ON disputes (statement, line);
CREATE INDEX disputes_by_actor ON disputes (actor) WHERE state = 'open';
CREATE UNIQUE INDEX disputes_once ON disputes (statement, line, receipt, actor) WHERE state = 'open';

-- When a router may have lost receipts.
CREATE TABLE receipt_gaps (
    router   TEXT COLLATE "C" NOT NULL,
    from_ms  BIGINT NOT NULL,
    to_ms    BIGINT NOT NULL,
    -- Of one node, at most.
    lost     BIGINT NOT NULL,
    why      TEXT NOT NULL,
    PRIMARY KEY (router, from_ms, to_ms)
);
CREATE INDEX receipt_gaps_by_time ON receipt_gaps (to_ms);
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
-- Files of callers, and the jobs that are made of them: the Files and Batch API. What is in them is users' text.
CREATE TABLE files (
    id          TEXT COLLATE "C" PRIMARY KEY,
    owner       TEXT COLLATE "C" NOT NULL,
    purpose     TEXT NOT NULL,
    name        TEXT NOT NULL,
    bytes       BIGINT NOT NULL,
    created_ms  BIGINT NOT NULL,
    expires_ms  BIGINT,
    -- 0 while it is written, 1 once it is there, 2 while it is deleted.
    state       BIGINT NOT NULL,
    -- The job whose results it is, and which of them: 0 answers, 1 errors. Otherwise its bytes are in file_parts.
    job         TEXT COLLATE "C",
    side        BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX files_by_owner ON files (owner, id);
CREATE INDEX files_by_expiry ON files (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE INDEX files_unready ON files (created_ms) WHERE state <> 1;

CREATE TABLE file_parts (
    file    TEXT COLLATE "C" NOT NULL,
    number  BIGINT NOT NULL,
    data    BYTEA NOT NULL,
    PRIMARY KEY (file, number)
);

CREATE TABLE jobs (
    id                 TEXT COLLATE "C" PRIMARY KEY,
    owner              TEXT COLLATE "C" NOT NULL,
    -- The limits of an owner that has a token of the issuer and no key.
    guest              BYTEA,
    status             TEXT NOT NULL,
    -- 1 until it has ended.
    is_open            BIGINT NOT NULL,
    endpoint           TEXT NOT NULL,
    input_file         TEXT COLLATE "C" NOT NULL,
    completion_window  TEXT NOT NULL,
    created_ms         BIGINT NOT NULL,
    expires_ms         BIGINT NOT NULL,
    -- When it came to each status, JSON.
    times              BYTEA NOT NULL,
    metadata           BYTEA NOT NULL,
    model              TEXT,
    total              BIGINT NOT NULL DEFAULT 0,
    completed          BIGINT NOT NULL DEFAULT 0,
    failed             BIGINT NOT NULL DEFAULT 0,
    prompt_tokens      BIGINT NOT NULL DEFAULT 0,
    completion_tokens  BIGINT NOT NULL DEFAULT 0,
    output_bytes       BIGINT NOT NULL DEFAULT 0,
    error_bytes        BIGINT NOT NULL DEFAULT 0,
    -- What is wrong with the input, JSON.
    errors             BYTEA,
    output_file        TEXT,
    error_file         TEXT,
    keep_output_s      BIGINT,
    -- Who validates or ends it now, and until when.
    router             TEXT COLLATE "C" NOT NULL DEFAULT '',
    holder             TEXT COLLATE "C" NOT NULL DEFAULT '',
    until_ms           BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_owner ON jobs (owner, id);
CREATE INDEX jobs_open ON jobs (owner) WHERE is_open = 1;
CREATE INDEX jobs_by_input ON jobs (input_file) WHERE is_open = 1;
CREATE INDEX jobs_ended ON jobs (created_ms) WHERE is_open = 0;

-- Some lines of a job that follow each other: one router does them, while it has the lease.
CREATE TABLE job_ranges (
    job         TEXT COLLATE "C" NOT NULL,
    number      BIGINT NOT NULL,
    first_line  BIGINT NOT NULL,
    lines       BIGINT NOT NULL,
    -- Where they are in the input file, in bytes.
    start       BIGINT NOT NULL,
    size        BIGINT NOT NULL,
    tries       BIGINT NOT NULL DEFAULT 0,
    due_ms      BIGINT NOT NULL DEFAULT 0,
    is_done     BIGINT NOT NULL DEFAULT 0,
    router      TEXT COLLATE "C" NOT NULL DEFAULT '',
    holder      TEXT COLLATE "C" NOT NULL DEFAULT '',
    until_ms    BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (job, number)
);
CREATE INDEX job_ranges_open ON job_ranges (job, number) WHERE is_done = 0;
CREATE INDEX job_ranges_held ON job_ranges (holder) WHERE holder <> '';
CREATE INDEX job_ranges_of_router ON job_ranges (router) WHERE holder <> '';

-- What came of each line: a line of the output, or of the errors. There is one at most.
CREATE TABLE job_lines (
    job     TEXT COLLATE "C" NOT NULL,
    line    BIGINT NOT NULL,
    failed  BIGINT NOT NULL,
    data    BYTEA NOT NULL,
    PRIMARY KEY (job, line)
);
CREATE INDEX job_lines_by_side ON job_lines (job, failed, line);
