-- +goose Up

-- Which credentials of security keys are registered: one is of one factor, whoever's it is.
CREATE TABLE webauthn_credentials (
    credential BYTEA PRIMARY KEY,        -- keyed hash of the credential's id
    factor_id  TEXT  NOT NULL REFERENCES factors (factor_id) ON DELETE CASCADE
);
CREATE INDEX webauthn_credentials_by_factor ON webauthn_credentials (factor_id);

-- +goose Down
DROP TABLE webauthn_credentials;
