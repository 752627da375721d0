-- oldest: 5

-- Calls in two steps: how long the answer to the read took, and when the node was then told of the walk.
ALTER TABLE sessions ADD COLUMN read_ms INTEGER;
ALTER TABLE sessions ADD COLUMN told_ms INTEGER;

-- Calls that nobody has answered for long: it is looked for them every second.
CREATE INDEX sessions_called ON sessions (issued_ms) WHERE status = 'waiting' AND channel = 'call';

-- Recordings: those that an undecided incident rests on stay, and the nodes that have most lose theirs first.
ALTER TABLE recordings ADD COLUMN session_id TEXT NOT NULL DEFAULT '';
CREATE INDEX recordings_share ON recordings (node_id, size);
