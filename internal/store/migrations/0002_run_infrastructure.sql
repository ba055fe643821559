-- A run of which a job could not be run says so itself.
ALTER TABLE runs ADD COLUMN infra BIGINT NOT NULL DEFAULT 0;
UPDATE runs SET infra = 1 WHERE id IN (SELECT run_id FROM jobs WHERE infra = 1);
