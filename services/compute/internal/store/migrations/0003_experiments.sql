-- +goose Up

-- An experiment. content is display name and tags, sealed; name_mac finds the name, also of a deleted one. id is made by us; the one
-- called 0 has a row only once something is kept of it.
CREATE TABLE experiments (
    uid           TEXT NOT NULL PRIMARY KEY,
    workspace_uid TEXT NOT NULL,
    id            TEXT NOT NULL,
    name_mac      BYTEA NOT NULL,
    content       BYTEA NOT NULL,
    deleted       BIGINT NOT NULL,
    version       BIGINT NOT NULL,
    create_time   BIGINT NOT NULL,
    update_time   BIGINT NOT NULL,
    created_by    TEXT NOT NULL,
    UNIQUE (workspace_uid, id),
    UNIQUE (workspace_uid, name_mac)
);

-- experiment is the id of the run's experiment. deleted is 1 for a run that was deleted itself, 2 for one that went with its
-- experiment. labels is what can be changed of a run in words, sealed; NULL for one of which nothing was.
ALTER TABLE runs ADD COLUMN experiment TEXT NOT NULL DEFAULT '0';
ALTER TABLE runs ADD COLUMN deleted BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN labels BYTEA;

-- Searches go by the start, and by the creation of what has not started. It is cast for SQLite's sake, which else bounds nothing by it.
CREATE INDEX runs_start ON runs (workspace_uid, (CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT)) DESC, uid);
CREATE INDEX runs_experiment ON runs (workspace_uid, experiment, (CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT)) DESC, uid);

-- artifact is 1 for a file that did not come from the run's agent.
ALTER TABLE outputs ADD COLUMN artifact BIGINT NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE outputs DROP COLUMN artifact;
DROP INDEX runs_experiment;
DROP INDEX runs_start;
ALTER TABLE runs DROP COLUMN labels;
ALTER TABLE runs DROP COLUMN deleted;
ALTER TABLE runs DROP COLUMN experiment;
DROP TABLE experiments;
