package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

var update = flag.Bool("update", false, "write testdata anew")

// session is one user at one terminal that is none.
type session struct {
	t    *testing.T
	home string
	env  map[string]string
	ring settings.Keyring
}

func newSession(t *testing.T) *session {
	t.Helper()
	home := t.TempDir()
	return &session{t: t, home: home, env: map[string]string{"HOME": home}}
}

func (s *session) run(stdin string, args ...string) (code int, out, errs string) {
	s.t.Helper()
	var o, e bytes.Buffer
	a := &app.App{Env: func(k string) string { return s.env[k] }, In: strings.NewReader(stdin), Out: &o, Err: &e, Now: time.Now, Keyring: s.ring}
	code = a.Run(s.t.Context(), tree(a), args)
	return code, o.String(), e.String()
}

// TestHelp holds the tree of commands and their flags: what people have in their scripts.
func TestHelp(t *testing.T) {
	var b strings.Builder
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		fmt.Fprintf(&b, "%s\n    %s\n", c.UseLine(), c.Short)
		if f := c.LocalNonPersistentFlags().FlagUsages(); f != "" {
			b.WriteString(f)
		}
		if c.Short == "" {
			t.Errorf("%s says nothing of itself", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := tree(&app.App{})
	walk(root)
	b.WriteString(root.PersistentFlags().FlagUsages())
	golden := filepath.Join("testdata", "help.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the commands have changed; if that is meant: go test ./internal/cli -run TestHelp -update")
	}
	if m := regexp.MustCompile(`--(password|secret|value|token)\s`).FindString(b.String()); m != "" {
		t.Errorf("the flag %s would show a secret to everybody on the machine", m)
	}
}

func TestWrongUseIsLocal(t *testing.T) {
	cases := []struct {
		args string
		want string
	}{
		{"nonsense", "unknown command"},
		{"run nonsense", "no verb"},
		{"run list --bogus", "unknown flag"},
		{"run list -o xml", "table, json, yaml or none"},
		{"run list", "no installation is chosen"},
		{"run list --context x", "no context"},
		{"run show", "takes 1 arguments"},
		{"run submit --compute c --code .", "after --"},
		{"serve nonsense --config x", "no service"},
		{"serve identity", "--config"},
		{"serve identity --config /nowhere.yaml", "nowhere.yaml"},
		{"etcd", "--data and --client"},
		{"bootstrap", "--data"},
		{"login --server ftp://x --user a --password-stdin", "https://host:port"},
		{"login --server https://127.0.0.1:1 --user a --ask-password", "--password-stdin"},
		{"login --server https://127.0.0.1:1 --user a --password-stdin --device", "give one"},
		{"login --server https://127.0.0.1:1 --client-id spn_x", "--client-secret-stdin"},
		{"login --server https://127.0.0.1:1 --client-secret-stdin", "--client-id"},
		{"login --server https://127.0.0.1:1 --client-id spn_x --client-certificate c.pem", "belong together"},
		{"login --server https://127.0.0.1:1 --client-id spn_x --client-secret-stdin --client-certificate c.pem --client-key k.pem", "either"},
		{"login --server https://127.0.0.1:1 --client-certificate c.pem --client-key k.pem", "--client-id"},
		{"login --server https://127.0.0.1:1 --client-id spn_x --client-secret-stdin --user a", "leave --user"},
		{"up --data /dev/null/x", "--data"},
		{"up --listen nonsense --data x", "--listen"},
		{"version x", "takes 0 arguments"},
	}
	for _, c := range cases {
		t.Run(c.args, func(t *testing.T) {
			t.Chdir(t.TempDir())
			code, out, errs := newSession(t).run("pw\n", strings.Fields(c.args)...)
			if code != app.ExitLocal || out != "" || !strings.Contains(errs, c.want) || !strings.HasPrefix(errs, "redoubt: ") {
				t.Errorf("%d\n%s\n%s", code, out, errs)
			}
		})
	}
}

// site answers a few methods over real TLS, for one user with one password.
type site struct {
	identityv1.UnimplementedSignInServiceServer
	workspacev1.UnimplementedResourceServiceServer
	url, ca string
	stop    func()
}

const (
	testPassword = "correct horse"
	testToken    = "token-that-must-not-be-seen"
)

func (i *site) SignIn(_ context.Context, r *identityv1.SignInRequest) (*identityv1.SignInResponse, error) {
	if r.GetPassword() != testPassword {
		return nil, fault.ToStatus(fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "user name or password is wrong"), "redoubt.test", "r1").Err()
	}
	if r.GetUser() == "eve" { // of whom a factor is required, and who has none
		return &identityv1.SignInResponse{Outcome: &identityv1.SignInResponse_Challenge{Challenge: &identityv1.Challenge{State: "eve's state", Enrol: true}}}, nil
	}
	return signedIn(r.GetUser()), nil
}

func signedIn(user string) *identityv1.SignInResponse {
	return &identityv1.SignInResponse{Outcome: &identityv1.SignInResponse_Session{Session: &identityv1.Session{
		AccessToken: testToken, ExpireTime: timestamppb.New(time.Now().Add(time.Hour)), Principal: "users/" + user,
	}}}
}

func (i *site) EnrolSignInFactor(_ context.Context, r *identityv1.EnrolSignInFactorRequest) (*identityv1.EnrolSignInFactorResponse, error) {
	return &identityv1.EnrolSignInFactorResponse{Kind: "totp", Secret: "ABCD", Uri: "otpauth://totp/of-" + strings.ReplaceAll(r.GetState(), " ", "-")}, nil
}

func (i *site) ContinueSignIn(_ context.Context, r *identityv1.ContinueSignInRequest) (*identityv1.SignInResponse, error) {
	if r.GetState() != "eve's state" || r.GetFactor() != "totp" || r.GetResponse() != "123456" {
		return nil, fault.ToStatus(fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "the code is wrong"), "redoubt.test", "r3").Err()
	}
	out := signedIn("eve")
	out.RecoveryCodes = []string{"aaaaa-bbbbb"}
	return out, nil
}

// A2: who needs a factor and has none enrols one while he signs in.
func TestLoginEnrols(t *testing.T) {
	i, s := install(t), newSession(t)
	login := func(stdin string, more ...string) (int, string, string) {
		return s.run(stdin, append([]string{"login", "--server", i.url, "--ca", i.ca, "--user", "eve", "--password-stdin"}, more...)...)
	}
	if code, _, errs := login(testPassword + "\n"); code != app.ExitLocal || !strings.Contains(errs, "a code is asked for") {
		t.Errorf("no code: %d %s", code, errs)
	}
	if code, _, errs := login(testPassword + "\n000000\n123456\n"); code != app.ExitDenied || !strings.Contains(errs, "wrong") {
		t.Errorf("a wrong code: %d %s", code, errs)
	}
	code, out, errs := login(testPassword + "\n123456\n")
	if code != app.ExitOK || !strings.Contains(errs, "otpauth://totp/of-eve's-state") || !strings.Contains(errs, "ABCD") || out != "aaaaa-bbbbb\n" {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	if code, out, errs = login(testPassword+"\n123456\n", "-o", "json"); code != app.ExitOK || strings.Contains(out, "aaaaa") || !strings.Contains(errs, "aaaaa-bbbbb") || strings.Contains(out+errs, testToken) {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
}

func known(ctx context.Context) error {
	if md, _ := metadata.FromIncomingContext(ctx); strings.Join(md.Get("authorization"), "") != "Bearer "+testToken {
		return fault.ToStatus(fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID, "not one of ours"), "redoubt.test", "r2").Err()
	}
	return nil
}

func (i *site) SignOut(ctx context.Context, _ *identityv1.SignOutRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, known(ctx)
}

func (i *site) WhoAmI(ctx context.Context, _ *identityv1.WhoAmIRequest) (*identityv1.WhoAmIResponse, error) {
	return &identityv1.WhoAmIResponse{Principal: "users/ada", DisplayName: "A\x1b[31mda"}, known(ctx)
}

// ListWorkspaces has three pages of one.
func (i *site) ListWorkspaces(_ context.Context, r *workspacev1.ListWorkspacesRequest) (*workspacev1.ListWorkspacesResponse, error) {
	next := map[string]string{"": "b", "b": "c"}[r.GetPageToken()]
	id := map[string]string{"": "one", "b": "two", "c": "three"}[r.GetPageToken()]
	return &workspacev1.ListWorkspacesResponse{Workspaces: []*workspacev1.Workspace{{Name: "subscriptions/s/resourceGroups/g/workspaces/" + id}}, NextPageToken: next}, nil
}

func (i *site) GetWorkspace(_ context.Context, r *workspacev1.GetWorkspaceRequest) (*workspacev1.Workspace, error) {
	return &workspacev1.Workspace{Name: r.GetName()}, nil
}

func install(t *testing.T) *site {
	t.Helper()
	a, err := svid.NewAuthority(spiffeid.RequireTrustDomainFromString("test.local"), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, err := authn.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignServer(key.Public(), nil, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i := &site{url: "https://" + l.Addr().String(), ca: filepath.Join(t.TempDir(), "ca.pem")}
	if err := os.WriteFile(i.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Root().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}}})))
	identityv1.RegisterSignInServiceServer(s, i)
	workspacev1.RegisterResourceServiceServer(s, i)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	i.stop = s.Stop
	return i
}

// A shell completes words by what the installation has, and by nothing, soon, where it does not answer.
func TestCompletion(t *testing.T) {
	i, s := install(t), newSession(t)
	if code, _, errs := s.run(testPassword+"\n", "login", "--server", i.url, "--ca", i.ca, "--user", "ada", "--password-stdin"); code != app.ExitOK {
		t.Fatal(errs)
	}
	const nothing = ":4\n"
	cases := []struct{ args, want string }{
		{"workspace show ", "one\n:4\n"}, // of the first page
		{"workspace show t", nothing},
		{"run list -w o", "one\n:4\n"},
		{"context use 127", strings.TrimPrefix(i.url, "https://") + "\n:4\n"},
		{"run list -o ", "table\njson\nyaml\nnone\n:4\n"},
		{"run show ", nothing}, // no workspace is chosen
		{"workspace show --context nowhere ", nothing},
	}
	try := func(args, want string) {
		t.Helper()
		words := append([]string{"__complete"}, strings.Split(args, " ")...)
		if code, out, _ := s.run("", words...); code != app.ExitOK || out != want {
			t.Errorf("%q: %d %q, want %q", args, code, out, want)
		}
	}
	for _, c := range cases {
		try(c.args, c.want)
	}
	i.stop()
	try("workspace show ", nothing)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, out, errs := s.run("", "completion", shell); code != app.ExitOK || !strings.Contains(out, "__complete") {
			t.Errorf("%s: %d %s", shell, code, errs)
		}
	}
}

// A1: from sign-in to sign-out, with what is kept and what is shown on the way.
func TestSession(t *testing.T) {
	i, s := install(t), newSession(t)
	step := func(want int, stdin string, args ...string) string {
		t.Helper()
		code, out, errs := s.run(stdin, args...)
		if code != want {
			t.Fatalf("%v: %d\n%s%s", args, code, out, errs)
		}
		if strings.Contains(out+errs, testToken) || strings.Contains(out+errs, testPassword) {
			t.Fatalf("%v shows a secret:\n%s%s", args, out, errs)
		}
		return out + errs
	}
	step(app.ExitDenied, "wrong\n", "login", "--server", i.url, "--ca", i.ca, "--user", "ada", "--password-stdin")
	step(app.ExitLocal, "", "whoami") // nothing is kept of a sign-in that failed
	step(app.ExitOK, testPassword+"\n", "login", "--server", i.url, "--ca", i.ca, "--user", "ada", "--password-stdin", "-o", "json", "--debug")
	if err := os.Remove(i.ca); err != nil { // the root is kept, not its path
		t.Fatal(err)
	}
	if got := step(app.ExitOK, "", "whoami", "--debug"); !strings.Contains(got, "users/ada") || strings.Contains(got, "\x1b") || !strings.Contains(got, "debug: ") {
		t.Errorf("got %q", got)
	}
	if got := step(app.ExitOK, "", "whoami", "-o", "json"); !strings.Contains(got, `"principal": "users/ada"`) {
		t.Errorf("got %q", got)
	}
	if got := step(app.ExitOK, "", "whoami", "-o", "yaml"); !strings.HasPrefix(got, "principal: users/ada\n") {
		t.Errorf("got %q", got)
	}
	if got := step(app.ExitOK, "", "whoami", "-o", "none"); got != "" {
		t.Errorf("got %q", got)
	}
	if got := step(app.ExitOK, "", "context", "list", "-o", "yaml"); !strings.Contains(got, "current: true\n") || strings.Contains(got, "CERTIFICATE") {
		t.Errorf("got %q", got)
	}
	if got := step(app.ExitOK, "", "workspace", "list"); strings.Count(got, "/workspaces/") != 3 {
		t.Errorf("got %q", got)
	}
	step(app.ExitOK, "", "workspace", "use", "two")
	if got := step(app.ExitOK, "", "workspace", "show"); !strings.Contains(got, "workspaces/two") {
		t.Errorf("got %q", got)
	}
	step(app.ExitRefused, "", "workspace", "delete", "two", "--yes")
	step(app.ExitLocal, "", "workspace", "delete", "two")
	step(app.ExitLocal, "", "workspace", "show", "four")
	other := install(t)
	step(app.ExitDenied, "", "whoami", "--server", other.url, "--ca", other.ca) // the token stays where it belongs
	s.env["REDOUBT_TOKEN"] = "stale"
	step(app.ExitDenied, "", "whoami")
	delete(s.env, "REDOUBT_TOKEN")
	step(app.ExitTimeout, "", "whoami", "--timeout", "1ns")
	step(app.ExitOK, "", "logout")
	if got := step(app.ExitDenied, "", "whoami"); !strings.Contains(got, "redoubt login") {
		t.Errorf("got %q", got)
	}
}

// ring is a keyring in memory.
type ring map[string]string

func (r ring) Get(_ context.Context, service, account string) (redact.Secret, bool, error) {
	v, ok := r[service+" "+account]
	return redact.FromString(v), ok, nil
}

func (r ring) Set(_ context.Context, service, account string, value redact.Secret) error {
	r[service+" "+account] = value.RevealString()
	return nil
}

func (r ring) Delete(_ context.Context, service, account string) error {
	delete(r, service+" "+account)
	return nil
}

// A1: where there is a keyring a session is in it, and nowhere else; without it, in the file.
func TestSessionInTheKeyring(t *testing.T) {
	i, s := install(t), newSession(t)
	keys := ring{}
	s.ring = keys
	step := func(want int, args ...string) string {
		t.Helper()
		code, out, errs := s.run(testPassword+"\n", args...)
		if code != want || strings.Contains(out+errs, testToken) {
			t.Fatalf("%v: %d\n%s%s", args, code, out, errs)
		}
		return out + errs
	}
	inFile := func() bool {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(s.home, ".config", "redoubt", settings.TokenFile))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), testToken)
	}
	login := []string{"login", "--server", i.url, "--ca", i.ca, "--user", "ada", "--password-stdin"}
	step(app.ExitOK, login...)
	if inFile() || len(keys) != 1 {
		t.Errorf("in the file: %v, in the keyring: %d", inFile(), len(keys))
	}
	step(app.ExitOK, "whoami")
	s.env["REDOUBT_KEYRING"] = "off"
	step(app.ExitDenied, "whoami")
	step(app.ExitOK, login...)
	delete(s.env, "REDOUBT_KEYRING")
	step(app.ExitOK, "whoami")
	if !inFile() {
		t.Error("off, and it is not in the file")
	}
	step(app.ExitOK, login...)
	step(app.ExitOK, "logout")
	if len(keys) != 0 || inFile() {
		t.Error("signed out, and the token is still there")
	}
	s.env["REDOUBT_KEYRING"] = "of"
	if got := step(app.ExitLocal, "whoami"); !strings.Contains(got, "on or off") {
		t.Errorf("got %q", got)
	}
}

func TestPermissionsAreTheSameEachTime(t *testing.T) {
	s := newSession(t)
	code, first, errs := s.run("", "permissions", "-o", "markdown")
	if code != app.ExitOK || !strings.Contains(first, "`redoubt.compute.v1.RunService/SubmitRun`") {
		t.Fatal(code, errs)
	}
	for range 3 {
		if _, again, _ := s.run("", "permissions", "-o", "markdown"); again != first {
			t.Fatal("two runs differ")
		}
	}
	if code, out, _ := s.run("", "permissions", "-o", "yaml"); code != app.ExitOK || !strings.Contains(out, "action: compute/runs/submit\n") {
		t.Errorf("%d %s", code, out)
	}
	if code, out, _ := s.run("", "permissions", "-o", "json"); code != app.ExitOK || !strings.Contains(out, `"action": "compute/runs/submit"`) {
		t.Errorf("%d %s", code, out)
	}
}
