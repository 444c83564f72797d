-- name: GetInstallation :one
SELECT security_seq, first_admin FROM installation WHERE id = 1;

-- name: NextSecuritySeq :one
UPDATE installation SET security_seq = security_seq + 1 WHERE id = 1 RETURNING security_seq;

-- name: SetFirstAdmin :execrows
UPDATE installation SET first_admin = $1 WHERE id = 1 AND first_admin = '';

-- name: InsertPrincipal :exec
INSERT INTO principals (uid, kind, name_mac, skeleton_mac, workspace_uid, record, disabled, version, create_time)
VALUES ($1, $2, $3, $4, $5, $6, 0, 1, $7);

-- name: GetPrincipal :one
SELECT uid, kind, name_mac, skeleton_mac, workspace_uid, record, disabled, version, create_time FROM principals WHERE uid = $1;

-- name: FindPrincipal :one
SELECT uid, kind, name_mac, skeleton_mac, workspace_uid, record, disabled, version, create_time FROM principals WHERE kind = $1 AND name_mac = $2;

-- name: FindManagedIdentity :one
SELECT uid, kind, name_mac, skeleton_mac, workspace_uid, record, disabled, version, create_time FROM principals WHERE workspace_uid = $1 AND kind = $2;

-- name: CountLike :one
SELECT COUNT(*) FROM principals WHERE kind = $1 AND (name_mac = $2 OR skeleton_mac = $3);

-- name: ListPrincipals :many
SELECT uid, kind, name_mac, skeleton_mac, workspace_uid, record, disabled, version, create_time FROM principals
WHERE kind = $1 AND (create_time, uid) > (CAST(sqlc.arg(after_time) AS BIGINT), CAST(sqlc.arg(after_uid) AS TEXT))
ORDER BY create_time, uid LIMIT $2;

-- name: SetDisabled :execrows
UPDATE principals SET disabled = $2, version = version + 1 WHERE uid = $1;

-- name: DeletePrincipal :execrows
DELETE FROM principals WHERE uid = $1;

-- name: PutPassword :exec
INSERT INTO passwords (uid, hash, create_time) VALUES ($1, $2, $3)
ON CONFLICT (uid) DO UPDATE SET hash = excluded.hash, create_time = excluded.create_time;

-- name: GetPassword :one
SELECT hash FROM passwords WHERE uid = $1;

-- name: InsertClientSecret :exec
INSERT INTO client_secrets (secret_id, uid, digest, create_time, expire_time) VALUES ($1, $2, $3, $4, $5);

-- name: CountClientSecrets :one
SELECT COUNT(*) FROM client_secrets WHERE uid = $1 AND expire_time > $2;

-- name: FindClientSecret :one
SELECT secret_id, uid, expire_time FROM client_secrets WHERE digest = $1;

-- name: DeleteExpiredClientSecrets :execrows
DELETE FROM client_secrets WHERE expire_time <= $1;

-- name: DeleteClientSecretsOf :exec
DELETE FROM client_secrets WHERE uid = $1;

-- name: InsertMember :execrows
INSERT INTO group_members (group_uid, member_uid) VALUES ($1, $2) ON CONFLICT (group_uid, member_uid) DO NOTHING;

-- name: DeleteMember :execrows
DELETE FROM group_members WHERE group_uid = $1 AND member_uid = $2;

-- name: ListMembers :many
SELECT member_uid FROM group_members WHERE group_uid = $1 ORDER BY member_uid;

-- name: ListMemberships :many
SELECT group_uid, member_uid FROM group_members ORDER BY group_uid, member_uid;

-- name: ListNestings :many
SELECT m.group_uid, m.member_uid FROM group_members m JOIN principals p ON p.uid = m.member_uid
WHERE p.kind = $1 ORDER BY m.group_uid, m.member_uid;

-- name: ListGroupsOf :many
SELECT group_uid FROM group_members WHERE member_uid = $1 ORDER BY group_uid;

-- name: DeleteMembershipsOf :exec
DELETE FROM group_members WHERE member_uid = $1;

-- name: InsertSession :exec
INSERT INTO sessions (sid, uid, create_time, expire_time) VALUES ($1, $2, $3, $4);

-- name: ListSessionsOf :many
SELECT sid, expire_time FROM sessions WHERE uid = $1 AND expire_time > $2 ORDER BY sid;

-- name: GetSession :one
SELECT uid, create_time, expire_time FROM sessions WHERE sid = $1 AND expire_time > $2;

-- name: DeleteSession :exec
DELETE FROM sessions WHERE sid = $1;

-- name: DeleteSessionsOf :exec
DELETE FROM sessions WHERE uid = $1;

-- name: DeleteExpiredSessions :execrows
DELETE FROM sessions WHERE expire_time <= $1;

-- name: PutRevocation :exec
INSERT INTO revocations (kind, value, issued_until, expire_time) VALUES ($1, $2, $3, $4)
ON CONFLICT (kind, value) DO UPDATE SET
    issued_until = CASE WHEN excluded.issued_until > revocations.issued_until THEN excluded.issued_until ELSE revocations.issued_until END,
    expire_time  = CASE WHEN excluded.expire_time > revocations.expire_time THEN excluded.expire_time ELSE revocations.expire_time END;

-- name: GetRevocation :one
SELECT issued_until, expire_time FROM revocations WHERE kind = $1 AND value = $2;

-- name: ListRevocations :many
SELECT kind, value, issued_until, expire_time FROM revocations WHERE expire_time > $1 ORDER BY kind, value;

-- name: DeleteExpiredRevocations :execrows
DELETE FROM revocations WHERE expire_time <= $1;

-- name: InsertSecurityChange :exec
INSERT INTO security_changes (seq, message, create_time) VALUES ($1, $2, $3);

-- name: ListSecurityChanges :many
SELECT seq, message FROM security_changes WHERE seq > $1 ORDER BY seq LIMIT $2;

-- name: DeleteOldSecurityChanges :execrows
DELETE FROM security_changes WHERE create_time <= $1;

-- name: InsertSigningKey :exec
INSERT INTO signing_keys (kid, private_key, public_key, publish_time, sign_from, sign_until, remove_time)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: ListSigningKeys :many
SELECT kid, private_key, public_key, publish_time, sign_from, sign_until, remove_time FROM signing_keys ORDER BY sign_from, kid;

-- name: InsertAuthority :exec
INSERT INTO authorities (pin, root, private_key, signs, create_time) VALUES ($1, $2, $3, $4, $5);

-- name: ListAuthorities :many
SELECT pin, root, private_key, signs, create_time FROM authorities ORDER BY create_time, pin;

-- name: InsertJoinToken :exec
INSERT INTO join_tokens (digest, kind, service, instance, agent_uid, run_uid, workspace_uid, submitter, actions, used_by, create_time, expire_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, '', $10, $11);

-- name: UseJoinToken :one
UPDATE join_tokens SET used_by = $3
WHERE digest = $1 AND kind = $2 AND expire_time > $4 AND (used_by = '' OR used_by = $3)
RETURNING service, instance, agent_uid, run_uid, workspace_uid, submitter, actions;

-- name: DeleteJoinToken :exec
DELETE FROM join_tokens WHERE digest = $1;

-- name: DeleteJoinTokensOfRun :exec
DELETE FROM join_tokens WHERE run_uid = $1 AND kind = 'agent';

-- name: DeleteExpiredJoinTokens :execrows
DELETE FROM join_tokens WHERE expire_time <= $1;

-- name: GetPinnedKey :one
SELECT fingerprint FROM pinned_keys WHERE service = $1 AND instance = $2;

-- name: PutPinnedKey :exec
INSERT INTO pinned_keys (service, instance, fingerprint, create_time) VALUES ($1, $2, $3, $4)
ON CONFLICT (service, instance) DO UPDATE SET fingerprint = excluded.fingerprint, create_time = excluded.create_time;
