-- +goose Up
-- How far each instance has come in a feed of numbered changes, and when it last said so.
CREATE TABLE progress (
    feed TEXT NOT NULL,
    instance TEXT NOT NULL,
    seq BIGINT NOT NULL,
    beat_time BIGINT NOT NULL,
    PRIMARY KEY (feed, instance)
);
