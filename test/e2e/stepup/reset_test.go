package stepup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"
	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

// A2: the only Owner lost phone and codes. On the host, with nothing running, his factors are removed; it stands in the activity log.
func TestOfflineReset(t *testing.T) {
	own, err := testmesh.StartOnPorts()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	had := own.Admin(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+had)
	factors := identityv1.NewFactorServiceClient(own.Dial(t, ""))
	e, err := factors.EnrolFactor(ctx, &identityv1.EnrolFactorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	code, err := hotp.GenerateCode(e.GetSecret(), uint64(time.Now().Unix()/30))
	if err != nil {
		t.Fatal(err)
	}
	r, err := factors.ProveFactor(ctx, &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: code})
	if err != nil {
		t.Fatal(err)
	}
	admin := strings.TrimPrefix(own.Installation.Admin, "users/")
	signIn := func() *identityv1.SignInResponse {
		t.Helper()
		in, err := identityv1.NewSignInServiceClient(own.Dial(t, "")).SignIn(t.Context(), &identityv1.SignInRequest{User: admin, Password: own.Password()})
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	if signIn().GetChallenge() == nil {
		t.Fatal("no factor is asked for")
	}
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, own.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"HOME": dir, "REDOUBT_CONFIG": filepath.Join(dir, "config.yaml"), "REDOUBT_KEYRING": "off", "REDOUBT_FORMAT": "", "REDOUBT_CONTEXT": "", "REDOUBT_TOKEN": "", "REDOUBT_WORKSPACE": "",
		"REDOUBT_RESOURCE_GROUP": "", "REDOUBT_ADDR": own.URL, "REDOUBT_CACERT": ca,
	} {
		t.Setenv(k, v)
	}
	reset := func(code int, args ...string) string {
		t.Helper()
		return start(t, strings.NewReader(""), append([]string{"factor", "reset", "--yes"}, args...)...).ends(code)
	}
	reset(1, "--offline", admin)
	reset(1, "--data", own.Dir, admin)
	reset(1, "--offline", "--data", own.Dir, "--config", "x", admin)
	if said := reset(1, "--offline", "--data", own.Dir, admin); !strings.Contains(said, "another") { // it runs
		t.Errorf("%s", said)
	}
	own.Stop()
	empty := t.TempDir()
	if said := reset(1, "--offline", "--data", empty, admin); !strings.Contains(said, "not the folder of identity") {
		t.Errorf("%s", said)
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) != 0 {
		t.Errorf("a folder that was empty has %v %v", left, err)
	}
	if said := reset(1, "--offline", "--data", own.Dir, "nobody"); !strings.Contains(said, "no user nobody") {
		t.Errorf("%s", said)
	}
	if said := reset(0, "--offline", "--data", own.Dir, admin); !strings.Contains(said, "removed: 1") || !strings.Contains(said, "redoubt factor add") {
		t.Errorf("%s", said)
	}
	if err := own.Restart(); err != nil {
		t.Fatal(err)
	}
	in := signIn()
	if in.GetSession() == nil {
		t.Fatalf("%v", in)
	}
	_, err = identityv1.NewSignInServiceClient(own.Dial(t, r.GetSession().GetAccessToken())).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{})
	if err == nil {
		t.Error("a session of before is good still")
	}
	t.Setenv("REDOUBT_TOKEN", in.GetSession().GetAccessToken())
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		list := start(t, strings.NewReader(""), "activity", "list")
		code := <-list.end
		if code == 0 && strings.Contains(list.out.String(), "reset at the host") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no record of it: %d\n%s%s", code, list.out.String(), list.errs.String())
		}
	}
}
