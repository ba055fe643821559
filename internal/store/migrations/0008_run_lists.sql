-- Lists of runs, narrowed: each reads its newest rows and no others.
CREATE INDEX runs_conclusion ON runs (conclusion, created);
CREATE INDEX runs_event ON runs (event, created);
CREATE INDEX runs_ref ON runs (ref, created);
CREATE INDEX runs_actor ON runs (actor, created);
-- In the order of the list, or all of it is read and sorted for its first page.
DROP INDEX runs_created;
CREATE INDEX runs_created ON runs (created, number, id);
