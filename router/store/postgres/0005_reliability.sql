-- oldest: 3
-- Whose fault a person has found it to be; NULL if nobody has said so.
ALTER TABLE hold_steps ADD COLUMN fault TEXT COLLATE "C";
CREATE INDEX hold_steps_released ON hold_steps (at_ms) WHERE step = 'release';
