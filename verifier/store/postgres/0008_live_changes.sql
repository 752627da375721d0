-- oldest: 7

-- Where a reference value is from: each source that was added, in its order; the value's own columns say which counts.
CREATE TABLE reference_sources (
    digest      TEXT COLLATE "C" NOT NULL,
    number      BIGINT NOT NULL,
    at_ms       BIGINT NOT NULL,
    source      TEXT NOT NULL,
    signer      TEXT,
    not_before  BIGINT,                       -- seconds since 1970
    not_after   BIGINT,
    actor       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    PRIMARY KEY (digest, number)
);
