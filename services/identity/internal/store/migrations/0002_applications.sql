-- +goose Up

-- Clients of the OpenID provider.
CREATE TABLE applications (
    uid          TEXT   PRIMARY KEY,     -- the client_id
    name_mac     BYTEA  NOT NULL UNIQUE, -- keyed hash of the id
    record       BYTEA  NOT NULL,        -- sealed: id, display name, redirect URIs, grants, scopes
    create_time  BIGINT NOT NULL
);
CREATE INDEX applications_by_time ON applications (create_time, uid);

-- Their secrets: 256 random bits, so a plain digest is enough to find and to check them.
CREATE TABLE application_secrets (
    secret_id   TEXT   PRIMARY KEY,
    uid         TEXT   NOT NULL REFERENCES applications (uid) ON DELETE CASCADE,
    digest      BYTEA  NOT NULL UNIQUE,
    create_time BIGINT NOT NULL,
    expire_time BIGINT NOT NULL
);
CREATE INDEX application_secrets_by_uid ON application_secrets (uid);

-- Public keys by which they prove themselves. Those of service principals are in client_keys.
CREATE TABLE application_keys (
    uid         TEXT   NOT NULL REFERENCES applications (uid) ON DELETE CASCADE,
    kid         TEXT   NOT NULL,         -- thumbprint (RFC 7638)
    public_key  BYTEA  NOT NULL,         -- SubjectPublicKeyInfo
    create_time BIGINT NOT NULL,
    expire_time BIGINT NOT NULL,
    PRIMARY KEY (uid, kid)
);

-- Assertions that were used, until they would be over anyway.
CREATE TABLE used_assertions (
    digest      BYTEA  PRIMARY KEY,      -- SHA-256 of client and jti
    expire_time BIGINT NOT NULL
);
CREATE INDEX used_assertions_by_expiry ON used_assertions (expire_time);

-- Browsers that are signed in to the provider. Each is a session.
CREATE TABLE browsers (
    sid         TEXT   PRIMARY KEY REFERENCES sessions (sid) ON DELETE CASCADE,
    digest      BYTEA  NOT NULL UNIQUE,  -- of the cookie
    auth_time   BIGINT NOT NULL,
    amr         TEXT   NOT NULL,         -- separated by spaces
    acr         TEXT   NOT NULL
);

-- Authorization codes. One that was used is kept for a while, so that its second use is known for what it is.
CREATE TABLE authorization_codes (
    digest      BYTEA  PRIMARY KEY,
    browser_sid TEXT   NOT NULL REFERENCES sessions (sid) ON DELETE CASCADE,
    grant_sid   TEXT   NOT NULL,         -- of the grant that its use makes
    client_id   TEXT   NOT NULL,
    record      BYTEA  NOT NULL,         -- sealed: redirect URI, challenge, nonce, scope, key
    used        BIGINT NOT NULL,
    code_expire BIGINT NOT NULL,
    expire_time BIGINT NOT NULL          -- of the row
);
CREATE INDEX authorization_codes_by_expiry ON authorization_codes (expire_time);
CREATE INDEX authorization_codes_by_browser ON authorization_codes (browser_sid);

-- What an application was given by a person. Each is a session; its refresh tokens are one family.
CREATE TABLE grants (
    sid         TEXT   PRIMARY KEY REFERENCES sessions (sid) ON DELETE CASCADE,
    client_id   TEXT   NOT NULL,
    browser_sid TEXT   NOT NULL,         -- session that it was given in; it ends with that one's sign-out
    scope       TEXT   NOT NULL,
    jkt         TEXT   NOT NULL,         -- thumbprint of the key that all its tokens are bound to, or ''
    auth_time   BIGINT NOT NULL,
    amr         TEXT   NOT NULL,
    acr         TEXT   NOT NULL
);
CREATE INDEX grants_by_client ON grants (client_id);
CREATE INDEX grants_by_browser ON grants (browser_sid);

CREATE TABLE refresh_tokens (
    digest      BYTEA  PRIMARY KEY,
    sid         TEXT   NOT NULL REFERENCES grants (sid) ON DELETE CASCADE,
    successor   BYTEA  NOT NULL,         -- sealed; empty while it is unused
    used_time   BIGINT NOT NULL,         -- 0 while it is unused
    expire_time BIGINT NOT NULL
);
CREATE INDEX refresh_tokens_by_sid ON refresh_tokens (sid);
CREATE INDEX refresh_tokens_by_expiry ON refresh_tokens (expire_time);

-- Devices that wait for a person.
CREATE TABLE devices (
    digest      BYTEA  PRIMARY KEY,      -- of the device code
    user_mac    BYTEA  NOT NULL UNIQUE,  -- keyed hash of the user code, which is short
    client_id   TEXT   NOT NULL,
    scope       TEXT   NOT NULL,
    jkt         TEXT   NOT NULL,
    state       BIGINT NOT NULL,         -- 0 waits, 1 allowed, 2 denied
    browser_sid TEXT   NOT NULL,         -- of who allowed it, else ''
    wait        BIGINT NOT NULL,         -- microseconds between two polls
    last_poll   BIGINT NOT NULL,
    expire_time BIGINT NOT NULL
);
CREATE INDEX devices_by_expiry ON devices (expire_time);

-- +goose Down
DROP TABLE devices;
DROP TABLE refresh_tokens;
DROP TABLE grants;
DROP TABLE authorization_codes;
DROP TABLE browsers;
DROP TABLE used_assertions;
DROP TABLE application_keys;
DROP TABLE application_secrets;
DROP TABLE applications;
