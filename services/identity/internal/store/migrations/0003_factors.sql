-- +goose Up

-- Whether the installation wants a second factor of every user.
ALTER TABLE installation ADD COLUMN require_mfa BIGINT NOT NULL DEFAULT 0;

-- How a sign-in was made, and when last: what its tokens say.
ALTER TABLE sessions ADD COLUMN auth_time BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN acr TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN amr TEXT NOT NULL DEFAULT ''; -- separated by spaces

-- Users who stay administrators for a moment, while workspace takes the role from another.
CREATE TABLE kept_administrators (
    uid         TEXT   NOT NULL,
    via         TEXT   NOT NULL,         -- the user himself or a group: what the role stays with
    expire_time BIGINT NOT NULL,
    PRIMARY KEY (uid, via)
);

-- Public keys with which service principals prove themselves.
CREATE TABLE client_keys (
    key_id      TEXT   PRIMARY KEY,
    uid         TEXT   NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    kind        BIGINT NOT NULL,         -- redoubt.identity.v1.ServicePrincipalCredential.Kind
    thumbprint  TEXT   NOT NULL,         -- of a key that of RFC 7638, of a certificate x5t#S256
    der         BYTEA  NOT NULL,         -- SubjectPublicKeyInfo, or X.509
    create_time BIGINT NOT NULL,
    expire_time BIGINT NOT NULL,
    UNIQUE (uid, thumbprint)
);

-- What users prove themselves with beside their passwords.
CREATE TABLE factors (
    factor_id   TEXT   PRIMARY KEY,
    uid         TEXT   NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    kind        TEXT   NOT NULL,         -- 'totp', 'webauthn'
    record      BYTEA  NOT NULL,         -- sealed: secret or public credential, and a name
    proved      BIGINT NOT NULL,         -- 0: enrolled and not proved yet, counts for nothing
    last_used   BIGINT NOT NULL,         -- of a TOTP the step, of WebAuthn the counter that was accepted last; only ever rises
    create_time BIGINT NOT NULL,
    use_time    BIGINT NOT NULL
);
CREATE INDEX factors_by_uid ON factors (uid);

-- Recovery codes are 100 random bits, so a plain digest does. One that is used is deleted.
CREATE TABLE recovery_codes (
    uid    TEXT  NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    digest BYTEA NOT NULL,
    PRIMARY KEY (uid, digest)
);

-- Tries at second factors, counted before they are made.
CREATE TABLE factor_tries (
    uid        TEXT   PRIMARY KEY REFERENCES principals (uid) ON DELETE CASCADE,
    failed     BIGINT NOT NULL,
    wait_until BIGINT NOT NULL
);

-- Sign-ins that stand between password and factor.
CREATE TABLE signin_states (
    digest      BYTEA  PRIMARY KEY,      -- SHA-256 of 256 random bits
    uid         TEXT   NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    record      BYTEA  NOT NULL,         -- sealed: what was proved, what is asked for, for what
    tries       BIGINT NOT NULL,
    create_time BIGINT NOT NULL,
    expire_time BIGINT NOT NULL
);
CREATE INDEX signin_states_by_uid ON signin_states (uid);
CREATE INDEX signin_states_by_expiry ON signin_states (expire_time);

-- +goose Down
DROP TABLE signin_states;
DROP TABLE factor_tries;
DROP TABLE recovery_codes;
DROP TABLE factors;
DROP TABLE client_keys;
DROP TABLE kept_administrators;
ALTER TABLE sessions DROP COLUMN amr;
ALTER TABLE sessions DROP COLUMN acr;
ALTER TABLE sessions DROP COLUMN auth_time;
ALTER TABLE installation DROP COLUMN require_mfa;
