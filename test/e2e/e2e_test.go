// Package e2e drives a whole installation through its public API, over real mTLS gRPC.
package e2e

import (
	"fmt"
	"os"
	"testing"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

var mesh *testmesh.Mesh

func TestMain(m *testing.M) {
	testmesh.Child()
	asCommand()
	var err error
	if mesh, err = testmesh.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}

// A1, A3: the first administrator signs in through the gateway and is who he is.
func TestWhoAmI(t *testing.T) {
	who, err := identityv1.NewSignInServiceClient(mesh.Dial(t, mesh.Admin(t))).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if who.GetPrincipal() != "users/admin" || who.GetType() != identityv1.PrincipalType_PRINCIPAL_TYPE_USER {
		t.Errorf("got %v", who)
	}
}
