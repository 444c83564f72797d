-- +goose Up

-- Foreign OpenID issuers whose people may sign in here.
CREATE TABLE issuers (
    uid         TEXT   PRIMARY KEY,
    name_mac    BYTEA  NOT NULL UNIQUE,  -- keyed hash of the id
    url_mac     BYTEA  NOT NULL UNIQUE,  -- keyed hash of the issuer's URL
    record      BYTEA  NOT NULL,         -- sealed: id, URL, class, settings
    secret      BYTEA  NOT NULL,         -- sealed: the client secret; empty for a public client
    version     BIGINT NOT NULL,
    create_time BIGINT NOT NULL
);

-- Users who sign in elsewhere. They outlive the issuer's row: whoever is trusted again finds his people again.
CREATE TABLE homes (
    uid         TEXT   PRIMARY KEY REFERENCES principals (uid) ON DELETE CASCADE,
    home_mac    BYTEA  NOT NULL UNIQUE,  -- keyed hash of the issuer's URL and the subject there
    url_mac     BYTEA  NOT NULL,         -- keyed hash of the issuer's URL
    create_time BIGINT NOT NULL
);
CREATE INDEX homes_by_url ON homes (url_mac);

-- Memberships that the mapping of groups gave, and takes away again.
CREATE TABLE home_groups (
    uid       TEXT NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    group_uid TEXT NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    PRIMARY KEY (uid, group_uid)
);
CREATE INDEX home_groups_by_group ON home_groups (group_uid);

-- +goose Down
DROP TABLE home_groups;
DROP TABLE homes;
DROP TABLE issuers;
