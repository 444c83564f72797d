-- name: InsertCompute :execrows
INSERT INTO computes (uid, workspace_uid, name, name_mac, kind, max_runs, create_time, created_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (workspace_uid, name_mac) DO NOTHING;

-- name: GetCompute :one
SELECT uid, workspace_uid, name, name_mac, kind, max_runs, create_time, created_by FROM computes
WHERE workspace_uid = $1 AND name_mac = $2;

-- name: GetComputeByUID :one
SELECT uid, workspace_uid, name, name_mac, kind, max_runs, create_time, created_by FROM computes WHERE uid = $1;

-- name: ListComputes :many
SELECT uid, workspace_uid, name, name_mac, kind, max_runs, create_time, created_by FROM computes
WHERE workspace_uid = $1 AND (create_time > $2 OR (create_time = $2 AND uid > $3))
ORDER BY create_time, uid LIMIT CAST($4 AS BIGINT);

-- name: ComputeRunsNotEnded :one
SELECT COUNT(*) FROM runs WHERE compute_uid = $1 AND state < $2;

-- name: DeleteCompute :execrows
DELETE FROM computes WHERE uid = $1;

-- name: InsertRun :execrows
INSERT INTO runs (uid, workspace_uid, compute_uid, id_mac, request_mac, spec, outcome, submitter, state, generation, agent_key, cancel, version,
                  create_time, start_time, end_time, heartbeat_time, cancel_time, log_bytes, revoked, kind, experiment, labels, deleted)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, '', 0, 1, $10, $12, $15, 0, 0, 0, 0, $11, $13, $14, 0)
ON CONFLICT (workspace_uid, id_mac) DO NOTHING;

-- name: GetRun :one
SELECT * FROM runs WHERE uid = $1;

-- name: GetRunByID :one
SELECT * FROM runs WHERE workspace_uid = $1 AND id_mac = $2;

-- name: GetRunByRequest :one
SELECT * FROM runs WHERE workspace_uid = $1 AND request_mac = $2 AND create_time > $3 ORDER BY create_time LIMIT 1;

-- name: ListRuns :many
SELECT * FROM runs
WHERE workspace_uid = $1 AND kind <> $5 AND deleted <= $6 AND (create_time < $2 OR (create_time = $2 AND uid < $3))
ORDER BY create_time DESC, uid DESC LIMIT CAST($4 AS BIGINT);

-- name: ListRunsInState :many
SELECT * FROM runs
WHERE workspace_uid = $1 AND state = $2 AND kind <> $6 AND deleted <= $7 AND (create_time < $3 OR (create_time = $3 AND uid < $4))
ORDER BY create_time DESC, uid DESC LIMIT CAST($5 AS BIGINT);

-- name: ComputesInState :many
SELECT DISTINCT compute_uid FROM runs WHERE state = $1 AND compute_uid <> '' ORDER BY compute_uid;

-- name: StartingOf :many
SELECT uid FROM runs WHERE instance = $1 AND state = $2 ORDER BY uid;

-- name: QueuedOnCompute :many
SELECT * FROM runs WHERE compute_uid = $1 AND state = $2 ORDER BY create_time, uid LIMIT CAST($3 AS BIGINT);

-- name: RunsInStates :many
SELECT * FROM runs WHERE state >= $1 AND state <= $2 AND compute_uid <> '' ORDER BY create_time, uid;

-- name: ClaimedRun :one
SELECT * FROM runs WHERE compute_uid = $1 AND claim_mac = $2;

-- name: StandingRuns :many
SELECT uid, submitter, create_time FROM runs WHERE state >= $1 AND state <= $2 AND compute_uid <> '' ORDER BY create_time, uid;

-- name: NotRevoked :many
SELECT * FROM runs WHERE state >= $1 AND revoked = 0 AND generation > 0 AND
    ((state >= $2 AND deliver_time <= $3) OR (narrowed = 0 AND agent_key <> '' AND (state >= $2 OR cancel <> 0))) ORDER BY end_time, uid LIMIT 100;

-- name: ActiveOnCompute :one
SELECT COUNT(*) FROM runs WHERE compute_uid = $1 AND state >= $2 AND state <= $3;

-- name: UpdateRun :execrows
UPDATE runs SET outcome = $3, state = $4, generation = $5, agent_key = $6, cancel = $7, version = version + 1,
                start_time = $8, end_time = $9, heartbeat_time = $10, cancel_time = $11, log_bytes = $12, revoked = $13, instance = $14, stopped = $15,
                narrowed = $16, deliver_time = $17, report_state = $18, report_time = $19, claim_mac = $20
WHERE uid = $1 AND version = $2;

-- name: MarkNarrowed :exec
UPDATE runs SET narrowed = 1, version = version + 1 WHERE uid = $1;

-- name: MarkRevoked :exec
UPDATE runs SET narrowed = 1, revoked = CASE WHEN state >= $2 THEN 1 ELSE revoked END, version = version + 1 WHERE uid = $1;

-- name: TouchRun :execrows
UPDATE runs SET heartbeat_time = $2 WHERE uid = $1 AND state < $3;

-- name: RunsOfWorkspace :many
SELECT * FROM runs WHERE workspace_uid = $1;

-- name: InsertLog :exec
INSERT INTO log_chunks (run_uid, start, length, data) VALUES ($1, $2, $3, $4);

-- name: SetLogBytes :execrows
UPDATE runs SET log_bytes = $2, heartbeat_time = $3 WHERE uid = $1 AND log_bytes = $4 AND (state < $5 OR deliver_time > $6);

-- name: ReadLog :many
SELECT run_uid, start, length, data FROM log_chunks
WHERE run_uid = $1 AND start + length > $2 ORDER BY start LIMIT CAST($3 AS BIGINT);

-- name: PutOutput :exec
INSERT INTO outputs (run_uid, path_mac, entry, size, blob, create_time, artifact) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (run_uid, path_mac) DO UPDATE SET entry = EXCLUDED.entry, size = EXCLUDED.size, blob = EXCLUDED.blob, create_time = EXCLUDED.create_time, artifact = EXCLUDED.artifact;

-- name: GetOutput :one
SELECT run_uid, path_mac, entry, size, blob, create_time, artifact FROM outputs WHERE run_uid = $1 AND path_mac = $2;

-- name: ListOutputs :many
SELECT run_uid, path_mac, entry, size, blob, create_time, artifact FROM outputs WHERE run_uid = $1 ORDER BY create_time, blob;

-- name: CountOutputs :one
SELECT COUNT(*) FROM outputs WHERE run_uid = $1;

-- name: CountAgentOutputs :one
SELECT COUNT(*) FROM outputs WHERE run_uid = $1 AND artifact = 0;

-- name: DeleteOutput :execrows
DELETE FROM outputs WHERE run_uid = $1 AND path_mac = $2 AND blob = $3;

-- name: SumOtherOutputs :one
SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) AS size FROM outputs WHERE run_uid = $1 AND path_mac <> $2;

-- name: DeleteLogsOfWorkspace :exec
DELETE FROM log_chunks WHERE run_uid IN (SELECT uid FROM runs WHERE workspace_uid = $1);

-- name: DeleteOutputsOfWorkspace :exec
DELETE FROM outputs WHERE run_uid IN (SELECT uid FROM runs WHERE workspace_uid = $1);

-- name: DeleteRunsOfWorkspace :exec
DELETE FROM runs WHERE workspace_uid = $1;

-- name: DeleteComputesOfWorkspace :exec
DELETE FROM computes WHERE workspace_uid = $1;

-- name: InsertExperiment :execrows
INSERT INTO experiments (uid, workspace_uid, id, name_mac, content, deleted, version, create_time, update_time, created_by)
VALUES ($1, $2, $3, $4, $5, 0, 1, $6, $6, $7) ON CONFLICT DO NOTHING;

-- name: GetExperiment :one
SELECT * FROM experiments WHERE workspace_uid = $1 AND id = $2;

-- name: GetExperimentByName :one
SELECT * FROM experiments WHERE workspace_uid = $1 AND name_mac = $2;

-- name: ListExperiments :many
SELECT * FROM experiments WHERE workspace_uid = $1 AND uid > $2 ORDER BY uid LIMIT CAST($3 AS BIGINT);

-- name: CountExperiments :one
SELECT COUNT(*) FROM experiments WHERE workspace_uid = $1;

-- name: NameTaken :one
SELECT COUNT(*) FROM experiments WHERE workspace_uid = $1 AND name_mac = $2 AND id <> $3;

-- name: UpdateExperiment :execrows
UPDATE experiments SET name_mac = $3, content = $4, deleted = $5, update_time = $6, version = version + 1 WHERE uid = $1 AND version = $2;

-- name: MarkRunsOfExperiment :exec
UPDATE runs SET deleted = $3, version = version + 1 WHERE workspace_uid = $1 AND experiment = $2 AND deleted = $4;

-- name: CarriedInExperiment :one
SELECT COUNT(*) FROM runs WHERE workspace_uid = $1 AND experiment = $2 AND compute_uid <> '' AND state < $3;

-- name: SetRunLabels :exec
UPDATE runs SET labels = $2 WHERE uid = $1;

-- name: SetRunDeleted :exec
UPDATE runs SET deleted = $2 WHERE uid = $1;

-- name: ScanRuns :many
SELECT * FROM runs
WHERE workspace_uid = sqlc.arg(workspace_uid) AND CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT) <= CAST(sqlc.arg(newest) AS BIGINT)
  AND (CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT) < CAST(sqlc.arg(newest) AS BIGINT) OR uid > sqlc.arg(after_uid)) AND CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT) >= CAST(sqlc.arg(oldest) AS BIGINT)
  AND kind <> sqlc.arg(kind) AND deleted >= sqlc.arg(least) AND deleted <= sqlc.arg(most)
ORDER BY CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT) DESC, uid LIMIT CAST(sqlc.arg(rows) AS BIGINT);

-- name: ScanRunsOfExperiment :many
SELECT * FROM runs
WHERE workspace_uid = sqlc.arg(workspace_uid) AND experiment = sqlc.arg(experiment) AND CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT) <= CAST(sqlc.arg(newest) AS BIGINT)
  AND (CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT) < CAST(sqlc.arg(newest) AS BIGINT) OR uid > sqlc.arg(after_uid)) AND CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT) >= CAST(sqlc.arg(oldest) AS BIGINT)
  AND kind <> sqlc.arg(kind) AND deleted >= sqlc.arg(least) AND deleted <= sqlc.arg(most)
ORDER BY CAST(CASE WHEN start_time = 0 THEN create_time ELSE start_time END AS BIGINT) DESC, uid LIMIT CAST(sqlc.arg(rows) AS BIGINT);

-- name: DeleteExperimentsOfWorkspace :exec
DELETE FROM experiments WHERE workspace_uid = $1;
