-- +goose Up

-- What a root does: 'prepared', 'active', 'old', 'tainted'. One that is revoked has no row.
ALTER TABLE authorities ADD COLUMN phase TEXT NOT NULL DEFAULT '';
UPDATE authorities SET phase = CASE WHEN signs = 1 THEN 'active' ELSE 'old' END;
ALTER TABLE authorities DROP COLUMN signs;
CREATE UNIQUE INDEX authorities_one_active ON authorities (phase) WHERE phase = 'active';
ALTER TABLE authorities ADD COLUMN signed_time BIGINT NOT NULL DEFAULT 0; -- when it signed last; 0: signs, or never did
ALTER TABLE authorities ADD COLUMN quiet_time BIGINT NOT NULL DEFAULT 0;  -- when a service was last seen to leave it
ALTER TABLE authorities ADD COLUMN counted BIGINT NOT NULL DEFAULT 0;     -- 0: it has signed what is not in leaves

-- Certificates that may be in use, by who holds them; those of runs are too short-lived to be written down.
CREATE TABLE leaves (
    holder      TEXT   NOT NULL,         -- service/compute/a, operator/usr_…
    pin         TEXT   NOT NULL,         -- of the root that signed
    bundle      TEXT   NOT NULL,         -- pins of the roots that came with it, separated by spaces
    expire_time BIGINT NOT NULL,
    PRIMARY KEY (holder, pin)
);
CREATE INDEX leaves_by_pin ON leaves (pin);

-- +goose Down
DROP TABLE leaves;
DROP INDEX authorities_one_active;
ALTER TABLE authorities ADD COLUMN signs BIGINT NOT NULL DEFAULT 0;
UPDATE authorities SET signs = CASE WHEN phase = 'active' THEN 1 ELSE 0 END;
ALTER TABLE authorities DROP COLUMN counted;
ALTER TABLE authorities DROP COLUMN quiet_time;
ALTER TABLE authorities DROP COLUMN signed_time;
ALTER TABLE authorities DROP COLUMN phase;
