-- oldest: 7

-- What a second engine said about live evaluations (verifier/store/second_opinions.py).
CREATE TABLE second_opinions (
    engine      TEXT NOT NULL,
    policy      TEXT NOT NULL REFERENCES policies (digest),
    asked       INTEGER NOT NULL,
    differing   INTEGER NOT NULL,
    unanswered  INTEGER NOT NULL,
    skipped     INTEGER NOT NULL,
    PRIMARY KEY (engine, policy)
) STRICT, WITHOUT ROWID;

-- The inputs that it judged otherwise.
CREATE TABLE second_opinion_differences (
    engine  TEXT NOT NULL,
    policy  TEXT NOT NULL REFERENCES policies (digest),
    digest  TEXT NOT NULL,                     -- of the input
    input   TEXT NOT NULL,                     -- JSON
    here    TEXT NOT NULL,
    there   TEXT NOT NULL,
    at_ms   INTEGER NOT NULL,
    PRIMARY KEY (engine, policy, digest)
) STRICT, WITHOUT ROWID;
