-- oldest: 5

-- Calls in two steps: how long the answer to the read took, and when the node was then told of the walk.
ALTER TABLE sessions ADD COLUMN read_ms BIGINT;
ALTER TABLE sessions ADD COLUMN told_ms BIGINT;

-- Calls that nobody has answered for long: it is looked for them every second.
CREATE INDEX sessions_called ON sessions (issued_ms) WHERE status = 'waiting' AND channel = 'call';
