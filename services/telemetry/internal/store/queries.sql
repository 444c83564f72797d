-- name: StoredSeq :one
SELECT stored_seq FROM activity_source WHERE service = $1;

-- name: SetStoredSeq :exec
INSERT INTO activity_source (service, stored_seq) VALUES ($1, $2)
ON CONFLICT (service) DO UPDATE SET stored_seq = excluded.stored_seq;

-- name: TakePositions :one
UPDATE activity_head SET position = position + sqlc.arg(many) WHERE id = 1 RETURNING position;

-- name: NewestPosition :one
SELECT position FROM activity_head WHERE id = 1;

-- name: InsertEvent :exec
INSERT INTO activity (position, service, seq, uid, time, subscription_uid, resource_group_uid, workspace_uid,
    resource_mac, request_mac, principal, method, result, sealed)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14);

-- name: EventUIDs :many
SELECT seq, uid FROM activity WHERE service = $1 AND seq >= sqlc.arg(first) AND seq <= sqlc.arg(last) ORDER BY seq;

-- What the partial indexes leave out is said again in each query, else no database would use them.

-- name: ListAll :many
SELECT position, service, seq, uid, subscription_uid, sealed FROM activity
WHERE position < sqlc.arg(before) AND time >= sqlc.arg(start) AND time < sqlc.arg(stop)
    AND (CAST(sqlc.arg(any_result) AS BIGINT) = 1 OR result = sqlc.arg(result))
ORDER BY position DESC LIMIT sqlc.arg(most);

-- name: ListBySubscription :many
SELECT position, service, seq, uid, subscription_uid, sealed FROM activity
WHERE subscription_uid = sqlc.arg(scope) AND subscription_uid <> '' AND position < sqlc.arg(before) AND time >= sqlc.arg(start) AND time < sqlc.arg(stop)
    AND (CAST(sqlc.arg(any_result) AS BIGINT) = 1 OR result = sqlc.arg(result))
ORDER BY position DESC LIMIT sqlc.arg(most);

-- name: ListByGroup :many
SELECT position, service, seq, uid, subscription_uid, sealed FROM activity
WHERE resource_group_uid = sqlc.arg(scope) AND resource_group_uid <> '' AND position < sqlc.arg(before) AND time >= sqlc.arg(start) AND time < sqlc.arg(stop)
    AND (CAST(sqlc.arg(any_result) AS BIGINT) = 1 OR result = sqlc.arg(result))
ORDER BY position DESC LIMIT sqlc.arg(most);

-- name: ListByWorkspace :many
SELECT position, service, seq, uid, subscription_uid, sealed FROM activity
WHERE workspace_uid = sqlc.arg(scope) AND workspace_uid <> '' AND position < sqlc.arg(before) AND time >= sqlc.arg(start) AND time < sqlc.arg(stop)
    AND (CAST(sqlc.arg(any_result) AS BIGINT) = 1 OR result = sqlc.arg(result))
ORDER BY position DESC LIMIT sqlc.arg(most);

-- name: ListByResource :many
SELECT position, service, seq, uid, subscription_uid, sealed FROM activity
WHERE workspace_uid = sqlc.arg(scope) AND resource_mac = sqlc.arg(resource_mac) AND LENGTH(resource_mac) > 0 AND position < sqlc.arg(before)
    AND time >= sqlc.arg(start) AND time < sqlc.arg(stop)
    AND (CAST(sqlc.arg(any_result) AS BIGINT) = 1 OR result = sqlc.arg(result))
ORDER BY position DESC LIMIT sqlc.arg(most);

-- name: ListByRequest :many
SELECT position, service, seq, uid, subscription_uid, sealed FROM activity
WHERE request_mac = sqlc.arg(request_mac) AND LENGTH(request_mac) > 0 AND position < sqlc.arg(before)
    AND (CAST(sqlc.arg(any_subscription) AS BIGINT) = 1 OR subscription_uid = sqlc.arg(subscription_uid))
    AND (CAST(sqlc.arg(any_group) AS BIGINT) = 1 OR resource_group_uid = sqlc.arg(resource_group_uid))
    AND (CAST(sqlc.arg(any_workspace) AS BIGINT) = 1 OR workspace_uid = sqlc.arg(workspace_uid))
    AND (CAST(sqlc.arg(any_resource) AS BIGINT) = 1 OR resource_mac = sqlc.arg(resource_mac))
    AND time >= sqlc.arg(start) AND time < sqlc.arg(stop)
    AND (CAST(sqlc.arg(any_result) AS BIGINT) = 1 OR result = sqlc.arg(result))
ORDER BY position DESC LIMIT sqlc.arg(most);

-- name: ListAfter :many
SELECT position, service, seq, uid, subscription_uid, sealed FROM activity
WHERE position > sqlc.arg(after) ORDER BY position LIMIT sqlc.arg(most);
