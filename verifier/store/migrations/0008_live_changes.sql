-- oldest: 7

-- Where a reference value is from: each source that was added, in its order; the value's own columns say which counts.
CREATE TABLE reference_sources (
    digest      TEXT NOT NULL,
    number      INTEGER NOT NULL,
    at_ms       INTEGER NOT NULL,
    source      TEXT NOT NULL,
    signer      TEXT,
    not_before  INTEGER,                       -- seconds since 1970
    not_after   INTEGER,
    actor       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    PRIMARY KEY (digest, number)
) STRICT, WITHOUT ROWID;
