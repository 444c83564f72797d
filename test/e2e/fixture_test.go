package e2e

import (
	"strings"
	"testing"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

// workspaceOf makes a subscription, a resource group and a workspace of the test's own, as the administrator.
func workspaceOf(t *testing.T, id string) *workspacev1.Workspace { return workspaceOn(t, mesh, id) }

func workspaceOn(t *testing.T, mesh *testmesh.Mesh, id string) *workspacev1.Workspace {
	t.Helper()
	res := workspacev1.NewResourceServiceClient(mesh.Dial(t, mesh.Admin(t)))
	sub, err := res.CreateSubscription(t.Context(), &workspacev1.CreateSubscriptionRequest{SubscriptionId: id, Region: "here"})
	if err != nil {
		t.Fatalf("subscription: %v", err)
	}
	group, err := res.CreateResourceGroup(t.Context(), &workspacev1.CreateResourceGroupRequest{Parent: sub.GetName(), ResourceGroupId: "group"})
	if err != nil {
		t.Fatalf("resource group: %v", err)
	}
	ws, err := res.CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: group.GetName(), WorkspaceId: "lab"})
	if err != nil {
		t.Fatalf("workspace: %v", err)
	}
	if ws.GetState() != workspacev1.Workspace_STATE_ACTIVE || !strings.HasPrefix(ws.GetUid(), "ws_") || ws.GetManagedIdentity() == "" {
		t.Fatalf("the workspace is not whole: %v", ws)
	}
	return ws
}
