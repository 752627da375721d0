-- oldest: 5

-- Which routers nodes may serve: the certificate of each router's key (verifier/store/routers.py).
CREATE TABLE routers (
    spki         BLOB PRIMARY KEY,             -- SHA-256 of its public key
    name         TEXT NOT NULL,                -- of the credential that registered it
    credential   BLOB,                         -- digest of a key, or of a token of the home; NULL: a token of the issuer
    certificate  BLOB NOT NULL,                -- DER
    since_ms     INTEGER NOT NULL,             -- registered without a gap from then on
    renewed_ms   INTEGER NOT NULL,
    until_ms     INTEGER NOT NULL,
    removed_ms   INTEGER                       -- a person removed it: it is not registered again
) STRICT, WITHOUT ROWID;
