-- name: InsertModel :execrows
INSERT INTO models (uid, workspace_uid, name, name_mac, body, revision, last_number, create_time, update_time, created_by)
VALUES ($1, $2, $3, $4, $5, 1, 0, $6, $6, $7) ON CONFLICT (workspace_uid, name_mac) DO NOTHING;

-- name: GetModel :one
SELECT uid, workspace_uid, name, name_mac, body, revision, last_number, create_time, update_time, created_by FROM models
WHERE workspace_uid = $1 AND name_mac = $2;

-- name: GetModelByUID :one
SELECT uid, workspace_uid, name, name_mac, body, revision, last_number, create_time, update_time, created_by FROM models WHERE uid = $1;

-- name: ListModels :many
SELECT uid, workspace_uid, name, name_mac, body, revision, last_number, create_time, update_time, created_by FROM models
WHERE workspace_uid = $1 AND (create_time < $2 OR (create_time = $2 AND uid < $3))
ORDER BY create_time DESC, uid DESC LIMIT CAST($4 AS BIGINT);

-- name: LatestNumber :one
SELECT CAST(COALESCE(MAX(number), 0) AS BIGINT) AS number FROM model_versions WHERE model_uid = $1;

-- name: UpdateModel :execrows
UPDATE models SET name = $3, name_mac = $4, body = $5, update_time = $6, revision = revision + 1 WHERE uid = $1 AND revision = $2;

-- name: NextNumber :one
UPDATE models SET last_number = last_number + 1 WHERE uid = $1 RETURNING last_number;

-- name: DeleteModel :execrows
DELETE FROM models WHERE uid = $1;

-- name: InsertVersion :exec
INSERT INTO model_versions (uid, model_uid, workspace_uid, number, manifest, body, revision, request_mac, content_mac, create_time, update_time, created_by)
VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $8, $9, $9, $10);

-- name: GetVersion :one
SELECT uid, model_uid, workspace_uid, number, body, revision, create_time, update_time, created_by FROM model_versions WHERE model_uid = $1 AND number = $2;

-- name: GetVersionByUID :one
SELECT uid, model_uid, workspace_uid, number, body, revision, create_time, update_time, created_by FROM model_versions WHERE uid = $1;

-- name: GetVersionByRequest :one
SELECT uid, content_mac FROM model_versions WHERE workspace_uid = $1 AND request_mac = $2 AND create_time > $3 ORDER BY create_time LIMIT 1;

-- name: GetManifest :one
SELECT manifest FROM model_versions WHERE uid = $1;

-- name: ListVersions :many
SELECT uid, model_uid, workspace_uid, number, body, revision, create_time, update_time, created_by FROM model_versions
WHERE model_uid = $1 AND number < $2 ORDER BY number DESC LIMIT CAST($3 AS BIGINT);

-- name: VersionsOfModel :many
SELECT uid FROM model_versions WHERE model_uid = $1 ORDER BY number;

-- name: UpdateVersion :execrows
UPDATE model_versions SET body = $3, update_time = $4, revision = revision + 1 WHERE uid = $1 AND revision = $2;

-- name: DeleteVersion :execrows
DELETE FROM model_versions WHERE uid = $1;

-- name: DeleteVersionsOfModel :exec
DELETE FROM model_versions WHERE model_uid = $1;

-- name: HoldVersion :exec
INSERT INTO model_uses (version_uid, user_uid, user_name) VALUES ($1, $2, $3)
ON CONFLICT (version_uid, user_uid) DO UPDATE SET user_name = EXCLUDED.user_name;

-- name: ReleaseUser :exec
DELETE FROM model_uses WHERE user_uid = $1;

-- name: UsesOfModel :many
SELECT u.version_uid, u.user_uid, u.user_name FROM model_uses u JOIN model_versions v ON v.uid = u.version_uid
WHERE v.model_uid = $1 ORDER BY v.number, u.user_uid;

-- name: PutLeftover :exec
INSERT INTO model_leftovers (version_uid, workspace_uid, folder, create_time) VALUES ($1, $2, $3, $4) ON CONFLICT (version_uid) DO NOTHING;

-- name: ListLeftovers :many
SELECT version_uid, workspace_uid, folder, create_time FROM model_leftovers ORDER BY create_time, version_uid;

-- name: CountLeftovers :one
SELECT COUNT(*) FROM model_leftovers WHERE version_uid = $1;

-- name: DeleteLeftover :execrows
DELETE FROM model_leftovers WHERE version_uid = $1;

-- name: InsertSigningKey :exec
INSERT INTO model_signing_keys (key_id, private_key, create_time) VALUES ($1, $2, $3);

-- name: ListSigningKeys :many
SELECT key_id, private_key, create_time FROM model_signing_keys ORDER BY create_time, key_id;

-- name: PurgeUses :exec
DELETE FROM model_uses WHERE version_uid IN (SELECT uid FROM model_versions WHERE workspace_uid = $1);

-- name: PurgeVersions :exec
DELETE FROM model_versions WHERE workspace_uid = $1;

-- name: PurgeModels :exec
DELETE FROM models WHERE workspace_uid = $1;

-- name: PurgeLeftovers :exec
DELETE FROM model_leftovers WHERE workspace_uid = $1;
