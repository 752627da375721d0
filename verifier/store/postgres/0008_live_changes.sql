-- oldest: 7

-- The answer to a read over the gates alone: the files that change a model's answers (attester/weights/roles.py).
-- NULL in pools of before, whose reads are over all files of the reference value.
ALTER TABLE pool ADD COLUMN gates BYTEA;
ALTER TABLE pool ADD COLUMN gate_table BIGINT;
