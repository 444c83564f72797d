-- +goose Up

-- Roots that were revoked: who repeats the order, since its answer was lost, is told that it was done.
CREATE TABLE revoked_authorities (
    pin         TEXT   PRIMARY KEY,
    revoke_time BIGINT NOT NULL
);

-- Sessions that people who sign in elsewhere have there. A logout token may name one of them, and nobody.
CREATE TABLE home_sessions (
    session_mac BYTEA  PRIMARY KEY,  -- keyed hash of the issuer's URL and its sid
    uid         TEXT   NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    expire_time BIGINT NOT NULL
);
CREATE INDEX home_sessions_by_uid ON home_sessions (uid);
CREATE INDEX home_sessions_by_expiry ON home_sessions (expire_time);

-- +goose Down
DROP TABLE home_sessions;
DROP TABLE revoked_authorities;
