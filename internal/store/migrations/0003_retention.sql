-- What a completed run takes up, in bytes: rows, and log files. -1: not counted
-- yet.
ALTER TABLE runs ADD COLUMN bytes BIGINT NOT NULL DEFAULT -1;

-- Runs whose row is gone and whose rest is being removed. A process that dies
-- in between leaves its row here, and the next one goes on.
CREATE TABLE removals (
	run_id TEXT PRIMARY KEY,
	begun  BIGINT NOT NULL
);
CREATE INDEX events_received ON events (received);
