package clients_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

const group = "subscriptions/default/resourceGroups/default"

func TestMain(m *testing.M) {
	testmesh.Child()
	os.Exit(m.Run())
}

// installation is what the clients speak to.
type installation struct {
	server, ca, user, password string // password is a file
	compute                    string
	conn                       *grpc.ClientConn // as its administrator
}

// running takes the installation that the environment names.
func running(t *testing.T) *installation {
	t.Helper()
	in := &installation{server: strings.TrimPrefix(os.Getenv("REDOUBT_SERVER"), "https://"), ca: os.Getenv("REDOUBT_CACERT"), user: "admin", password: os.Getenv("REDOUBT_PASSWORD_FILE"), compute: os.Getenv("REDOUBT_COMPUTE")}
	pem, err := os.ReadFile(in.ca)
	if err != nil {
		t.Fatal(err)
	}
	pw, err := os.ReadFile(in.password)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	dial := func(o ...grpc.DialOption) *grpc.ClientConn {
		c, err := grpc.NewClient(in.server, append(o, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	r, err := identityv1.NewSignInServiceClient(dial()).SignIn(t.Context(), &identityv1.SignInRequest{User: in.user, Password: strings.TrimSpace(string(pw))})
	if err != nil {
		t.Fatal(err)
	}
	in.conn = dial(grpc.WithPerRPCCredentials(testmesh.Bearer(r.GetSession().GetAccessToken())))
	return in
}

// own starts an installation, with a workspace and a target in it.
func own(t *testing.T) *installation {
	t.Helper()
	m, err := testmesh.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	in := &installation{server: strings.TrimPrefix(m.URL, "https://"), ca: filepath.Join(t.TempDir(), "ca.pem"), user: "admin", password: filepath.Join(t.TempDir(), "password")}
	write(t, in.ca, string(m.CA))
	write(t, in.password, m.Password())
	in.conn = m.Dial(t, m.Admin(t))
	w, err := workspacev1.NewResourceServiceClient(in.conn).CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: group, WorkspaceId: "clients"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := computev1.NewComputeServiceClient(in.conn).CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: w.GetName(), ComputeId: "here", Kind: computev1.Compute_KIND_LOCAL})
	if err != nil {
		t.Fatal(err)
	}
	in.compute = c.GetName()
	return in
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// program makes a service principal that may do what the example does, and gives its id and the file of its secret.
func (in *installation) program(t *testing.T) (id, file string) {
	t.Helper()
	d := identityv1.NewDirectoryServiceClient(in.conn)
	sp, err := d.CreateServicePrincipal(t.Context(), &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: strings.ToLower("example-" + resource.NewUID("x")[2:10])})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := d.DeleteServicePrincipal(context.WithoutCancel(t.Context()), &identityv1.DeleteServicePrincipalRequest{Name: sp.GetName()})
		if err != nil {
			t.Error(err)
		}
	})
	s, err := d.AddServicePrincipalSecret(t.Context(), &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = workspacev1.NewAccessServiceClient(in.conn).CreateRoleAssignment(t.Context(), &workspacev1.CreateRoleAssignmentRequest{Scope: group, Role: authz.Contributor, Principal: sp.GetUid()})
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "secret")
	write(t, file, s.GetSecret())
	return sp.GetUid(), file
}

// I: clients generated from the protos sign in, make a workspace, run a job, follow its logs, read its metric and the reason of an error;
// and all of them see the same.
func TestClients(t *testing.T) {
	if os.Getenv("REDOUBT_CLIENTS") == "" {
		t.Skip("make clients generates, builds and runs them")
	}
	built, err := filepath.Abs("../../.gen/clients")
	if err != nil {
		t.Fatal(err)
	}
	job, err := filepath.Abs("../../examples/clients/job/job.py")
	if err != nil {
		t.Fatal(err)
	}
	var in *installation
	if os.Getenv("REDOUBT_SERVER") != "" {
		in = running(t)
	} else {
		in = own(t)
	}
	for language, command := range map[string][]string{
		"python": {"/usr/bin/python3", "../../examples/clients/python/client.py"},
		"cpp":    {filepath.Join(built, "cpp-client")},
		"java":   {filepath.Join(built, "java-client")},
		"go":     {filepath.Join(built, "go-client")},
	} {
		t.Run(language, func(t *testing.T) {
			if _, err := os.Stat(command[0]); err != nil {
				t.Fatalf("it was not built: %v", err)
			}
			user, secret, principal := in.user, in.password, "users/"+in.user
			if language == "go" {
				user, secret = in.program(t)
				principal = "servicePrincipals/"
			}
			id := strings.ToLower(fmt.Sprintf("made-by-%s-%s", language, resource.NewUID("x")[2:8]))
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, command[0], append(command[1:], in.server, in.ca, user, secret, id, in.compute, job)...)
			cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(built, "python"), "PYTHONDONTWRITEBYTECODE=1")
			var failed bytes.Buffer
			cmd.Stderr = &failed
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s%s", err, out, failed.String())
			}
			want := []string{
				"signed in: " + principal, "workspace: " + group + "/workspaces/" + id, "step 0 loss 1.0", "step 1 loss 0.5", "step 2 loss 0.25",
				"state: STATE_COMPLETED", "loss: 1 0.5 0.25", "refused: NOT_FOUND RESOURCE_NOT_FOUND",
			}
			got := strings.Split(strings.TrimSpace(string(out)), "\n")
			if language == "go" && len(got) > 0 {
				got[0] = got[0][:min(len(got[0]), len(want[0]))] // the id is a random one
			}
			if strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("printed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if _, err := workspacev1.NewResourceServiceClient(in.conn).GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: group + "/workspaces/" + id}); err == nil {
				t.Error("its workspace is still there")
			}
		})
	}
}
