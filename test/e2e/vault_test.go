package e2e

import (
	"testing"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// E1, H1: a new workspace has a vault; its secrets have versions and can be disabled; another workspace's principal sees nothing.
func TestSecrets(t *testing.T) {
	ws := workspaceOf(t, "vault")
	secrets := keyvaultv1.NewSecretServiceClient(mesh.Dial(t, mesh.Admin(t)))
	for i, v := range []string{"first", "second"} {
		got, err := secrets.SetSecret(t.Context(), &keyvaultv1.SetSecretRequest{Parent: ws.GetName(), SecretId: "db", Value: []byte(v)})
		if err != nil || got.GetVersion() != int64(i+1) {
			t.Fatalf("set %s: %v %v", v, got, err)
		}
	}
	name := ws.GetName() + "/secrets/db"
	read := func(version int64) (string, error) {
		r, err := secrets.AccessSecret(t.Context(), &keyvaultv1.AccessSecretRequest{Name: name, Version: version})
		return string(r.GetValue()), err
	}
	if v, err := read(0); v != "second" || err != nil {
		t.Errorf("newest: %q %v", v, err)
	}
	if _, err := secrets.SetSecretDisabled(t.Context(), &keyvaultv1.SetSecretDisabledRequest{Name: name, Version: 2, Disabled: true}); err != nil {
		t.Fatal(err)
	}
	if v, err := read(0); v != "first" || err != nil {
		t.Errorf("newest enabled: %q %v", v, err)
	}
	if _, err := read(2); fault.ReasonOf(err) != faultv1.Reason_SECRET_DISABLED {
		t.Errorf("disabled: %v", err)
	}
	_, stranger := mesh.User(t, "vault-stranger")
	_, err := keyvaultv1.NewSecretServiceClient(mesh.Dial(t, stranger)).AccessSecret(t.Context(), &keyvaultv1.AccessSecretRequest{Name: name})
	_, err2 := keyvaultv1.NewSecretServiceClient(mesh.Dial(t, stranger)).AccessSecret(t.Context(), &keyvaultv1.AccessSecretRequest{Name: ws.GetName() + "/secrets/none"})
	if !fault.Is(err, codes.NotFound) || !fault.Is(err2, codes.NotFound) {
		t.Errorf("a stranger reads %v and %v", err, err2)
	}
}
