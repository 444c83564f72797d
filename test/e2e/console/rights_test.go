package console

import (
	"testing"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
)

// assign gives somebody a role at the installation.
func assign(t *testing.T, uid, role string) {
	t.Helper()
	_, err := workspacev1.NewAccessServiceClient(mesh.Dial(t, mesh.Admin(t))).CreateRoleAssignment(t.Context(), &workspacev1.CreateRoleAssignmentRequest{Scope: "/", Role: role, Principal: uid})
	if err != nil {
		t.Fatal(err)
	}
}
