-- name: InsertEndpoint :execrows
INSERT INTO endpoints (uid, workspace_uid, name_mac, body, primary_key, secondary_key, deleting, revision, create_time, update_time)
VALUES ($1, $2, $3, $4, $5, $6, 0, 1, $7, $7) ON CONFLICT (workspace_uid, name_mac) DO NOTHING;

-- name: GetEndpoint :one
SELECT uid, workspace_uid, name_mac, body, primary_key, secondary_key, deleting, revision, create_time, update_time FROM endpoints WHERE uid = $1;

-- name: FindEndpoint :one
SELECT uid, workspace_uid, name_mac, body, primary_key, secondary_key, deleting, revision, create_time, update_time FROM endpoints
WHERE workspace_uid = $1 AND name_mac = $2;

-- name: ListEndpoints :many
SELECT uid, workspace_uid, name_mac, body, primary_key, secondary_key, deleting, revision, create_time, update_time FROM endpoints
WHERE workspace_uid = $1 AND deleting = 0 AND (create_time > $2 OR (create_time = $2 AND uid > $3))
ORDER BY create_time, uid LIMIT CAST($4 AS BIGINT);

-- name: AllEndpoints :many
SELECT uid, workspace_uid FROM endpoints ORDER BY create_time, uid;

-- name: EndpointsOfWorkspace :many
SELECT uid FROM endpoints WHERE workspace_uid = $1 ORDER BY create_time, uid;

-- name: CountEndpoints :one
SELECT COUNT(*) FROM endpoints WHERE workspace_uid = $1;

-- name: UpdateEndpoint :execrows
UPDATE endpoints SET name_mac = $3, body = $4, primary_key = $5, secondary_key = $6, deleting = $7, revision = revision + 1, update_time = $8
WHERE uid = $1 AND revision = $2;

-- name: DeleteEndpoint :exec
DELETE FROM endpoints WHERE uid = $1;

-- name: DeleteEndpointsOfWorkspace :exec
DELETE FROM endpoints WHERE workspace_uid = $1;

-- name: InsertEndpointToken :exec
INSERT INTO endpoint_tokens (endpoint_uid, hash, entry, expire_time) VALUES ($1, $2, $3, $4);

-- name: EndpointTokens :many
SELECT endpoint_uid, hash, entry, expire_time FROM endpoint_tokens WHERE endpoint_uid = $1 AND expire_time > $2;

-- name: DeleteEndpointTokens :exec
DELETE FROM endpoint_tokens WHERE endpoint_uid = $1;

-- name: DeleteExpiredTokens :execrows
DELETE FROM endpoint_tokens WHERE expire_time <= $1;

-- name: DeleteTokensOfWorkspace :exec
DELETE FROM endpoint_tokens WHERE endpoint_uid IN (SELECT uid FROM endpoints WHERE workspace_uid = $1);

-- name: InsertDeployment :execrows
INSERT INTO deployments (uid, endpoint_uid, workspace_uid, name_mac, body, status, generation, deleting, revision, create_time, update_time)
VALUES ($1, $2, $3, $4, $5, $6, 1, 0, 1, $7, $7) ON CONFLICT (endpoint_uid, name_mac) DO NOTHING;

-- name: GetDeployment :one
SELECT uid, endpoint_uid, workspace_uid, name_mac, body, status, generation, deleting, revision, create_time, update_time FROM deployments WHERE uid = $1;

-- name: FindDeployment :one
SELECT uid, endpoint_uid, workspace_uid, name_mac, body, status, generation, deleting, revision, create_time, update_time FROM deployments
WHERE endpoint_uid = $1 AND name_mac = $2;

-- name: ListDeployments :many
SELECT uid, endpoint_uid, workspace_uid, name_mac, body, status, generation, deleting, revision, create_time, update_time FROM deployments
WHERE endpoint_uid = $1 AND (create_time > $2 OR (create_time = $2 AND uid > $3))
ORDER BY create_time, uid LIMIT CAST($4 AS BIGINT);

-- name: DeploymentsOfEndpoint :many
SELECT uid, endpoint_uid, workspace_uid, name_mac, body, status, generation, deleting, revision, create_time, update_time FROM deployments
WHERE endpoint_uid = $1 ORDER BY create_time, uid;

-- name: UpdateDeployment :execrows
UPDATE deployments SET body = $3, status = $4, generation = $5, deleting = $6, revision = revision + 1, update_time = $7
WHERE uid = $1 AND revision = $2;

-- name: DeleteDeployment :exec
DELETE FROM deployments WHERE uid = $1;

-- name: DeleteDeploymentsOfWorkspace :exec
DELETE FROM deployments WHERE workspace_uid = $1;

-- name: InsertReplica :exec
INSERT INTO replicas (replica_id, deployment_uid, workspace_uid, run_uid, generation, state, message, create_time, ready_time, end_time)
VALUES ($1, $2, $3, '', $4, $5, $6, $7, 0, 0);

-- name: ReplicasOfDeployment :many
SELECT replica_id, deployment_uid, workspace_uid, run_uid, generation, state, message, create_time, ready_time, end_time FROM replicas
WHERE deployment_uid = $1 ORDER BY create_time, replica_id;

-- name: UpdateReplica :execrows
UPDATE replicas SET run_uid = $2, state = $3, message = $4, ready_time = $5, end_time = $6 WHERE replica_id = $1;

-- name: DeleteReplica :exec
DELETE FROM replicas WHERE replica_id = $1;

-- name: DeleteReplicas :exec
DELETE FROM replicas WHERE deployment_uid = $1;

-- name: DeleteReplicasOfWorkspace :exec
DELETE FROM replicas WHERE workspace_uid = $1;

-- name: ReplicasOfWorkspace :many
SELECT replica_id, run_uid, deployment_uid, state FROM replicas WHERE workspace_uid = $1 ORDER BY create_time, replica_id;

-- name: AllDeployments :many
SELECT uid, workspace_uid FROM deployments ORDER BY create_time, uid;
