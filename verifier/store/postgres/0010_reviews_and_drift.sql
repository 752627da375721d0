-- oldest: 7

-- What people have decided, what they found, and how long it had waited (verifier/store/reviews.py).
CREATE TABLE review_decisions (
    id          TEXT COLLATE "C" NOT NULL,     -- of the incident, or NODE/MODEL of a suspicion
    kind        TEXT COLLATE "C" NOT NULL,
    code        TEXT COLLATE "C" NOT NULL,
    operator    TEXT COLLATE "C" NOT NULL,
    fault       TEXT COLLATE "C" NOT NULL CHECK (fault IN ('node', 'ours', 'unclear')),
    opened_ms   BIGINT NOT NULL,
    looked_ms   BIGINT NOT NULL,               -- when a person took the first step
    decided_ms  BIGINT NOT NULL,
    PRIMARY KEY (decided_ms, id)
);
CREATE INDEX incidents_waiting ON incidents (opened_ms, id)
    WHERE state IN ('open', 'under-review', 'suspected', 'flagged');
