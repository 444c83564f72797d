-- +goose Up

-- One row: what the installation has one of.
CREATE TABLE installation (
    id              BIGINT PRIMARY KEY CHECK (id = 1),
    security_seq    BIGINT NOT NULL, -- of the last change of revocations or memberships; locked by each such change
    first_admin     TEXT   NOT NULL  -- uid of the first administrator, '' until there is one
);
INSERT INTO installation (id, security_seq, first_admin) VALUES (1, 0, '');

-- Whoever a token or an assignment can name: users, service principals, managed identities, groups.
CREATE TABLE principals (
    uid           TEXT   PRIMARY KEY,
    kind          BIGINT NOT NULL,       -- redoubt.identity.v1.PrincipalType
    name_mac      BYTEA  NOT NULL,       -- keyed hash of the canonical id
    skeleton_mac  BYTEA  NOT NULL,       -- keyed hash of what the id looks like
    workspace_uid TEXT   NOT NULL,       -- of a managed identity, else ''
    record        BYTEA  NOT NULL,       -- sealed: id and display name
    disabled      BIGINT NOT NULL,
    version       BIGINT NOT NULL,       -- rises with each change; the etag
    create_time   BIGINT NOT NULL,
    UNIQUE (kind, name_mac),
    UNIQUE (kind, skeleton_mac)
);
CREATE INDEX principals_by_time ON principals (kind, create_time, uid);
CREATE INDEX principals_by_workspace ON principals (workspace_uid);

CREATE TABLE passwords (
    uid         TEXT   PRIMARY KEY REFERENCES principals (uid) ON DELETE CASCADE,
    hash        BYTEA  NOT NULL,         -- sealed: argon2id in PHC form
    create_time BIGINT NOT NULL
);

-- Client secrets are 256 random bits, so a plain digest is enough to find and to check them.
CREATE TABLE client_secrets (
    secret_id   TEXT   PRIMARY KEY,
    uid         TEXT   NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    digest      BYTEA  NOT NULL UNIQUE,
    create_time BIGINT NOT NULL,
    expire_time BIGINT NOT NULL
);
CREATE INDEX client_secrets_by_uid ON client_secrets (uid);

CREATE TABLE group_members (
    group_uid  TEXT NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    member_uid TEXT NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    PRIMARY KEY (group_uid, member_uid)
);
CREATE INDEX group_members_by_member ON group_members (member_uid);

-- Sign-ins, so that all of a user's can be ended.
CREATE TABLE sessions (
    sid         TEXT   PRIMARY KEY,
    uid         TEXT   NOT NULL REFERENCES principals (uid) ON DELETE CASCADE,
    create_time BIGINT NOT NULL,
    expire_time BIGINT NOT NULL
);
CREATE INDEX sessions_by_uid ON sessions (uid);
CREATE INDEX sessions_by_expiry ON sessions (expire_time);

-- What is no longer valid, until it would have expired anyway.
CREATE TABLE revocations (
    kind         TEXT   NOT NULL,        -- 'jti', 'sid', 'run', 'subject'
    value        TEXT   NOT NULL,
    issued_until BIGINT NOT NULL,        -- of a subject, else 0
    expire_time  BIGINT NOT NULL,
    PRIMARY KEY (kind, value)
);
CREATE INDEX revocations_by_expiry ON revocations (expire_time);

-- Each change of revocations or memberships as subscribers are sent it; kept long enough for them to catch up.
CREATE TABLE security_changes (
    seq         BIGINT PRIMARY KEY,
    message     BYTEA  NOT NULL,         -- redoubt.identity.v1.WatchSecurityResponse
    create_time BIGINT NOT NULL
);
CREATE INDEX security_changes_by_time ON security_changes (create_time);

-- Keys that tokens are signed with. Each is published before it signs and after it has stopped.
CREATE TABLE signing_keys (
    kid          TEXT   PRIMARY KEY,
    private_key  BYTEA  NOT NULL,        -- sealed: PKCS #8
    public_key   BYTEA  NOT NULL,        -- SubjectPublicKeyInfo
    publish_time BIGINT NOT NULL,
    sign_from    BIGINT NOT NULL,
    sign_until   BIGINT NOT NULL,        -- 0: no end set
    remove_time  BIGINT NOT NULL         -- 0: no end set
);

-- Roots of the mesh. One of them signs; others are trusted besides while a rotation lasts.
CREATE TABLE authorities (
    pin         TEXT   PRIMARY KEY,
    root        BYTEA  NOT NULL,         -- X.509, DER
    private_key BYTEA  NOT NULL,         -- sealed: PKCS #8; empty: only trusted
    signs       BIGINT NOT NULL,
    create_time BIGINT NOT NULL
);

-- Secrets that let a service or an agent in. The first key that shows one is the only one that it lets in.
CREATE TABLE join_tokens (
    digest        BYTEA  PRIMARY KEY,    -- SHA-256 of 256 random bits
    kind          TEXT   NOT NULL,       -- 'service', 'agent'
    service       TEXT   NOT NULL,       -- of a service, else ''
    instance      TEXT   NOT NULL,       -- of a service, else ''
    agent_uid     TEXT   NOT NULL,       -- of an agent, else ''
    run_uid       TEXT   NOT NULL,       -- of an agent, else ''
    workspace_uid TEXT   NOT NULL,       -- of an agent, else ''
    submitter     TEXT   NOT NULL,       -- of an agent, else ''
    actions       BYTEA  NOT NULL,       -- of an agent, sealed; else empty
    used_by       TEXT   NOT NULL,       -- fingerprint of the key that it let in, '' while it is unused
    create_time   BIGINT NOT NULL,
    expire_time   BIGINT NOT NULL
);
CREATE INDEX join_tokens_by_run ON join_tokens (run_uid);
CREATE INDEX join_tokens_by_expiry ON join_tokens (expire_time);

-- The key that each instance of a service proves.
CREATE TABLE pinned_keys (
    service     TEXT   NOT NULL,
    instance    TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,         -- base64url SHA-256 of the SubjectPublicKeyInfo
    create_time BIGINT NOT NULL,
    PRIMARY KEY (service, instance)
);

-- +goose Down
DROP TABLE pinned_keys;
DROP TABLE join_tokens;
DROP TABLE authorities;
DROP TABLE signing_keys;
DROP TABLE security_changes;
DROP TABLE revocations;
DROP TABLE sessions;
DROP TABLE group_members;
DROP TABLE client_secrets;
DROP TABLE passwords;
DROP TABLE principals;
DROP TABLE installation;
