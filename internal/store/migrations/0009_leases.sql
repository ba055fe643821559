-- Which server drives the runs of a repository, until when, and how often it
-- changed hands: the fence of all that is written about those runs. Names are in
-- lower case.
CREATE TABLE leases (
	repository TEXT PRIMARY KEY,
	owner      TEXT NOT NULL,
	fence      BIGINT NOT NULL,
	lease      BIGINT NOT NULL
);
CREATE INDEX leases_owner ON leases (owner);

-- The server whose conductor put a job in, and who alone gives it out; "" is anyone.
ALTER TABLE queue ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX queue_owner ON queue (owner, state);

-- Why somebody wants a run to end; "": nobody does.
ALTER TABLE runs ADD COLUMN cancel TEXT NOT NULL DEFAULT '';
