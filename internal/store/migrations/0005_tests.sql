-- Single tests: what they came to, and for those that failed, at which commits,
-- and whether they passed there too. recent is how they ended last, the newest at
-- the end: P, F. tree is what was tested where that is known: a commit, or a digest
-- of a working tree.
CREATE TABLE tests (
	repository  TEXT NOT NULL,
	id          TEXT NOT NULL,
	workflow    TEXT NOT NULL,
	job         TEXT NOT NULL,
	step        TEXT NOT NULL,
	name        TEXT NOT NULL,
	kind        TEXT NOT NULL,
	passed      BIGINT NOT NULL,
	failed      BIGINT NOT NULL,
	skipped     BIGINT NOT NULL,
	recent      TEXT NOT NULL,
	seconds     DOUBLE PRECISION NOT NULL,
	first       BIGINT NOT NULL,
	last        BIGINT NOT NULL,
	last_failed BIGINT NOT NULL,
	pass_tree   TEXT NOT NULL,
	message     TEXT NOT NULL,
	PRIMARY KEY (repository, id)
);
CREATE INDEX tests_place ON tests (repository, workflow, job, step);
CREATE INDEX tests_last ON tests (repository, last);
CREATE TABLE test_failures (
	repository TEXT NOT NULL,
	test_id    TEXT NOT NULL,
	tree       TEXT NOT NULL,
	sha        TEXT NOT NULL,
	branch     TEXT NOT NULL,
	run_id     TEXT NOT NULL,
	at         BIGINT NOT NULL,
	passed_in  TEXT NOT NULL,
	PRIMARY KEY (repository, test_id, tree)
);
CREATE INDEX test_failures_at ON test_failures (repository, at);
