-- +goose Up

-- A vault for each workspace. Its key is the service's own data key of that owner (table data_keys). The row of a destroyed vault
-- stays, so that nothing is made for that workspace again.
CREATE TABLE vaults (
    workspace_uid TEXT NOT NULL PRIMARY KEY,
    create_time   BIGINT NOT NULL,
    destroy_time  BIGINT NOT NULL
);

-- A secret or a key: kind is 'secret' or 'key'. name is sealed; name_mac finds it.
CREATE TABLE items (
    uid           TEXT NOT NULL PRIMARY KEY,
    workspace_uid TEXT NOT NULL REFERENCES vaults (workspace_uid),
    kind          TEXT NOT NULL,
    name          BYTEA NOT NULL,
    name_mac      BYTEA NOT NULL,
    create_time   BIGINT NOT NULL,
    UNIQUE (workspace_uid, kind, name_mac)
);

CREATE INDEX items_order ON items (workspace_uid, kind, create_time, uid);

-- value is the secret's value or the key's bytes, sealed under the vault key and bound to item and version.
CREATE TABLE item_versions (
    item_uid     TEXT NOT NULL REFERENCES items (uid) ON DELETE CASCADE,
    version      BIGINT NOT NULL,
    value        BYTEA NOT NULL,
    content_type BYTEA NOT NULL,
    disabled     BIGINT NOT NULL,
    create_time  BIGINT NOT NULL,
    PRIMARY KEY (item_uid, version)
);

-- +goose Down
DROP TABLE item_versions;
DROP TABLE items;
DROP TABLE vaults;
