-- +goose Up
-- What is kept of a run. rev counts its changes; keys and text_bytes hold it to its limits.
CREATE TABLE run_data (
    run_uid TEXT NOT NULL PRIMARY KEY,
    workspace_uid TEXT NOT NULL,
    rev BIGINT NOT NULL,
    keys BIGINT NOT NULL,
    texts BIGINT NOT NULL,
    text_bytes BIGINT NOT NULL,
    create_time BIGINT NOT NULL
);
CREATE INDEX run_data_workspace ON run_data (workspace_uid, run_uid);

-- Workspaces whose data is gone for good. Their uids are never used again.
CREATE TABLE purged_workspace (
    workspace_uid TEXT NOT NULL PRIMARY KEY,
    purge_time BIGINT NOT NULL
);

-- One row a metric: its latest point with its name, sealed; and where its history ends.
CREATE TABLE metric_latest (
    run_uid TEXT NOT NULL,
    key_mac BYTEA NOT NULL,
    rev BIGINT NOT NULL,
    chunk_seq BIGINT NOT NULL,
    chunk_points BIGINT NOT NULL,
    chunk_time BIGINT NOT NULL,
    sealed BYTEA NOT NULL,
    PRIMARY KEY (run_uid, key_mac)
);
CREATE INDEX metric_latest_rev ON metric_latest (run_uid, rev, key_mac);

-- Up to 1,024 points of one metric. Only the last chunk of a metric still grows.
CREATE TABLE metric_chunk (
    run_uid TEXT NOT NULL,
    key_mac BYTEA NOT NULL,
    seq BIGINT NOT NULL,
    step_min BIGINT NOT NULL,
    step_max BIGINT NOT NULL,
    time_min BIGINT NOT NULL,
    time_max BIGINT NOT NULL,
    points BIGINT NOT NULL,
    sealed BYTEA NOT NULL,
    PRIMARY KEY (run_uid, key_mac, seq)
);
CREATE INDEX metric_chunk_order ON metric_chunk (run_uid, key_mac, step_min, time_min, seq, step_max, time_max);

-- Parameters (kind 1) and tags (kind 2).
CREATE TABLE run_text (
    run_uid TEXT NOT NULL,
    kind BIGINT NOT NULL,
    key_mac BYTEA NOT NULL,
    sealed BYTEA NOT NULL,
    PRIMARY KEY (run_uid, kind, key_mac)
);

-- Batches that are stored, so that one that is sent again is not.
CREATE TABLE run_batch (
    run_uid TEXT NOT NULL,
    batch_mac BYTEA NOT NULL,
    content_mac BYTEA NOT NULL,
    create_time BIGINT NOT NULL,
    PRIMARY KEY (run_uid, batch_mac)
);
CREATE INDEX run_batch_time ON run_batch (create_time);
