-- +goose Up

-- Of a run: until when its tokens open what delivers. 0 is not at all, and what all that were there before have.
ALTER TABLE revocations ADD COLUMN deliver_until BIGINT NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE revocations DROP COLUMN deliver_until;
