-- +goose Up

-- An endpoint. body (all that it says, how callers are authenticated too) and its two keys are sealed; name_mac finds it. revision
-- rises with each change. deleting is set when it is closed for good and its replicas are still being stopped.
CREATE TABLE endpoints (
    uid           TEXT NOT NULL PRIMARY KEY,
    workspace_uid TEXT NOT NULL,
    name_mac      BYTEA NOT NULL,
    body          BYTEA NOT NULL,
    primary_key   BYTEA NOT NULL,
    secondary_key BYTEA NOT NULL,
    deleting      BIGINT NOT NULL,
    revision      BIGINT NOT NULL,
    create_time   BIGINT NOT NULL,
    update_time   BIGINT NOT NULL,
    UNIQUE (workspace_uid, name_mac)
);

CREATE INDEX endpoints_order ON endpoints (workspace_uid, create_time, uid);

-- A token of an endpoint. The token itself is kept nowhere: hash is its SHA-256. entry (whose it is, until when) is sealed and bound to
-- endpoint and hash, so that a row that was put in from outside opens nothing.
CREATE TABLE endpoint_tokens (
    endpoint_uid TEXT NOT NULL REFERENCES endpoints (uid) ON DELETE CASCADE,
    hash         BYTEA NOT NULL,
    entry        BYTEA NOT NULL,
    expire_time  BIGINT NOT NULL,
    PRIMARY KEY (endpoint_uid, hash)
);

CREATE INDEX endpoint_tokens_end ON endpoint_tokens (expire_time);

-- A deployment. body (what was asked for, by whom, and the model version that it means) and status (state, message, failures) are
-- sealed. generation rises with each change that needs other replicas; deleting is set while its replicas are being stopped.
CREATE TABLE deployments (
    uid           TEXT NOT NULL PRIMARY KEY,
    endpoint_uid  TEXT NOT NULL REFERENCES endpoints (uid),
    workspace_uid TEXT NOT NULL,
    name_mac      BYTEA NOT NULL,
    body          BYTEA NOT NULL,
    status        BYTEA NOT NULL,
    generation    BIGINT NOT NULL,
    deleting      BIGINT NOT NULL,
    revision      BIGINT NOT NULL,
    create_time   BIGINT NOT NULL,
    update_time   BIGINT NOT NULL,
    UNIQUE (endpoint_uid, name_mac)
);

CREATE INDEX deployments_order ON deployments (endpoint_uid, create_time, uid);

-- A replica: a run that compute is asked for under replica_id. run_uid is '' until compute has answered. state is that of
-- inference.v1.Replica; message is sealed.
CREATE TABLE replicas (
    replica_id     TEXT NOT NULL PRIMARY KEY,
    deployment_uid TEXT NOT NULL REFERENCES deployments (uid),
    workspace_uid  TEXT NOT NULL,
    run_uid        TEXT NOT NULL,
    generation     BIGINT NOT NULL,
    state          BIGINT NOT NULL,
    message        BYTEA NOT NULL,
    create_time    BIGINT NOT NULL,
    ready_time     BIGINT NOT NULL,
    end_time       BIGINT NOT NULL
);

CREATE INDEX replicas_order ON replicas (deployment_uid, create_time, replica_id);

-- +goose Down
DROP TABLE replicas;
DROP TABLE deployments;
DROP TABLE endpoint_tokens;
DROP TABLE endpoints;
