-- +goose Up
-- Calls of a burst that are recorded and have no event yet: a row for each burst, with the event that it becomes if its process does not end it. The
-- row counts ahead: calls is at most how many were answered, and is raised before more are. until is in microseconds.
CREATE TABLE outbox_bursts (
    event_uid TEXT NOT NULL PRIMARY KEY,
    calls BIGINT NOT NULL CHECK (calls > 0),
    until BIGINT NOT NULL,
    sealed BYTEA NOT NULL
);
CREATE INDEX outbox_bursts_until ON outbox_bursts (until);
