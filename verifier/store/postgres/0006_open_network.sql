-- oldest: 5

-- The order of results: each node's have growing numbers (verifier/store/sequence.py).
ALTER TABLE appraisals ADD COLUMN sequence BIGINT NOT NULL DEFAULT 0;
-- Up to which number a node's results are void.
CREATE INDEX appraisals_revoked ON appraisals (node_id, sequence) WHERE revoked_ms IS NOT NULL;

-- When each key signs results, and when it leaves the JWKS (verifier/store/signing_keys.py).
CREATE TABLE signing_keys (
    kid           TEXT COLLATE "C" PRIMARY KEY,
    jwk           TEXT NOT NULL,               -- the public key, JSON
    signs_ms      BIGINT NOT NULL,             -- from then on, unless a later key signs
    leaves_ms     BIGINT,                      -- from then on it is not listed any more
    withdrawn_ms  BIGINT
);
