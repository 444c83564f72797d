-- +goose Up

-- instance is the name of the one instance of the service that started the run's agent on its own machine; '' for a run that was never
-- started, and one that a host has claimed. stopped is 1 for a run that the platform has ended: what is left of its agent is killed.
ALTER TABLE runs ADD COLUMN instance TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN stopped BIGINT NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE runs DROP COLUMN stopped;
ALTER TABLE runs DROP COLUMN instance;
