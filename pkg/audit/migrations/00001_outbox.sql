-- +goose Up
-- One row: the last number that was given. It is locked by whoever takes the next one until his transaction ends, so numbers
-- are committed in their order, and one that was rolled back is given again.
CREATE TABLE outbox_head (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    seq BIGINT NOT NULL
);
INSERT INTO outbox_head (id, seq) VALUES (1, 0);

-- Events that telemetry has not confirmed yet.
CREATE TABLE outbox (
    seq BIGINT NOT NULL PRIMARY KEY,
    event_uid TEXT NOT NULL,
    sealed BYTEA NOT NULL,
    create_time BIGINT NOT NULL
);
