-- oldest: 7

-- What people have decided, what they found, and how long it had waited (verifier/store/reviews.py).
CREATE TABLE review_decisions (
    id          TEXT NOT NULL,                 -- of the incident, or NODE/MODEL of a suspicion
    kind        TEXT NOT NULL,
    code        TEXT NOT NULL,
    operator    TEXT NOT NULL,
    fault       TEXT NOT NULL CHECK (fault IN ('node', 'ours', 'unclear')),
    opened_ms   INTEGER NOT NULL,
    looked_ms   INTEGER NOT NULL,              -- when a person took the first step
    decided_ms  INTEGER NOT NULL,
    PRIMARY KEY (decided_ms, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX incidents_waiting ON incidents (opened_ms, id)
    WHERE state IN ('open', 'under-review', 'suspected', 'flagged');
