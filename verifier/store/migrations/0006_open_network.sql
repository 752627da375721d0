-- oldest: 5

-- The order of results: each node's have growing numbers (verifier/store/sequence.py).
ALTER TABLE appraisals ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0;
-- Up to which number a node's results are void.
CREATE INDEX appraisals_revoked ON appraisals (node_id, sequence) WHERE revoked_ms IS NOT NULL;
