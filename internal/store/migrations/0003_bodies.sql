-- What was delivered, by the digest of its body, which outlives the events: a
-- body that was seen under another delivery id needs another proof that it was
-- sent. "again" marks such an event.
CREATE TABLE bodies (
	digest   TEXT PRIMARY KEY,
	event    TEXT NOT NULL,
	received BIGINT NOT NULL
);

ALTER TABLE events ADD COLUMN again BIGINT NOT NULL DEFAULT 0;
