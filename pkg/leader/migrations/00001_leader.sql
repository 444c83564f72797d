-- +goose Up
-- Who leads in each role. term only ever rises; claim is random, so that a term that is counted again after the database was put back to
-- an older state is another one. cluster and revision are those of the election in etcd, for operators: nothing is decided by
-- them, since an etcd that lost its data begins again at revision 1. Clear: nothing here is of a tenant.
CREATE TABLE leader (
    role TEXT NOT NULL PRIMARY KEY,
    term BIGINT NOT NULL,
    claim TEXT NOT NULL,
    holder TEXT NOT NULL,
    cluster TEXT NOT NULL,
    revision BIGINT NOT NULL,
    claim_time BIGINT NOT NULL
);
