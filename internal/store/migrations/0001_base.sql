-- One dialect for SQLite and PostgreSQL: ids are TEXT made by us, moments are
-- BIGINT milliseconds since 1970 (0: never), flags are BIGINT 0/1, JSON is
-- TEXT, raw bytes are BYTEA (which SQLite takes as it comes).

-- Counters hand out numbers inside the transaction that uses them, so that on
-- both databases the order of numbers is the order of commits.
CREATE TABLE counters (
	name TEXT PRIMARY KEY,
	n    BIGINT NOT NULL
);

CREATE TABLE events (
	id         TEXT PRIMARY KEY,
	name       TEXT NOT NULL,
	action     TEXT NOT NULL,
	delivery   TEXT UNIQUE,
	repository TEXT NOT NULL,
	payload    BYTEA,
	received   BIGINT NOT NULL,
	state      TEXT NOT NULL,
	detail     TEXT NOT NULL,
	tries      BIGINT NOT NULL,
	due        BIGINT NOT NULL
);
CREATE INDEX events_due ON events (state, due);

CREATE TABLE runs (
	id         TEXT PRIMARY KEY,
	number     BIGINT NOT NULL,
	attempt    BIGINT NOT NULL,
	event_id   TEXT NOT NULL,
	event      TEXT NOT NULL,
	repository TEXT NOT NULL,
	workflow   TEXT NOT NULL,
	file       TEXT NOT NULL,
	name       TEXT NOT NULL,
	ref        TEXT NOT NULL,
	sha        TEXT NOT NULL,
	actor      TEXT NOT NULL,
	status     TEXT NOT NULL,
	conclusion TEXT NOT NULL,
	created    BIGINT NOT NULL,
	started    BIGINT NOT NULL,
	finished   BIGINT NOT NULL,
	plan       TEXT NOT NULL
);
CREATE INDEX runs_repository ON runs (repository, created);
CREATE INDEX runs_created ON runs (created);
CREATE INDEX runs_status ON runs (status);

CREATE TABLE jobs (
	id         TEXT PRIMARY KEY,
	run_id     TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
	position   BIGINT NOT NULL,
	key        TEXT NOT NULL,
	job        TEXT NOT NULL,
	name       TEXT NOT NULL,
	attempt    BIGINT NOT NULL,
	labels     TEXT NOT NULL,
	status     TEXT NOT NULL,
	conclusion TEXT NOT NULL,
	reason     TEXT NOT NULL,
	infra      BIGINT NOT NULL,
	outputs    TEXT NOT NULL,
	created    BIGINT NOT NULL,
	started    BIGINT NOT NULL,
	finished   BIGINT NOT NULL,
	UNIQUE (run_id, key)
);

CREATE TABLE steps (
	job_id     TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
	number     BIGINT NOT NULL,
	step_id    TEXT NOT NULL,
	name       TEXT NOT NULL,
	command    TEXT NOT NULL,
	attempt    BIGINT NOT NULL,
	status     TEXT NOT NULL,
	outcome    TEXT NOT NULL,
	conclusion TEXT NOT NULL,
	exit_code  BIGINT NOT NULL,
	started    BIGINT NOT NULL,
	finished   BIGINT NOT NULL,
	PRIMARY KEY (job_id, number)
);

-- The append-only event log. cursor grows without gaps in commit order.
CREATE TABLE records (
	cursor BIGINT PRIMARY KEY,
	run_id TEXT NOT NULL,
	seq    BIGINT NOT NULL,
	time   BIGINT NOT NULL,
	type   TEXT NOT NULL,
	body   TEXT NOT NULL,
	UNIQUE (run_id, seq)
);

-- Where a job's log lines are: a file below the log directory.
CREATE TABLE logs (
	run_id  TEXT NOT NULL,
	job_id  TEXT NOT NULL,
	path    TEXT NOT NULL,
	bytes   BIGINT NOT NULL,
	lines   BIGINT NOT NULL,
	PRIMARY KEY (run_id, job_id)
);
CREATE TABLE log_steps (
	run_id TEXT NOT NULL,
	job_id TEXT NOT NULL,
	step   BIGINT NOT NULL,
	start  BIGINT NOT NULL,
	stop   BIGINT NOT NULL,
	lines  BIGINT NOT NULL,
	PRIMARY KEY (run_id, job_id, step)
);

CREATE TABLE queue (
	job_id       TEXT PRIMARY KEY,
	labels       TEXT NOT NULL,
	state        TEXT NOT NULL,
	attempt      BIGINT NOT NULL,
	max_attempts BIGINT NOT NULL,
	priority     DOUBLE PRECISION NOT NULL,
	worker       TEXT NOT NULL,
	lease        BIGINT NOT NULL,
	available    BIGINT NOT NULL,
	cancel       TEXT NOT NULL,
	created      BIGINT NOT NULL,
	conclusion   TEXT NOT NULL,
	reason       TEXT NOT NULL
);
CREATE INDEX queue_state ON queue (state, available);

CREATE TABLE predictions (
	id          TEXT PRIMARY KEY,
	run_id      TEXT NOT NULL,
	job_key     TEXT NOT NULL,
	step        BIGINT NOT NULL,
	identity    TEXT NOT NULL,
	made        BIGINT NOT NULL,
	p_fail      DOUBLE PRECISION NOT NULL,
	low         DOUBLE PRECISION NOT NULL,
	high        DOUBLE PRECISION NOT NULL,
	expected_ms BIGINT NOT NULL,
	seen        BIGINT NOT NULL,
	reasons     TEXT NOT NULL,
	closed      BIGINT NOT NULL,
	outcome     TEXT NOT NULL,
	failed      BIGINT NOT NULL,
	duration_ms BIGINT NOT NULL,
	UNIQUE (run_id, job_key, step)
);
CREATE INDEX predictions_closed ON predictions (closed);

CREATE TABLE signatures (
	id         TEXT PRIMARY KEY,
	text       TEXT NOT NULL,
	class      TEXT NOT NULL,
	kind       TEXT NOT NULL,
	sketch     TEXT NOT NULL,
	seen       BIGINT NOT NULL,
	first      BIGINT NOT NULL,
	last       BIGINT NOT NULL,
	fixed_by   TEXT NOT NULL,
	fix        TEXT NOT NULL,
	retry_ok   BIGINT NOT NULL,
	retry_fail BIGINT NOT NULL
);
CREATE TABLE signature_hits (
	signature_id TEXT NOT NULL,
	run_id       TEXT NOT NULL,
	job_key      TEXT NOT NULL,
	step         BIGINT NOT NULL,
	attempt      BIGINT NOT NULL,
	identity     TEXT NOT NULL,
	repository   TEXT NOT NULL,
	branch       TEXT NOT NULL,
	sha          TEXT NOT NULL,
	at           BIGINT NOT NULL,
	text         TEXT NOT NULL,
	PRIMARY KEY (run_id, job_key, step, attempt)
);
CREATE INDEX signature_hits_signature ON signature_hits (signature_id, at);
CREATE INDEX signature_hits_identity ON signature_hits (identity, at);

CREATE TABLE lessons (
	id           TEXT PRIMARY KEY,
	repository   TEXT NOT NULL,
	identity     TEXT NOT NULL,
	signature_id TEXT NOT NULL,
	text         TEXT NOT NULL,
	evidence     TEXT NOT NULL,
	created      BIGINT NOT NULL,
	last         BIGINT NOT NULL,
	expires      BIGINT NOT NULL,
	shown        BIGINT NOT NULL,
	helped       BIGINT NOT NULL,
	UNIQUE (identity, signature_id)
);

-- Knowledge graph. version is that of the save that changed the row last, by
-- which another process catches up.
CREATE TABLE nodes (
	id      TEXT PRIMARY KEY,
	kind    TEXT NOT NULL,
	text    TEXT NOT NULL,
	ok      DOUBLE PRECISION NOT NULL,
	failed  DOUBLE PRECISION NOT NULL,
	last    BIGINT NOT NULL,
	version BIGINT NOT NULL
);
CREATE INDEX nodes_version ON nodes (version);
CREATE TABLE edges (
	src     TEXT NOT NULL,
	dst     TEXT NOT NULL,
	kind    TEXT NOT NULL,
	ok      DOUBLE PRECISION NOT NULL,
	failed  DOUBLE PRECISION NOT NULL,
	last    BIGINT NOT NULL,
	version BIGINT NOT NULL,
	PRIMARY KEY (src, kind, dst)
);
CREATE INDEX edges_version ON edges (version);

-- What the learner's models keep, by key. The body is the model's own affair.
CREATE TABLE model (
	key     TEXT PRIMARY KEY,
	body    BYTEA,
	last    BIGINT NOT NULL,
	version BIGINT NOT NULL
);
CREATE INDEX model_version ON model (version);

CREATE TABLE sessions (
	id       TEXT PRIMARY KEY,
	state    TEXT NOT NULL,
	vm       TEXT NOT NULL,
	owner    TEXT NOT NULL,
	body     TEXT NOT NULL,
	created  BIGINT NOT NULL,
	updated  BIGINT NOT NULL,
	deadline BIGINT NOT NULL
);

CREATE TABLE schedules (
	id         TEXT PRIMARY KEY,
	repository TEXT NOT NULL,
	file       TEXT NOT NULL,
	cron       TEXT NOT NULL,
	body       TEXT NOT NULL,
	next_run   BIGINT NOT NULL,
	last_run   BIGINT NOT NULL,
	UNIQUE (repository, file, cron)
);
CREATE INDEX schedules_next ON schedules (next_run);

-- Small things other packages remember, each in its own space: check run ids,
-- cached plans of the prompt package.
CREATE TABLE facts (
	space   TEXT NOT NULL,
	key     TEXT NOT NULL,
	value   TEXT NOT NULL,
	updated BIGINT NOT NULL,
	PRIMARY KEY (space, key)
);
