-- +goose Up
-- One row: the number of the newest event. Taken under the writer, so that numbers are committed in their order.
CREATE TABLE activity_head (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    position BIGINT NOT NULL
);
INSERT INTO activity_head (id, position) VALUES (1, 0);

-- How far each service's events are stored, without a gap.
CREATE TABLE activity_source (
    service TEXT NOT NULL PRIMARY KEY,
    stored_seq BIGINT NOT NULL
);

-- position: order of arrival, which keeps each service's own order. Clear: what queries select by. sealed: the whole event, under the key
-- of its subscription, or of the installation. MACs: of the request id, and of the first two segments below the workspace.
CREATE TABLE activity (
    position BIGINT NOT NULL PRIMARY KEY,
    service TEXT NOT NULL,
    seq BIGINT NOT NULL,
    uid TEXT NOT NULL,
    time BIGINT NOT NULL,
    subscription_uid TEXT NOT NULL,
    resource_group_uid TEXT NOT NULL,
    workspace_uid TEXT NOT NULL,
    resource_mac BYTEA NOT NULL,
    request_mac BYTEA NOT NULL,
    principal TEXT NOT NULL,
    method TEXT NOT NULL,
    result BIGINT NOT NULL,
    sealed BYTEA NOT NULL
);
CREATE UNIQUE INDEX activity_source_seq ON activity (service, seq);
CREATE INDEX activity_subscription ON activity (subscription_uid, position, time);
CREATE INDEX activity_group ON activity (resource_group_uid, position, time);
CREATE INDEX activity_workspace ON activity (workspace_uid, position, time);
CREATE INDEX activity_resource ON activity (workspace_uid, resource_mac, position, time);
CREATE INDEX activity_request ON activity (request_mac, position);
