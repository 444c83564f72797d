-- +goose Up

-- A model. name and body (description, tags, aliases) are sealed; name_mac finds it. last_number is the highest version number ever
-- given.
CREATE TABLE models (
    uid           TEXT NOT NULL PRIMARY KEY,
    workspace_uid TEXT NOT NULL,
    name          BYTEA NOT NULL,
    name_mac      BYTEA NOT NULL,
    body          BYTEA NOT NULL,
    revision      BIGINT NOT NULL,
    last_number   BIGINT NOT NULL,
    create_time   BIGINT NOT NULL,
    update_time   BIGINT NOT NULL,
    created_by    TEXT NOT NULL,
    UNIQUE (workspace_uid, name_mac)
);

CREATE INDEX models_order ON models (workspace_uid, create_time, uid);

-- A version. manifest (the signed list of its files, with where they came from) and body (description, tags, and what lists show of
-- the manifest) are sealed.
CREATE TABLE model_versions (
    uid           TEXT NOT NULL PRIMARY KEY,
    model_uid     TEXT NOT NULL REFERENCES models (uid),
    workspace_uid TEXT NOT NULL,
    number        BIGINT NOT NULL,
    manifest      BYTEA NOT NULL,
    body          BYTEA NOT NULL,
    revision      BIGINT NOT NULL,
    request_mac   BYTEA NOT NULL,
    content_mac   BYTEA NOT NULL,
    create_time   BIGINT NOT NULL,
    update_time   BIGINT NOT NULL,
    created_by    TEXT NOT NULL,
    UNIQUE (model_uid, number)
);

CREATE INDEX model_versions_request ON model_versions (workspace_uid, request_mac);

-- Who uses a version now, so that it stays. user_name is the user's resource name, sealed.
CREATE TABLE model_uses (
    version_uid TEXT NOT NULL REFERENCES model_versions (uid),
    user_uid    TEXT NOT NULL,
    user_name   BYTEA NOT NULL,
    PRIMARY KEY (version_uid, user_uid)
);

CREATE INDEX model_uses_user ON model_uses (user_uid);

-- Blobs of a version that is not there yet, or not any more: folder is their keyed place. What is found here at start is removed.
CREATE TABLE model_leftovers (
    version_uid   TEXT NOT NULL PRIMARY KEY,
    workspace_uid TEXT NOT NULL,
    folder        TEXT NOT NULL,
    create_time   BIGINT NOT NULL
);

-- A key that signs manifests. private_key is sealed under the service's own key; the public one follows from it.
CREATE TABLE model_signing_keys (
    key_id      TEXT NOT NULL PRIMARY KEY,
    private_key BYTEA NOT NULL,
    create_time BIGINT NOT NULL
);

-- +goose Down
DROP TABLE model_signing_keys;
DROP TABLE model_leftovers;
DROP TABLE model_uses;
DROP TABLE model_versions;
DROP TABLE models;
