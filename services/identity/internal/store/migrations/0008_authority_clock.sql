-- +goose Up

-- Since when the clock counts the period of the root that signs; 0: since it was made.
ALTER TABLE authorities ADD COLUMN since_time BIGINT NOT NULL DEFAULT 0;
-- 1: an operator has ordered something about this root, and goes on with it: the clock leaves it alone.
ALTER TABLE authorities ADD COLUMN manual BIGINT NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE authorities DROP COLUMN manual;
ALTER TABLE authorities DROP COLUMN since_time;
