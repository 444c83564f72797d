-- +goose Up

-- What a key signs: '' is tokens, 'jwt-svid' JWT-SVIDs.
ALTER TABLE signing_keys ADD COLUMN purpose TEXT NOT NULL DEFAULT '';
-- Of the trust bundle; rises whenever a root or a key of JWT-SVIDs comes or goes.
ALTER TABLE installation ADD COLUMN bundle_seq BIGINT NOT NULL DEFAULT 1;

-- +goose Down
DELETE FROM signing_keys WHERE purpose <> '';
ALTER TABLE installation DROP COLUMN bundle_seq;
ALTER TABLE signing_keys DROP COLUMN purpose;
