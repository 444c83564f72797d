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
INSERT INTO sessions (sid, uid, create_time, expire_time, auth_time, acr, amr) VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: ListSessionsOf :many
SELECT sid, expire_time FROM sessions WHERE uid = $1 AND expire_time > $2 ORDER BY sid;

-- name: ListSessionsNewest :many
SELECT sid, create_time, expire_time, auth_time, amr FROM sessions
WHERE uid = $1 AND expire_time > $2
  AND (create_time, sid) < (CAST(sqlc.arg(before_time) AS BIGINT), CAST(sqlc.arg(before_sid) AS TEXT))
ORDER BY create_time DESC, sid DESC LIMIT $3;

-- name: CountSessionsOf :one
SELECT COUNT(*) FROM sessions WHERE uid = $1 AND expire_time > $2;

-- name: IsBrowser :one
SELECT COUNT(*) FROM browsers WHERE sid = $1;

-- name: LastRefresh :one
SELECT CAST(COALESCE(MAX(used_time), 0) AS BIGINT) AS used_time FROM refresh_tokens WHERE sid = $1;

-- name: ListGroupsWith :many
SELECT group_uid FROM group_members WHERE member_uid = $1 ORDER BY group_uid;

-- name: ListMembersAfter :many
SELECT member_uid FROM group_members WHERE group_uid = $1 AND member_uid > $2 ORDER BY member_uid LIMIT $3;

-- name: GetSession :one
SELECT uid, create_time, expire_time, auth_time, acr, amr FROM sessions WHERE sid = $1 AND expire_time > $2;

-- name: LiftSession :execrows
UPDATE sessions SET auth_time = $3, acr = $4, amr = $5 WHERE sid = $1 AND uid = $2;

-- name: ListSessionsBelow :many
SELECT sid FROM sessions WHERE acr <> $1 AND expire_time > $2 ORDER BY sid;

-- name: DeleteSessionsBelow :exec
DELETE FROM sessions WHERE acr <> $1;

-- name: DeleteSession :exec
DELETE FROM sessions WHERE sid = $1;

-- name: DeleteSessionsOf :exec
DELETE FROM sessions WHERE uid = $1;

-- name: DeleteExpiredSessions :execrows
DELETE FROM sessions WHERE expire_time <= $1;

-- name: InsertApplication :exec
INSERT INTO applications (uid, name_mac, record, create_time) VALUES ($1, $2, $3, $4);

-- name: GetApplication :one
SELECT uid, record, create_time FROM applications WHERE uid = $1;

-- name: FindApplication :one
SELECT uid, record, create_time FROM applications WHERE name_mac = $1;

-- name: ListApplications :many
SELECT uid, record, create_time FROM applications
WHERE (create_time, uid) > (CAST(sqlc.arg(after_time) AS BIGINT), CAST(sqlc.arg(after_uid) AS TEXT))
ORDER BY create_time, uid LIMIT $1;

-- name: DeleteApplication :execrows
DELETE FROM applications WHERE uid = $1;

-- name: InsertApplicationSecret :exec
INSERT INTO application_secrets (secret_id, uid, digest, create_time, expire_time) VALUES ($1, $2, $3, $4, $5);

-- name: CountApplicationSecrets :one
SELECT COUNT(*) FROM application_secrets WHERE uid = $1 AND expire_time > $2;

-- name: FindApplicationSecret :one
SELECT secret_id, uid, expire_time FROM application_secrets WHERE digest = $1;

-- name: PutApplicationKey :exec
INSERT INTO application_keys (uid, kid, public_key, create_time, expire_time) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (uid, kid) DO UPDATE SET expire_time = excluded.expire_time;

-- name: GetApplicationKey :one
SELECT public_key, expire_time FROM application_keys WHERE uid = $1 AND kid = $2;

-- name: CountApplicationKeys :one
SELECT COUNT(*) FROM application_keys WHERE uid = $1 AND expire_time > $2;

-- name: UseAssertion :execrows
INSERT INTO used_assertions (digest, expire_time) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING;

-- name: InsertBrowser :exec
INSERT INTO browsers (sid, digest, auth_time, amr, acr) VALUES ($1, $2, $3, $4, $5);

-- name: FindBrowser :one
SELECT b.sid, b.auth_time, b.amr, b.acr, s.uid, s.expire_time FROM browsers b JOIN sessions s ON s.sid = b.sid
WHERE b.digest = $1 AND s.expire_time > $2;

-- name: GetBrowser :one
SELECT b.sid, b.auth_time, b.amr, b.acr, s.uid, s.expire_time FROM browsers b JOIN sessions s ON s.sid = b.sid
WHERE b.sid = $1 AND s.expire_time > $2;

-- name: InsertCode :exec
INSERT INTO authorization_codes (digest, browser_sid, grant_sid, client_id, record, used, code_expire, expire_time)
VALUES ($1, $2, $3, $4, $5, 0, $6, $7);

-- name: UseCode :one
UPDATE authorization_codes SET used = used + 1 WHERE digest = $1
RETURNING browser_sid, grant_sid, client_id, record, used, code_expire;

-- name: InsertGrant :exec
INSERT INTO grants (sid, client_id, browser_sid, scope, jkt, auth_time, amr, acr) VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: GetGrant :one
SELECT g.sid, g.client_id, g.browser_sid, g.scope, g.jkt, g.auth_time, g.amr, g.acr, s.uid, s.expire_time
FROM grants g JOIN sessions s ON s.sid = g.sid WHERE g.sid = $1 AND s.expire_time > $2;

-- name: ListGrantsOfBrowser :many
SELECT sid FROM grants WHERE browser_sid = $1 ORDER BY sid;

-- name: ListGrantsOfClient :many
SELECT sid FROM grants WHERE client_id = $1 ORDER BY sid;

-- name: InsertRefresh :exec
INSERT INTO refresh_tokens (digest, sid, successor, used_time, expire_time) VALUES ($1, $2, $3, 0, $4);

-- name: GetRefresh :one
SELECT sid, successor, used_time, expire_time FROM refresh_tokens WHERE digest = $1;

-- name: UseRefresh :execrows
UPDATE refresh_tokens SET used_time = $2, successor = $3 WHERE digest = $1 AND used_time = 0;

-- name: InsertDevice :execrows
INSERT INTO devices (digest, user_mac, client_id, scope, jkt, state, browser_sid, wait, last_poll, expire_time)
VALUES ($1, $2, $3, $4, $5, 0, '', $6, 0, $7) ON CONFLICT DO NOTHING;

-- name: GetDevice :one
SELECT client_id, scope, jkt, state, browser_sid, wait, last_poll, expire_time FROM devices WHERE digest = $1;

-- name: FindDevice :one
SELECT client_id, scope, state, expire_time FROM devices WHERE user_mac = $1 AND expire_time > $2;

-- name: AnswerDevice :execrows
UPDATE devices SET state = $2, browser_sid = $3 WHERE user_mac = $1 AND state = 0 AND expire_time > $4;

-- name: PollDevice :exec
UPDATE devices SET last_poll = $2, wait = $3 WHERE digest = $1;

-- name: DeleteDevice :execrows
DELETE FROM devices WHERE digest = $1;

-- name: DeleteExpiredCodes :execrows
DELETE FROM authorization_codes WHERE expire_time <= $1;

-- name: DeleteExpiredRefresh :execrows
DELETE FROM refresh_tokens WHERE expire_time <= $1;

-- name: DeleteExpiredDevices :execrows
DELETE FROM devices WHERE expire_time <= $1;

-- name: DeleteExpiredAssertions :execrows
DELETE FROM used_assertions WHERE expire_time <= $1;

-- name: PutHomeSession :exec
INSERT INTO home_sessions (session_mac, uid, expire_time) VALUES ($1, $2, $3)
ON CONFLICT (session_mac) DO UPDATE SET uid = excluded.uid, expire_time = excluded.expire_time;

-- name: FindHomeSession :one
SELECT uid FROM home_sessions WHERE session_mac = $1 AND expire_time > $2;

-- name: DeleteExpiredHomeSessions :execrows
DELETE FROM home_sessions WHERE expire_time <= $1;

-- name: DeleteExpiredApplicationSecrets :execrows
DELETE FROM application_secrets WHERE expire_time <= $1;

-- name: DeleteExpiredApplicationKeys :execrows
DELETE FROM application_keys WHERE expire_time <= $1;

-- name: PutRevocation :exec
INSERT INTO revocations (kind, value, issued_until, expire_time, deliver_until) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (kind, value) DO UPDATE SET
    deliver_until = CASE WHEN excluded.deliver_until < revocations.deliver_until THEN excluded.deliver_until ELSE revocations.deliver_until END,
    issued_until = CASE WHEN excluded.issued_until > revocations.issued_until THEN excluded.issued_until ELSE revocations.issued_until END,
    expire_time  = CASE WHEN excluded.expire_time > revocations.expire_time THEN excluded.expire_time ELSE revocations.expire_time END;

-- name: GetRevocation :one
SELECT issued_until, expire_time FROM revocations WHERE kind = $1 AND value = $2;

-- name: ListRevocations :many
SELECT kind, value, issued_until, expire_time, deliver_until FROM revocations WHERE expire_time > $1 ORDER BY kind, value;

-- name: DeleteExpiredRevocations :execrows
DELETE FROM revocations WHERE expire_time <= $1;

-- name: InsertSecurityChange :exec
INSERT INTO security_changes (seq, message, create_time) VALUES ($1, $2, $3);

-- name: ListSecurityChanges :many
SELECT seq, message FROM security_changes WHERE seq > $1 ORDER BY seq LIMIT $2;

-- name: DeleteOldSecurityChanges :execrows
DELETE FROM security_changes WHERE create_time <= $1;

-- name: InsertSigningKey :exec
INSERT INTO signing_keys (kid, private_key, public_key, publish_time, sign_from, sign_until, remove_time, purpose)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: ListSigningKeys :many
SELECT kid, private_key, public_key, publish_time, sign_from, sign_until, remove_time, purpose FROM signing_keys ORDER BY sign_from, kid;

-- name: PlanSigningKey :execrows
UPDATE signing_keys SET sign_from = $2, sign_until = $3, remove_time = $4 WHERE kid = $1;

-- name: DeleteSigningKey :execrows
DELETE FROM signing_keys WHERE kid = $1;

-- name: NextBundleSeq :exec
UPDATE installation SET bundle_seq = CASE WHEN bundle_seq < CAST(sqlc.arg(at_least) AS BIGINT) THEN CAST(sqlc.arg(at_least) AS BIGINT) ELSE bundle_seq + 1 END WHERE id = 1;

-- name: GetBundleSeq :one
SELECT bundle_seq FROM installation WHERE id = 1;

-- name: InsertAuthority :exec
INSERT INTO authorities (pin, root, private_key, phase, create_time, since_time, manual, counted) VALUES ($1, $2, $3, $4, $5, $6, $7, 1);

-- name: ListAuthorities :many
SELECT pin, root, private_key, phase, create_time, signed_time, quiet_time, counted, since_time, manual FROM authorities ORDER BY create_time, pin;

-- name: SetAuthority :execrows
UPDATE authorities SET phase = $2, signed_time = $3, quiet_time = $4, since_time = $5, manual = $6 WHERE pin = $1;

-- name: CountAuthority :exec
UPDATE authorities SET counted = 1 WHERE pin = $1;

-- name: QuietAuthorities :exec
UPDATE authorities SET quiet_time = $1
WHERE quiet_time < $1 AND pin IN (SELECT leaves.pin FROM leaves WHERE leaves.holder = $2 AND leaves.pin <> $3);

-- name: DeleteAuthority :execrows
DELETE FROM authorities WHERE pin = $1;

-- name: InsertRevokedAuthority :exec
INSERT INTO revoked_authorities (pin, revoke_time) VALUES ($1, $2);

-- name: CountRevokedAuthorities :one
SELECT COUNT(*) FROM revoked_authorities WHERE pin = $1;

-- name: PutLeaf :exec
INSERT INTO leaves (holder, pin, bundle, expire_time) VALUES ($1, $2, $3, $4)
ON CONFLICT (holder, pin) DO UPDATE SET
    bundle = excluded.bundle,
    expire_time = CASE WHEN excluded.expire_time > leaves.expire_time THEN excluded.expire_time ELSE leaves.expire_time END;

-- name: DeleteOtherLeaves :exec
DELETE FROM leaves WHERE holder = $1 AND pin <> $2;

-- name: GetAuthorityPhase :one
SELECT phase FROM authorities WHERE pin = $1;

-- name: DeleteOldLeaves :execrows
DELETE FROM leaves WHERE expire_time <= $1;

-- name: ListLeaves :many
SELECT holder, pin, bundle, expire_time FROM leaves ORDER BY holder, pin;

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

-- name: DeleteUnusedJoinTokensOfRun :exec
DELETE FROM join_tokens WHERE run_uid = $1 AND kind = 'agent' AND used_by = '';

-- name: CountJoinTokensOfRun :one
SELECT COUNT(*) FROM join_tokens WHERE run_uid = $1 AND kind = 'agent';

-- name: DeleteExpiredJoinTokens :execrows
DELETE FROM join_tokens WHERE expire_time <= $1;

-- name: GetPinnedKey :one
SELECT fingerprint FROM pinned_keys WHERE service = $1 AND instance = $2;

-- name: PutPinnedKey :exec
INSERT INTO pinned_keys (service, instance, fingerprint, create_time) VALUES ($1, $2, $3, $4)
ON CONFLICT (service, instance) DO UPDATE SET fingerprint = excluded.fingerprint, create_time = excluded.create_time;

-- name: DeleteJoinsOfSubmitter :exec
DELETE FROM join_tokens WHERE submitter = $1 AND kind = $2;

-- name: GetJoinSubmitter :one
SELECT submitter FROM join_tokens WHERE digest = $1 AND kind = $2 AND expire_time > $3 AND used_by = '';

-- name: LockInstallation :exec
UPDATE installation SET security_seq = security_seq WHERE id = 1;

-- name: KeepAdministrator :exec
INSERT INTO kept_administrators (uid, via, expire_time) VALUES ($1, $2, $3)
ON CONFLICT (uid, via) DO UPDATE SET expire_time = excluded.expire_time;

-- name: ListKeptAdministrators :many
SELECT uid, via FROM kept_administrators WHERE expire_time > $1 ORDER BY uid, via;

-- name: DeleteKeptAdministrators :execrows
DELETE FROM kept_administrators WHERE expire_time <= $1;

-- name: ListClientSecrets :many
SELECT secret_id, uid, create_time, expire_time FROM client_secrets WHERE uid = $1 AND expire_time > $2 ORDER BY create_time, secret_id;

-- name: DeleteClientSecret :execrows
DELETE FROM client_secrets WHERE uid = $1 AND secret_id = $2;

-- name: InsertClientKey :exec
INSERT INTO client_keys (key_id, uid, kind, thumbprint, der, create_time, expire_time) VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: ListClientKeys :many
SELECT key_id, uid, kind, thumbprint, der, create_time, expire_time FROM client_keys WHERE uid = $1 AND expire_time > $2 ORDER BY create_time, key_id;

-- name: CountClientKeys :one
SELECT COUNT(*) FROM client_keys WHERE uid = $1 AND thumbprint = $2;

-- name: DeleteClientKey :execrows
DELETE FROM client_keys WHERE uid = $1 AND key_id = $2;

-- name: DeleteExpiredClientKeys :execrows
DELETE FROM client_keys WHERE expire_time <= $1;

-- name: GetRequireMFA :one
SELECT require_mfa FROM installation WHERE id = 1;

-- name: SetRequireMFA :exec
UPDATE installation SET require_mfa = $1 WHERE id = 1;

-- name: InsertFactor :exec
INSERT INTO factors (factor_id, uid, kind, record, proved, last_used, create_time, use_time) VALUES ($1, $2, $3, $4, 0, 0, $5, 0);

-- name: ListFactors :many
SELECT factor_id, uid, kind, record, proved, last_used, create_time, use_time FROM factors WHERE uid = $1 ORDER BY create_time, factor_id;

-- name: ProveFactor :execrows
UPDATE factors SET proved = 1, last_used = $3, use_time = $4 WHERE uid = $1 AND factor_id = $2 AND proved = 0;

-- name: UseFactor :execrows
UPDATE factors SET last_used = $3, use_time = $4
WHERE uid = $1 AND factor_id = $2 AND proved = 1 AND (last_used < $3 OR last_used = 0 AND $3 = 0);

-- name: CountWebAuthnCredential :one
SELECT COUNT(*) FROM webauthn_credentials WHERE credential = $1;

-- name: InsertWebAuthnCredential :exec
INSERT INTO webauthn_credentials (credential, factor_id) VALUES ($1, $2);

-- name: DeleteFactor :execrows
DELETE FROM factors WHERE uid = $1 AND factor_id = $2;

-- name: DeleteUnprovedFactorsOf :execrows
DELETE FROM factors WHERE uid = $1 AND proved = 0;

-- name: DeleteFactorsOf :execrows
DELETE FROM factors WHERE uid = $1;

-- name: DeleteUnprovedFactors :execrows
DELETE FROM factors WHERE proved = 0 AND create_time <= $1;

-- name: InsertRecoveryCode :exec
INSERT INTO recovery_codes (uid, digest) VALUES ($1, $2);

-- name: CountRecoveryCodes :one
SELECT COUNT(*) FROM recovery_codes WHERE uid = $1;

-- name: DeleteRecoveryCode :execrows
DELETE FROM recovery_codes WHERE uid = $1 AND digest = $2;

-- name: DeleteRecoveryCodesOf :exec
DELETE FROM recovery_codes WHERE uid = $1;

-- name: CountFactorTry :one
INSERT INTO factor_tries (uid, failed, wait_until) VALUES ($1, 1, 0)
ON CONFLICT (uid) DO UPDATE SET failed = factor_tries.failed + 1
RETURNING failed, wait_until;

-- name: SetFactorWait :exec
UPDATE factor_tries SET wait_until = $2 WHERE uid = $1;

-- name: ForgetFactorTries :exec
DELETE FROM factor_tries WHERE uid = $1;

-- name: InsertSignInState :exec
INSERT INTO signin_states (digest, uid, record, tries, create_time, expire_time) VALUES ($1, $2, $3, 0, $4, $5);

-- name: GetSignInState :one
SELECT uid, record, tries FROM signin_states WHERE digest = $1 AND expire_time > $2;

-- name: CountSignInTry :execrows
UPDATE signin_states SET tries = tries + 1 WHERE digest = $1 AND expire_time > $2 AND tries < $3;

-- name: ChangeSignInState :execrows
UPDATE signin_states SET record = $2 WHERE digest = $1 AND expire_time > $3;

-- name: DeleteSignInState :execrows
DELETE FROM signin_states WHERE digest = $1;

-- name: DeleteSignInStatesOf :exec
DELETE FROM signin_states WHERE uid = $1;

-- name: DeleteExpiredSignInStates :execrows
DELETE FROM signin_states WHERE expire_time <= $1;

-- name: UpdatePrincipalRecord :execrows
UPDATE principals SET record = $2, version = version + 1 WHERE uid = $1;

-- name: InsertIssuer :exec
INSERT INTO issuers (uid, name_mac, url_mac, record, secret, version, create_time) VALUES ($1, $2, $3, $4, $5, 1, $6);

-- name: FindIssuer :one
SELECT uid, record, secret, version, create_time FROM issuers WHERE name_mac = $1;

-- name: GetIssuer :one
SELECT uid, record, secret, version, create_time FROM issuers WHERE uid = $1;

-- name: CountIssuersLike :one
SELECT COUNT(*) FROM issuers WHERE name_mac = $1 OR url_mac = $2;

-- name: ListIssuers :many
SELECT uid, record, secret, version, create_time FROM issuers ORDER BY create_time, uid;

-- name: UpdateIssuer :execrows
UPDATE issuers SET record = $3, secret = $4, version = version + 1 WHERE uid = $1 AND version = $2;

-- name: DeleteIssuer :execrows
DELETE FROM issuers WHERE uid = $1;

-- name: InsertHome :exec
INSERT INTO homes (uid, home_mac, url_mac, create_time) VALUES ($1, $2, $3, $4);

-- name: FindHome :one
SELECT uid FROM homes WHERE home_mac = $1;

-- name: CountHomesOf :one
SELECT COUNT(*) FROM homes WHERE uid = $1;

-- name: ListHomesAt :many
SELECT uid FROM homes WHERE url_mac = $1 ORDER BY uid;

-- name: InsertHomeGroup :exec
INSERT INTO home_groups (uid, group_uid) VALUES ($1, $2) ON CONFLICT (uid, group_uid) DO NOTHING;

-- name: DeleteHomeGroup :exec
DELETE FROM home_groups WHERE uid = $1 AND group_uid = $2;

-- name: ListHomeGroups :many
SELECT group_uid FROM home_groups WHERE uid = $1 ORDER BY group_uid;
