-- name: InsertVault :execrows
INSERT INTO vaults (workspace_uid, create_time, destroy_time) VALUES ($1, $2, 0)
ON CONFLICT (workspace_uid) DO NOTHING;

-- name: GetVault :one
SELECT workspace_uid, create_time, destroy_time FROM vaults WHERE workspace_uid = $1;

-- name: DestroyVault :execrows
UPDATE vaults SET destroy_time = $2 WHERE workspace_uid = $1 AND destroy_time = 0;

-- name: DeleteVersionsOfWorkspace :exec
DELETE FROM item_versions WHERE item_uid IN (SELECT uid FROM items WHERE workspace_uid = $1);

-- name: DeleteItemsOfWorkspace :exec
DELETE FROM items WHERE workspace_uid = $1;

-- name: InsertItem :execrows
INSERT INTO items (uid, workspace_uid, kind, name, name_mac, create_time) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (workspace_uid, kind, name_mac) DO NOTHING;

-- name: GetItem :one
SELECT uid, workspace_uid, kind, name, name_mac, create_time FROM items
WHERE workspace_uid = $1 AND kind = $2 AND name_mac = $3;

-- name: ListItems :many
SELECT uid, workspace_uid, kind, name, name_mac, create_time FROM items
WHERE workspace_uid = $1 AND kind = $2 AND (create_time > $3 OR (create_time = $3 AND uid > $4))
ORDER BY create_time, uid LIMIT $5;

-- name: DeleteItem :execrows
DELETE FROM items WHERE uid = $1;

-- name: DeleteVersions :exec
DELETE FROM item_versions WHERE item_uid = $1;

-- name: InsertVersion :exec
INSERT INTO item_versions (item_uid, version, value, content_type, disabled, create_time) VALUES ($1, $2, $3, $4, 0, $5);

-- name: MaxVersion :one
SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT) AS version FROM item_versions WHERE item_uid = $1;

-- name: GetVersion :one
SELECT item_uid, version, value, content_type, disabled, create_time FROM item_versions WHERE item_uid = $1 AND version = $2;

-- name: LatestEnabledVersion :one
SELECT item_uid, version, value, content_type, disabled, create_time FROM item_versions
WHERE item_uid = $1 AND disabled = 0 ORDER BY version DESC LIMIT 1;

-- name: LatestVersion :one
SELECT item_uid, version, value, content_type, disabled, create_time FROM item_versions
WHERE item_uid = $1 ORDER BY version DESC LIMIT 1;

-- name: SetVersionDisabled :execrows
UPDATE item_versions SET disabled = $3 WHERE item_uid = $1 AND version = $2;
