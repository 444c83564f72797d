-- name: Head :one
SELECT seq FROM authorization_head WHERE id = 1;

-- name: NextSeq :one
UPDATE authorization_head SET seq = seq + 1 WHERE id = 1 RETURNING seq;

-- name: InsertChange :exec
INSERT INTO authorization_changes (seq, message, create_time) VALUES ($1, $2, $3);

-- name: ListChanges :many
SELECT seq, message, create_time FROM authorization_changes WHERE seq > $1 ORDER BY seq LIMIT CAST($2 AS BIGINT);

-- name: DeleteOldChanges :exec
DELETE FROM authorization_changes WHERE create_time < $1;

-- name: InsertScope :execrows
INSERT INTO scopes (uid, kind, parent_uid, name, name_mac, state, body, managed_identity, revision, create_time, update_time, created_by, removed_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, '', 1, $8, $8, $9, '')
ON CONFLICT (parent_uid, name_mac) DO NOTHING;

-- name: GetScope :one
SELECT uid, kind, parent_uid, name, name_mac, state, body, managed_identity, revision, create_time, update_time, created_by, removed_by
FROM scopes WHERE uid = $1;

-- name: FindScope :one
SELECT uid, kind, parent_uid, name, name_mac, state, body, managed_identity, revision, create_time, update_time, created_by, removed_by
FROM scopes WHERE parent_uid = $1 AND name_mac = $2;

-- name: ListScopes :many
SELECT uid, kind, parent_uid, name, name_mac, state, body, managed_identity, revision, create_time, update_time, created_by, removed_by
FROM scopes WHERE kind = $1 AND (create_time > $2 OR (create_time = $2 AND uid > $3))
ORDER BY create_time, uid LIMIT CAST($4 AS BIGINT);

-- name: ListScopesBelow :many
SELECT uid, kind, parent_uid, name, name_mac, state, body, managed_identity, revision, create_time, update_time, created_by, removed_by
FROM scopes WHERE parent_uid = $1 AND kind = $2 AND (create_time > $3 OR (create_time = $3 AND uid > $4))
ORDER BY create_time, uid LIMIT CAST($5 AS BIGINT);

-- name: ListScopesTwoBelow :many
SELECT s.uid, s.kind, s.parent_uid, s.name, s.name_mac, s.state, s.body, s.managed_identity, s.revision, s.create_time, s.update_time, s.created_by, s.removed_by
FROM scopes s JOIN scopes p ON p.uid = s.parent_uid
WHERE p.parent_uid = $1 AND s.kind = $2 AND (s.create_time > $3 OR (s.create_time = $3 AND s.uid > $4))
ORDER BY s.create_time, s.uid LIMIT CAST($5 AS BIGINT);

-- name: ListTree :many
SELECT uid, kind, parent_uid, name, state FROM scopes;

-- name: ListUnsettled :many
SELECT uid, kind, parent_uid, name, name_mac, state, body, managed_identity, revision, create_time, update_time, created_by, removed_by
FROM scopes WHERE state <> 2 ORDER BY create_time, uid;

-- name: CountChildren :one
SELECT COUNT(*) FROM scopes WHERE parent_uid = $1;

-- name: CountKind :one
SELECT COUNT(*) FROM scopes WHERE kind = $1;

-- name: SetScopeState :execrows
UPDATE scopes SET state = sqlc.arg(next), update_time = $2, removed_by = $3 WHERE uid = $1 AND state = sqlc.arg(prior);

-- name: ActivateScope :execrows
UPDATE scopes SET state = 2, managed_identity = $2, update_time = $3 WHERE uid = $1 AND state = 1;

-- name: SetScopeBody :execrows
UPDATE scopes SET body = $3, revision = revision + 1, update_time = $4 WHERE uid = $1 AND revision = $2 AND state = 2;

-- name: DeleteScope :execrows
DELETE FROM scopes WHERE uid = $1;

-- name: InsertAssignment :execrows
INSERT INTO assignments (uid, scope_uid, role, principal_uid, create_time, created_by) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (scope_uid, role, principal_uid) DO NOTHING;

-- name: GetAssignment :one
SELECT uid, scope_uid, role, principal_uid, create_time, created_by FROM assignments WHERE uid = $1;

-- name: ListAssignments :many
SELECT uid, scope_uid, role, principal_uid, create_time, created_by FROM assignments
WHERE scope_uid IN ($1, $2, $3, $4) AND (create_time > $5 OR (create_time = $5 AND uid > $6))
ORDER BY create_time, uid LIMIT CAST($7 AS BIGINT);

-- name: ListAllAssignments :many
SELECT uid, scope_uid, role, principal_uid, create_time, created_by FROM assignments ORDER BY uid;

-- name: ListAssignmentsAt :many
SELECT uid, scope_uid, role, principal_uid, create_time, created_by FROM assignments WHERE scope_uid = $1 ORDER BY create_time, uid;

-- name: ListAssignmentsOf :many
SELECT uid, scope_uid, role, principal_uid, create_time, created_by FROM assignments WHERE principal_uid = $1 ORDER BY create_time, uid;

-- name: DeleteAssignment :execrows
DELETE FROM assignments WHERE uid = $1;

-- name: InsertRequest :exec
INSERT INTO requests (principal_uid, request_mac, content_mac, workspace_uid, create_time) VALUES ($1, $2, $3, $4, $5);

-- name: GetRequest :one
SELECT principal_uid, request_mac, content_mac, workspace_uid, create_time FROM requests WHERE principal_uid = $1 AND request_mac = $2;

-- name: DeleteRequestsOf :exec
DELETE FROM requests WHERE workspace_uid = $1;

-- name: DeleteOldRequests :exec
DELETE FROM requests WHERE create_time < $1;

-- name: ListStoredBlobs :many
SELECT name, size FROM blobs WHERE workspace_uid = $1 AND state = 2;

-- name: BeginBlob :one
INSERT INTO blobs (workspace_uid, name, size, state, used, touch_time) VALUES ($1, $2, $3, 1, 0, $4)
ON CONFLICT (workspace_uid, name) DO UPDATE SET touch_time = excluded.touch_time WHERE blobs.state <> 3
RETURNING size, state;

-- name: FinishBlob :execrows
UPDATE blobs SET state = 2, touch_time = $3, size = $4 WHERE workspace_uid = $1 AND name = $2 AND state <> 3;

-- name: UseBlob :execrows
UPDATE blobs SET used = 1 WHERE workspace_uid = $1 AND name = $2 AND state = 2;

-- name: CondemnBlobs :exec
UPDATE blobs SET state = 3 WHERE used = 0 AND touch_time < $1;

-- name: ListCondemned :many
SELECT workspace_uid, name FROM blobs WHERE used = 0 AND state = 3 LIMIT CAST($1 AS BIGINT);

-- name: DeleteCondemned :exec
DELETE FROM blobs WHERE workspace_uid = $1 AND name = $2 AND state = 3;

-- name: DeleteBlobsOf :exec
DELETE FROM blobs WHERE workspace_uid = $1;

-- name: InsertSnapshot :execrows
INSERT INTO snapshots (uid, workspace_uid, id, id_mac, total_bytes, create_time, created_by) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (workspace_uid, id_mac) DO NOTHING;

-- name: GetSnapshot :one
SELECT uid, workspace_uid, id, id_mac, total_bytes, create_time, created_by FROM snapshots WHERE workspace_uid = $1 AND id_mac = $2;

-- name: ListSnapshots :many
SELECT uid, workspace_uid, id, id_mac, total_bytes, create_time, created_by FROM snapshots
WHERE workspace_uid = $1 AND (create_time > $2 OR (create_time = $2 AND uid > $3))
ORDER BY create_time, uid LIMIT CAST($4 AS BIGINT);

-- name: DeleteSnapshotsOf :exec
DELETE FROM snapshots WHERE workspace_uid = $1;
