-- oldest: 3
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
