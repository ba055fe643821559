-- What was decided about a failed step, and what came of it: whether to try it
-- again. taken is whether it was done; outcome is that of the next attempt, -1 while
-- there is none.
CREATE TABLE decisions (
	repository TEXT NOT NULL,
	run_id     TEXT NOT NULL,
	job_key    TEXT NOT NULL,
	step       BIGINT NOT NULL,
	attempt    BIGINT NOT NULL,
	identity   TEXT NOT NULL,
	signature  TEXT NOT NULL,
	at         BIGINT NOT NULL,
	policy     TEXT NOT NULL,
	p          DOUBLE PRECISION NOT NULL,
	gain_ms    BIGINT NOT NULL,
	cost_ms    BIGINT NOT NULL,
	propensity DOUBLE PRECISION NOT NULL,
	advised    BIGINT NOT NULL,
	taken      BIGINT NOT NULL,
	reason     TEXT NOT NULL,
	outcome    BIGINT NOT NULL,
	took_ms    BIGINT NOT NULL,
	PRIMARY KEY (run_id, job_key, step, attempt)
);
CREATE INDEX decisions_repository ON decisions (repository, at);
