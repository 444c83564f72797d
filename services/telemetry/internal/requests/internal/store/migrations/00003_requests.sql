-- +goose Up
-- One row: counts what was stored, and what sources that are forgotten had lost.
CREATE TABLE request_head (
    id BIGINT NOT NULL PRIMARY KEY,
    rev BIGINT NOT NULL,
    dropped BIGINT NOT NULL
);
INSERT INTO request_head (id, rev, dropped) VALUES (1, 0, 0);

-- How far each spool is stored, how many requests it has lost, and how many of it could not be kept here.
CREATE TABLE request_source (
    source TEXT NOT NULL PRIMARY KEY,
    seq BIGINT NOT NULL,
    dropped BIGINT NOT NULL,
    unkept BIGINT NOT NULL,
    update_time BIGINT NOT NULL
);

-- Workspaces whose requests are gone for good. Their uids are never used again.
CREATE TABLE request_purged (
    workspace_uid TEXT NOT NULL PRIMARY KEY,
    purge_time BIGINT NOT NULL
);

-- Up to 256 requests to one endpoint within one minute. Only the last chunk of a minute still grows, at its end. classes has a bit for
-- each class of status that is in it.
CREATE TABLE request_chunk (
    endpoint_uid TEXT NOT NULL,
    minute BIGINT NOT NULL,
    number BIGINT NOT NULL,
    workspace_uid TEXT NOT NULL,
    rev BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    classes BIGINT NOT NULL,
    sealed BYTEA NOT NULL,
    PRIMARY KEY (endpoint_uid, minute, number)
);
CREATE INDEX request_chunk_rev ON request_chunk (endpoint_uid, rev, minute, number);
CREATE INDEX request_chunk_minute ON request_chunk (minute);
CREATE INDEX request_chunk_workspace ON request_chunk (workspace_uid);
