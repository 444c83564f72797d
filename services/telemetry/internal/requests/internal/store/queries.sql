-- name: GetHead :one
SELECT rev, dropped FROM request_head WHERE id = 1;

-- name: NextRev :one
UPDATE request_head SET rev = rev + 1 WHERE id = 1 RETURNING rev;

-- name: AddDropped :exec
UPDATE request_head SET dropped = dropped + sqlc.arg(more) WHERE id = 1;

-- name: GetSource :one
SELECT seq, dropped, unkept FROM request_source WHERE source = $1;

-- name: PutSource :exec
INSERT INTO request_source (source, seq, dropped, unkept, update_time) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (source) DO UPDATE SET seq = excluded.seq, dropped = excluded.dropped, unkept = excluded.unkept, update_time = excluded.update_time;

-- name: SumDropped :one
SELECT CAST(COALESCE(SUM(dropped + unkept), 0) AS BIGINT) FROM request_source;

-- name: SumOldDropped :one
SELECT CAST(COALESCE(SUM(dropped + unkept), 0) AS BIGINT) FROM request_source WHERE update_time < sqlc.arg(before);

-- name: DeleteOldSources :exec
DELETE FROM request_source WHERE update_time < sqlc.arg(before);

-- name: CountPurged :one
SELECT COUNT(*) FROM request_purged WHERE workspace_uid = $1;

-- name: PutPurged :exec
INSERT INTO request_purged (workspace_uid, purge_time) VALUES ($1, $2) ON CONFLICT (workspace_uid) DO NOTHING;

-- name: LastChunk :one
SELECT number, workspace_uid, rev, requests, classes, sealed FROM request_chunk
WHERE endpoint_uid = $1 AND minute = $2 ORDER BY number DESC LIMIT 1;

-- name: PutChunk :exec
INSERT INTO request_chunk (endpoint_uid, minute, number, workspace_uid, rev, requests, classes, sealed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (endpoint_uid, minute, number) DO UPDATE SET rev = excluded.rev, requests = excluded.requests, classes = excluded.classes,
    sealed = excluded.sealed;

-- name: ListChunks :many
SELECT minute, number, rev, requests, classes, sealed FROM request_chunk
WHERE endpoint_uid = sqlc.arg(endpoint_uid) AND workspace_uid = sqlc.arg(workspace_uid)
    AND minute >= sqlc.arg(first_minute) AND minute <= sqlc.arg(last_minute) AND (classes & CAST(sqlc.arg(wanted) AS BIGINT)) <> 0
    AND (minute < sqlc.arg(before_minute) OR minute = sqlc.arg(before_minute) AND number <= sqlc.arg(before_number))
ORDER BY minute DESC, number DESC LIMIT sqlc.arg(most);

-- name: ChangedChunks :many
SELECT minute, number, rev, requests, classes, sealed FROM request_chunk
WHERE endpoint_uid = sqlc.arg(endpoint_uid) AND workspace_uid = sqlc.arg(workspace_uid) AND rev > sqlc.arg(after_rev)
ORDER BY rev, minute, number LIMIT sqlc.arg(most);

-- name: DeleteOldChunks :execrows
DELETE FROM request_chunk WHERE (endpoint_uid, minute, number) IN
    (SELECT c.endpoint_uid, c.minute, c.number FROM request_chunk c WHERE c.minute < sqlc.arg(before) ORDER BY c.minute LIMIT sqlc.arg(most));

-- name: DeleteChunksOfWorkspace :execrows
DELETE FROM request_chunk WHERE (endpoint_uid, minute, number) IN
    (SELECT c.endpoint_uid, c.minute, c.number FROM request_chunk c WHERE c.workspace_uid = sqlc.arg(workspace_uid) LIMIT sqlc.arg(most));
