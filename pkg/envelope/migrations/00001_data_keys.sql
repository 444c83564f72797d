-- +goose Up
-- One data key an owner. A row with destroyed <> 0 holds no key, and forbids a new one for the same owner.
CREATE TABLE data_keys (
    owner     TEXT   NOT NULL PRIMARY KEY,
    key_id    BYTEA  NOT NULL,
    wrapped   BYTEA  NOT NULL,
    created   BIGINT NOT NULL, -- microseconds since 1970
    destroyed BIGINT NOT NULL DEFAULT 0
);
