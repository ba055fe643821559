-- What a job's machine has, so that only a worker that can give it claims the job; 0 is
-- what any can.
ALTER TABLE queue ADD COLUMN cpus BIGINT NOT NULL DEFAULT 0;
ALTER TABLE queue ADD COLUMN memory_mib BIGINT NOT NULL DEFAULT 0;
