-- +goose Up
-- Each index holds only the rows that can be asked for by it. Most events of a busy installation, its tokens, stand in no workspace, group or
-- subscription and have no resource: each of them was entered five times under an empty key.
DROP INDEX activity_subscription;
DROP INDEX activity_group;
DROP INDEX activity_workspace;
DROP INDEX activity_resource;
DROP INDEX activity_request;
CREATE INDEX activity_subscription ON activity (subscription_uid, position, time) WHERE subscription_uid <> '';
CREATE INDEX activity_group ON activity (resource_group_uid, position, time) WHERE resource_group_uid <> '';
CREATE INDEX activity_workspace ON activity (workspace_uid, position, time) WHERE workspace_uid <> '';
CREATE INDEX activity_resource ON activity (workspace_uid, resource_mac, position, time) WHERE LENGTH(resource_mac) > 0;
CREATE INDEX activity_request ON activity (request_mac, position) WHERE LENGTH(request_mac) > 0;
