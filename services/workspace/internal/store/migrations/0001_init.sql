-- +goose Up

-- The number of the last change of the authorization state: one row, locked by every change.
CREATE TABLE authorization_head (
    id  BIGINT NOT NULL PRIMARY KEY,
    seq BIGINT NOT NULL
);
INSERT INTO authorization_head (id, seq) VALUES (1, 0);

-- Changes that can still be sent on one by one. message is a sealed WatchAuthorizationResponse.
CREATE TABLE authorization_changes (
    seq         BIGINT NOT NULL PRIMARY KEY,
    message     BYTEA  NOT NULL,
    create_time BIGINT NOT NULL
);

-- The tree: subscriptions, resource groups, workspaces. parent_uid is '' at the top. name is the sealed last segment of the
-- name, name_mac finds it; body is what the tenant wrote beside it, of a workspace under a key of its own.
-- state: 1 being made, 2 active, 3 being removed, 4 given up while it was made.
CREATE TABLE scopes (
    uid              TEXT   NOT NULL PRIMARY KEY,
    kind             TEXT   NOT NULL,
    parent_uid       TEXT   NOT NULL,
    name             BYTEA  NOT NULL,
    name_mac         BYTEA  NOT NULL,
    state            BIGINT NOT NULL,
    body             BYTEA  NOT NULL,
    managed_identity TEXT   NOT NULL,
    revision         BIGINT NOT NULL,
    create_time      BIGINT NOT NULL,
    update_time      BIGINT NOT NULL,
    created_by       TEXT   NOT NULL,
    removed_by       TEXT   NOT NULL,
    UNIQUE (parent_uid, name_mac)
);
CREATE INDEX scopes_order ON scopes (kind, create_time, uid);
CREATE INDEX scopes_below ON scopes (parent_uid, kind, create_time, uid);

-- Who has which role where. scope_uid is '' for the installation.
CREATE TABLE assignments (
    uid           TEXT   NOT NULL PRIMARY KEY,
    scope_uid     TEXT   NOT NULL,
    role          TEXT   NOT NULL,
    principal_uid TEXT   NOT NULL,
    create_time   BIGINT NOT NULL,
    created_by    TEXT   NOT NULL,
    UNIQUE (scope_uid, role, principal_uid)
);
CREATE INDEX assignments_order ON assignments (scope_uid, create_time, uid);
CREATE INDEX assignments_principal ON assignments (principal_uid);

-- Requests that carried a request_id, for a day. Both are MACs.
CREATE TABLE requests (
    principal_uid TEXT   NOT NULL,
    request_mac   BYTEA  NOT NULL,
    content_mac   BYTEA  NOT NULL,
    workspace_uid TEXT   NOT NULL,
    create_time   BIGINT NOT NULL,
    PRIMARY KEY (principal_uid, request_mac)
);
CREATE INDEX requests_workspace ON requests (workspace_uid);
CREATE INDEX requests_time ON requests (create_time);

-- Files of snapshots. name is keyed by the workspace's key, so that nobody can ask for a known digest.
-- state: 1 being sent, 2 stored, 3 being deleted. used is 1 once a snapshot has it.
CREATE TABLE blobs (
    workspace_uid TEXT   NOT NULL,
    name          TEXT   NOT NULL,
    size          BIGINT NOT NULL,
    state         BIGINT NOT NULL,
    used          BIGINT NOT NULL,
    touch_time    BIGINT NOT NULL,
    PRIMARY KEY (workspace_uid, name)
);
CREATE INDEX blobs_unused ON blobs (used, touch_time);

-- Snapshots. id is the sealed id (a digest of the entries), id_mac finds it; the entries are a sealed blob.
CREATE TABLE snapshots (
    uid           TEXT   NOT NULL PRIMARY KEY,
    workspace_uid TEXT   NOT NULL,
    id            BYTEA  NOT NULL,
    id_mac        BYTEA  NOT NULL,
    total_bytes   BIGINT NOT NULL,
    create_time   BIGINT NOT NULL,
    created_by    TEXT   NOT NULL,
    UNIQUE (workspace_uid, id_mac)
);
CREATE INDEX snapshots_order ON snapshots (workspace_uid, create_time, uid);

-- +goose Down
DROP TABLE snapshots;
DROP TABLE blobs;
DROP TABLE requests;
DROP TABLE assignments;
DROP TABLE scopes;
DROP TABLE authorization_changes;
DROP TABLE authorization_head;
