-- oldest: 7

-- What a second engine said about live evaluations (verifier/store/second_opinions.py).
CREATE TABLE second_opinions (
    engine      TEXT COLLATE "C" NOT NULL,
    policy      TEXT COLLATE "C" NOT NULL REFERENCES policies (digest),
    asked       BIGINT NOT NULL,
    differing   BIGINT NOT NULL,
    unanswered  BIGINT NOT NULL,
    skipped     BIGINT NOT NULL,
    PRIMARY KEY (engine, policy)
);

-- The inputs that it judged otherwise.
CREATE TABLE second_opinion_differences (
    engine  TEXT COLLATE "C" NOT NULL,
    policy  TEXT COLLATE "C" NOT NULL REFERENCES policies (digest),
    digest  TEXT COLLATE "C" NOT NULL,                     -- of the input
    input   TEXT COLLATE "C" NOT NULL,                     -- JSON
    here    TEXT COLLATE "C" NOT NULL,
    there   TEXT COLLATE "C" NOT NULL,
    at_ms   BIGINT NOT NULL,
    PRIMARY KEY (engine, policy, digest)
);
