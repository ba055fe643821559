-- What is remembered is kept by repository. Where the record is of one
-- repository alone, all that is known is of it. Where it is of several, what
-- cannot be told apart is forgotten: the graph's shared commands, templates,
-- and of a signature that several had who ended it.

CREATE TABLE signatures_new (
	repository TEXT NOT NULL,
	id         TEXT NOT NULL,
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
	retry_fail BIGINT NOT NULL,
	PRIMARY KEY (repository, id)
);
INSERT INTO signatures_new (repository, id, text, class, kind, sketch, seen, first, last, fixed_by, fix, retry_ok, retry_fail)
	SELECT h.repository, s.id, s.text, s.class, s.kind, s.sketch, s.seen, s.first, s.last, s.fixed_by, s.fix, s.retry_ok, s.retry_fail
	FROM signatures s JOIN (SELECT signature_id, MIN(repository) AS repository FROM signature_hits
		GROUP BY signature_id HAVING COUNT(DISTINCT repository) = 1) h ON h.signature_id = s.id;
INSERT INTO signatures_new (repository, id, text, class, kind, sketch, seen, first, last, fixed_by, fix, retry_ok, retry_fail)
	SELECT h.repository, s.id, (SELECT MIN(x.text) FROM signature_hits x WHERE x.signature_id = s.id AND x.repository = h.repository),
		s.class, s.kind, s.sketch, h.seen, h.first, h.last, '', '', 0, 0
	FROM signatures s JOIN (SELECT signature_id, repository, COUNT(*) AS seen, MIN(at) AS first, MAX(at) AS last FROM signature_hits
		WHERE signature_id IN (SELECT signature_id FROM signature_hits GROUP BY signature_id HAVING COUNT(DISTINCT repository) > 1)
		GROUP BY signature_id, repository) h ON h.signature_id = s.id;
DROP TABLE signatures;
ALTER TABLE signatures_new RENAME TO signatures;
CREATE INDEX signatures_last ON signatures (repository, last);

DROP INDEX signature_hits_signature;
DROP INDEX signature_hits_identity;
CREATE INDEX signature_hits_signature ON signature_hits (repository, signature_id, at);
CREATE INDEX signature_hits_identity ON signature_hits (repository, identity, at);
CREATE INDEX signature_hits_at ON signature_hits (repository, at);

-- Lessons quote what they rest on: those of signatures that several
-- repositories had may quote another's commit.
DELETE FROM lessons WHERE signature_id IN (SELECT signature_id FROM signature_hits GROUP BY signature_id HAVING COUNT(DISTINCT repository) > 1);
CREATE INDEX lessons_repository ON lessons (repository, last);

CREATE TABLE nodes_new (
	repository TEXT NOT NULL,
	id         TEXT NOT NULL,
	kind       TEXT NOT NULL,
	text       TEXT NOT NULL,
	ok         DOUBLE PRECISION NOT NULL,
	failed     DOUBLE PRECISION NOT NULL,
	last       BIGINT NOT NULL,
	version    BIGINT NOT NULL,
	PRIMARY KEY (repository, id)
);
INSERT INTO nodes_new (repository, id, kind, text, ok, failed, last, version)
	SELECT o.repository, n.id, n.kind, n.text, n.ok, n.failed, n.last, n.version
	FROM nodes n JOIN (SELECT MIN(repository) AS repository FROM runs HAVING COUNT(DISTINCT repository) = 1) o ON 1 = 1;
DROP TABLE nodes;
ALTER TABLE nodes_new RENAME TO nodes;
CREATE INDEX nodes_version ON nodes (version);
CREATE TABLE edges_new (
	repository TEXT NOT NULL,
	src        TEXT NOT NULL,
	dst        TEXT NOT NULL,
	kind       TEXT NOT NULL,
	ok         DOUBLE PRECISION NOT NULL,
	failed     DOUBLE PRECISION NOT NULL,
	last       BIGINT NOT NULL,
	version    BIGINT NOT NULL,
	PRIMARY KEY (repository, src, kind, dst)
);
INSERT INTO edges_new (repository, src, dst, kind, ok, failed, last, version)
	SELECT o.repository, e.src, e.dst, e.kind, e.ok, e.failed, e.last, e.version
	FROM edges e JOIN (SELECT MIN(repository) AS repository FROM runs HAVING COUNT(DISTINCT repository) = 1) o ON 1 = 1;
DROP TABLE edges;
ALTER TABLE edges_new RENAME TO edges;
CREATE INDEX edges_version ON edges (version);

-- Templates of lines ("s:"), the last green runs ("g:") and examples of failures ("f:", hashed words) have
-- the repository in their keys. Examples are numbers, and stay.
DELETE FROM model WHERE (key LIKE 's:%' OR key LIKE 'g:%') AND (SELECT COUNT(DISTINCT repository) FROM runs) <> 1;
UPDATE model SET key = substr(key, 1, 2) || (SELECT MIN(repository) FROM runs) || ' ' || substr(key, 3) WHERE key LIKE 's:%' OR key LIKE 'g:%';
UPDATE model SET key = 'f:' || (SELECT CASE WHEN COUNT(DISTINCT repository) = 1 THEN MIN(repository) ELSE '' END FROM runs) || ' ' || substr(key, 3) WHERE key LIKE 'f:%';

ALTER TABLE predictions ADD COLUMN repository TEXT NOT NULL DEFAULT '';
UPDATE predictions SET repository = COALESCE((SELECT r.repository FROM runs r WHERE r.id = predictions.run_id), '');
DROP INDEX predictions_closed;
CREATE INDEX predictions_closed ON predictions (repository, closed);

-- What old predictions came to, once their rows are gone: unit is run, job or
-- step.
CREATE TABLE prediction_totals (
	repository TEXT NOT NULL,
	unit       TEXT NOT NULL,
	n          BIGINT NOT NULL,
	failed     BIGINT NOT NULL,
	brier      DOUBLE PRECISION NOT NULL,
	log_loss   DOUBLE PRECISION NOT NULL,
	first      BIGINT NOT NULL,
	PRIMARY KEY (repository, unit)
);
