-- +goose Up

-- A compute target. name is sealed; name_mac finds it.
CREATE TABLE computes (
    uid           TEXT NOT NULL PRIMARY KEY,
    workspace_uid TEXT NOT NULL,
    name          BYTEA NOT NULL,
    name_mac      BYTEA NOT NULL,
    kind          BIGINT NOT NULL,
    max_runs      BIGINT NOT NULL,
    create_time   BIGINT NOT NULL,
    created_by    TEXT NOT NULL,
    UNIQUE (workspace_uid, name_mac)
);

CREATE INDEX computes_order ON computes (workspace_uid, create_time, uid);

-- A run. spec is what was submitted, outcome how it ended, both sealed. generation rises each time that the run is handed to an
-- agent; agent_key is the thumbprint of the key of the one agent that carries it.
CREATE TABLE runs (
    uid            TEXT NOT NULL PRIMARY KEY,
    workspace_uid  TEXT NOT NULL,
    compute_uid    TEXT NOT NULL,
    id_mac         BYTEA NOT NULL,
    request_mac    BYTEA NOT NULL,
    spec           BYTEA NOT NULL,
    outcome        BYTEA NOT NULL,
    submitter      TEXT NOT NULL,
    state          BIGINT NOT NULL,
    generation     BIGINT NOT NULL,
    agent_key      TEXT NOT NULL,
    cancel         BIGINT NOT NULL,
    version        BIGINT NOT NULL,
    create_time    BIGINT NOT NULL,
    start_time     BIGINT NOT NULL,
    end_time       BIGINT NOT NULL,
    heartbeat_time BIGINT NOT NULL,
    cancel_time    BIGINT NOT NULL,
    log_bytes      BIGINT NOT NULL,
    revoked        BIGINT NOT NULL,
    UNIQUE (workspace_uid, id_mac)
);

CREATE INDEX runs_order ON runs (workspace_uid, create_time, uid);
CREATE INDEX runs_state ON runs (state, create_time, uid);
CREATE INDEX runs_request ON runs (workspace_uid, request_mac);

-- The log of a run in pieces: [start, start+length). data is sealed and bound to run and start.
CREATE TABLE log_chunks (
    run_uid TEXT NOT NULL REFERENCES runs (uid) ON DELETE CASCADE,
    start   BIGINT NOT NULL,
    length  BIGINT NOT NULL,
    data    BYTEA NOT NULL,
    PRIMARY KEY (run_uid, start)
);

-- An output file. entry is path and digest, sealed; the content is a blob.
CREATE TABLE outputs (
    run_uid     TEXT NOT NULL REFERENCES runs (uid) ON DELETE CASCADE,
    path_mac    BYTEA NOT NULL,
    entry       BYTEA NOT NULL,
    size        BIGINT NOT NULL,
    blob        TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    PRIMARY KEY (run_uid, path_mac)
);

-- +goose Down
DROP TABLE outputs;
DROP TABLE log_chunks;
DROP TABLE runs;
DROP TABLE computes;
