-- +goose Up

-- What a run is: 1 a job, 2 tracked only, 3 a replica of a deployment. All that were there before are jobs. The spec of a replica is
-- what inference asked for, sealed under a field of its own, so that a row whose kind was changed does not open.
ALTER TABLE runs ADD COLUMN kind BIGINT NOT NULL DEFAULT 1;

-- +goose Down
ALTER TABLE runs DROP COLUMN kind;
