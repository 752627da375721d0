-- oldest: 5

-- Which routers nodes may serve: the certificate of each router's key (verifier/store/routers.py).
CREATE TABLE routers (
    spki         BYTEA PRIMARY KEY,            -- SHA-256 of its public key
    name         TEXT COLLATE "C" NOT NULL,    -- of the credential that registered it
    credential   BYTEA,                        -- digest of a key, or of a token of the home; NULL: a token of the issuer
    certificate  BYTEA NOT NULL,               -- DER
    since_ms     BIGINT NOT NULL,              -- registered without a gap from then on
    renewed_ms   BIGINT NOT NULL,
    until_ms     BIGINT NOT NULL,
    removed_ms   BIGINT                        -- a person removed it: it is not registered again
);
