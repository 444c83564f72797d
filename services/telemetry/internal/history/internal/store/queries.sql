-- name: GetRun :one
SELECT workspace_uid, rev, keys, texts, text_bytes FROM run_data WHERE run_uid = $1;

-- name: PutRun :exec
INSERT INTO run_data (run_uid, workspace_uid, rev, keys, texts, text_bytes, create_time) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (run_uid) DO UPDATE SET rev = excluded.rev, keys = excluded.keys, texts = excluded.texts, text_bytes = excluded.text_bytes;

-- name: CountPurged :one
SELECT COUNT(*) FROM purged_workspace WHERE workspace_uid = $1;

-- name: PutPurged :exec
INSERT INTO purged_workspace (workspace_uid, purge_time) VALUES ($1, $2) ON CONFLICT (workspace_uid) DO NOTHING;

-- name: GetLatest :one
SELECT rev, chunk_seq, chunk_points, chunk_time, sealed FROM metric_latest WHERE run_uid = $1 AND key_mac = $2;

-- name: PutLatest :exec
INSERT INTO metric_latest (run_uid, key_mac, rev, chunk_seq, chunk_points, chunk_time, sealed) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (run_uid, key_mac) DO UPDATE SET rev = excluded.rev, chunk_seq = excluded.chunk_seq,
    chunk_points = excluded.chunk_points, chunk_time = excluded.chunk_time, sealed = excluded.sealed;

-- name: ListLatest :many
SELECT key_mac, rev, chunk_seq, chunk_points, chunk_time, sealed FROM metric_latest
WHERE run_uid = sqlc.arg(run_uid) AND rev >= sqlc.arg(after_rev) AND (rev > sqlc.arg(after_rev) OR key_mac > sqlc.arg(after_mac))
ORDER BY rev, key_mac LIMIT sqlc.arg(most);

-- name: GetChunk :one
SELECT step_min, step_max, time_min, time_max, points, sealed FROM metric_chunk WHERE run_uid = $1 AND key_mac = $2 AND seq = $3;

-- name: PutChunk :exec
INSERT INTO metric_chunk (run_uid, key_mac, seq, step_min, step_max, time_min, time_max, points, sealed)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (run_uid, key_mac, seq) DO UPDATE SET step_min = excluded.step_min, step_max = excluded.step_max,
    time_min = excluded.time_min, time_max = excluded.time_max, points = excluded.points, sealed = excluded.sealed;

-- name: ListChunks :many
SELECT seq, step_min, step_max, time_min, time_max, points, sealed FROM metric_chunk
WHERE run_uid = sqlc.arg(run_uid) AND key_mac = sqlc.arg(key_mac)
    AND step_min <= sqlc.arg(last_step) AND step_max >= sqlc.arg(first_step)
    AND time_min <= sqlc.arg(last_time) AND time_max >= sqlc.arg(first_time)
    AND (step_min, time_min, seq) > (sqlc.arg(after_step), sqlc.arg(after_time), sqlc.arg(after_seq))
ORDER BY step_min, time_min, seq LIMIT sqlc.arg(most);

-- name: GetText :one
SELECT sealed FROM run_text WHERE run_uid = $1 AND kind = $2 AND key_mac = $3;

-- name: PutText :exec
INSERT INTO run_text (run_uid, kind, key_mac, sealed) VALUES ($1, $2, $3, $4)
ON CONFLICT (run_uid, kind, key_mac) DO UPDATE SET sealed = excluded.sealed;

-- name: DeleteText :exec
DELETE FROM run_text WHERE run_uid = $1 AND kind = $2 AND key_mac = $3;

-- name: ListTexts :many
SELECT kind, key_mac, sealed FROM run_text WHERE run_uid = $1 ORDER BY kind, key_mac;

-- name: GetBatch :one
SELECT content_mac FROM run_batch WHERE run_uid = $1 AND batch_mac = $2;

-- name: PutBatch :exec
INSERT INTO run_batch (run_uid, batch_mac, content_mac, create_time) VALUES ($1, $2, $3, $4);

-- name: ForgetBatches :execrows
DELETE FROM run_batch WHERE (run_uid, batch_mac) IN
    (SELECT b.run_uid, b.batch_mac FROM run_batch b WHERE b.create_time < sqlc.arg(before) ORDER BY b.create_time LIMIT sqlc.arg(most));

-- name: RunsOfWorkspace :many
SELECT run_uid FROM run_data WHERE workspace_uid = sqlc.arg(workspace_uid) ORDER BY run_uid LIMIT sqlc.arg(most);

-- name: DeleteChunks :exec
DELETE FROM metric_chunk WHERE run_uid = $1;

-- name: DeleteLatest :exec
DELETE FROM metric_latest WHERE run_uid = $1;

-- name: DeleteTexts :exec
DELETE FROM run_text WHERE run_uid = $1;

-- name: DeleteBatches :exec
DELETE FROM run_batch WHERE run_uid = $1;

-- name: DeleteRun :exec
DELETE FROM run_data WHERE run_uid = $1;
