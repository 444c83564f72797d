-- +goose Up
-- Proofs of possession that were used, as digests of key and jti, until no instance would take them any more for their age.
CREATE TABLE used_proofs (
    digest BYTEA NOT NULL PRIMARY KEY,
    expire_time BIGINT NOT NULL
);
CREATE INDEX used_proofs_by_expiry ON used_proofs (expire_time);
