-- What was imported from other systems, so that it is not learned from twice: its
-- key there, and when it ended. The row without a key says up to when keys were
-- dropped for want of room.
CREATE TABLE imports (
	repository TEXT NOT NULL,
	key        TEXT NOT NULL,
	at         BIGINT NOT NULL,
	PRIMARY KEY (repository, key)
);
CREATE INDEX imports_at ON imports (repository, at);
