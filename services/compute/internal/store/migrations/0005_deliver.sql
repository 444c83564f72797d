-- +goose Up

-- deliver_time is until when the agent of a run that was cancelled, or given up as lost, may deliver; 0 is not at all. narrowed is 1 when
-- identity has been told that the run's tokens open nothing else. report_state and report_time are what the agent of a lost run
-- reported in that time.
ALTER TABLE runs ADD COLUMN narrowed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN deliver_time BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN report_state BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN report_time BIGINT NOT NULL DEFAULT 0;

-- claim_mac finds the run that was given for a claim; NULL for one that was not claimed, or by a claim that cannot be repeated. One claim
-- has one run.
ALTER TABLE runs ADD COLUMN claim_mac BYTEA;
CREATE UNIQUE INDEX runs_claim ON runs (compute_uid, claim_mac);

-- +goose Down
DROP INDEX runs_claim;
ALTER TABLE runs DROP COLUMN claim_mac;
ALTER TABLE runs DROP COLUMN report_time;
ALTER TABLE runs DROP COLUMN report_state;
ALTER TABLE runs DROP COLUMN deliver_time;
ALTER TABLE runs DROP COLUMN narrowed;
