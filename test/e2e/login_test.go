package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const commandEnv = "REDOUBT_E2E_COMMAND"

// asCommand makes this test binary the command line, in a process of its own, where it was started as one.
func asCommand() {
	if os.Getenv(commandEnv) != "" {
		os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
}

// seat is somebody's settings, whose commands are processes.
type seat struct {
	t   *testing.T
	dir string
	env []string
}

func newSeat(t *testing.T, env ...string) *seat {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), mesh.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	return &seat{t, dir, append([]string{commandEnv + "=1", "HOME=" + dir, "REDOUBT_CONFIG=" + filepath.Join(dir, "config.yaml"), "REDOUBT_KEYRING=off", "PATH="}, env...)}
}

func (s *seat) command(args ...string) *exec.Cmd {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	c := exec.CommandContext(s.t.Context(), self, args...)
	c.Env = s.env
	return c
}

// types runs a command to its end.
func (s *seat) types(code int, stdin string, args ...string) string {
	s.t.Helper()
	c := s.command(args...)
	c.Stdin = strings.NewReader(stdin)
	out, _ := c.CombinedOutput()
	if c.ProcessState.ExitCode() != code {
		s.t.Fatalf("redoubt %s: %d, not %d\n%s", strings.Join(args, " "), c.ProcessState.ExitCode(), code, out)
	}
	return string(out)
}

// signsIn begins a login, gives what it says until the pattern matches, and a function that waits for its end.
func (s *seat) signsIn(pattern string, args ...string) (match string, end func(code int)) {
	s.t.Helper()
	c := s.command(append([]string{"login", "--server", mesh.URL, "--ca", filepath.Join(s.dir, "ca.pem")}, args...)...)
	out, err := c.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	in, said, re := bufio.NewReader(out), "", regexp.MustCompile(pattern)
	for match == "" {
		line, err := in.ReadString('\n')
		said += line
		match = strings.TrimSpace(re.FindString(line))
		if err != nil && match == "" {
			_ = c.Wait()
			s.t.Fatalf("login ended before it said %s:\n%s", pattern, said)
		}
	}
	return match, func(code int) {
		s.t.Helper()
		rest, _ := io.ReadAll(in)
		_ = c.Wait() // the code says it
		if got := c.ProcessState.ExitCode(); got != code {
			s.t.Fatalf("login: %d, not %d\n%s%s", got, code, said, rest)
		}
	}
}

// kept is the session in the file of tokens.
func (s *seat) kept() settings.Token {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, settings.TokenFile))
	if err != nil {
		s.t.Fatal(err)
	}
	var all map[string]settings.Token
	if err := json.Unmarshal(b, &all); err != nil {
		s.t.Fatal(err)
	}
	for _, t := range all {
		return t
	}
	return settings.Token{}
}

// ages makes the access token one that has to be renewed.
func (s *seat) ages() {
	s.t.Helper()
	t := s.kept()
	t.Renew, t.Expires = time.Now().Add(-time.Minute), time.Now().Add(-time.Second)
	d := settings.Open(s.dir)
	f, err := d.Read()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := d.SetToken(s.t.Context(), f.CurrentContext, t); err != nil {
		s.t.Fatal(err)
	}
}

// A1, A3: the command line signs in by the real pages, in a browser, and what it keeps is worth nothing elsewhere.
func TestLoginInABrowser(t *testing.T) {
	s := newSeat(t, "DISPLAY=:0")
	address, end := s.signsIn(`https://\S+/oauth2/authorize\?\S+`)
	p := newPerson(t)
	page, _ := p.visit(address, nil)
	_, to := p.visit(mesh.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "user": {"admin"}, "password": {mesh.Password()}, "action": {"sign-in"}})
	if to == nil || to.Hostname() != "127.0.0.1" {
		t.Fatalf("led to %v", to)
	}
	for _, wrong := range []string{"?state=guessed&code=stolen&iss=" + url.QueryEscape(mesh.URL), ""} {
		if status, _ := fetch(t, to.Scheme+"://"+to.Host+to.Path+wrong); status != http.StatusBadRequest {
			t.Errorf("%q: %d", wrong, status)
		}
	}
	status, h := fetch(t, to.String())
	if status != http.StatusOK || !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("%d %v", status, h)
	}
	end(0)
	if res, err := http.Get(to.String()); err == nil {
		_ = res.Body.Close()
		t.Error("the listener is there still")
	}
	if got := s.types(0, "", "whoami"); !strings.Contains(got, "users/admin") {
		t.Error(got)
	}

	t.Run("what needs more than calls", func(t *testing.T) {
		if got := s.types(0, "", "console"); !strings.Contains(got, "/console/enter?code=") {
			t.Error(got)
		}
		// grpcurl proves no key: the lines have the operator's certificate and no token, and say what to do for one.
		lines := filepath.Join(s.dir, "lines")
		got := s.types(0, "", "doctor", "--grpcurl", "--dir", lines)
		if !strings.Contains(got, "--ask-password") || strings.Contains(got, "authorization") || strings.Contains(got, "WhoAmI") || !strings.Contains(got, " list\n") {
			t.Error(got)
		}
		if _, err := os.Stat(filepath.Join(lines, "token")); err == nil {
			t.Error("a token was written that nobody can send")
		}
		if found, err := filepath.Glob(filepath.Join(lines, "*")); err != nil || len(found) < 3 { // certificate, key, roots
			t.Errorf("written: %v %v", found, err)
		}
	})

	t.Run("a stolen token", func(t *testing.T) {
		token := s.kept()
		key, err := authn.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		other, err := authn.NewProver(key, nil)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := other.Proof("POST", mesh.URL+identityv1.SignInService_WhoAmI_FullMethodName, token.Value, "")
		if err != nil {
			t.Fatal(err)
		}
		for name, md := range map[string]metadata.MD{
			"alone": metadata.Pairs("authorization", "Bearer "+token.Value), "without a proof": metadata.Pairs("authorization", "DPoP "+token.Value),
			"with another key": metadata.Pairs("authorization", "DPoP "+token.Value, "dpop", proof),
		} {
			if _, err := whoAmI(t, md); fault.ReasonOf(fault.FromStatus(err)) != faultv1.Reason_TOKEN_PROOF_INVALID {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := whoAmI(t, s.proven(token)); err != nil {
			t.Errorf("with its key: %v", err)
		}
	})

	t.Run("renewed by many processes at once", func(t *testing.T) {
		for range 2 {
			before := s.kept()
			s.ages()
			var wg sync.WaitGroup
			for range 4 {
				c := s.command("whoami")
				wg.Go(func() {
					if out, err := c.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("users/admin")) {
						t.Errorf("%v\n%s", err, out)
					}
				})
			}
			wg.Wait()
			if after := s.kept(); after.Refresh == before.Refresh || after.Value == before.Value || after.Key != before.Key {
				t.Error("nothing was renewed, or another key was taken")
			}
		}
	})

	t.Run("logout", func(t *testing.T) {
		token := s.kept()
		proven := s.proven(token)
		s.types(0, "", "logout")
		if s.kept() != (settings.Token{}) {
			t.Error("key or tokens are kept")
		}
		if _, err := whoAmI(t, proven); fault.ReasonOf(fault.FromStatus(err)) != faultv1.Reason_TOKEN_REVOKED {
			t.Errorf("the access token after logout: %v", err)
		}
		if got := s.types(3, "", "whoami"); !strings.Contains(got, "redoubt login") {
			t.Error(got)
		}
	})
}

// A1: who was not expected is not kept, nor is his session.
func TestLoginOfAnotherThanExpected(t *testing.T) {
	s := newSeat(t, "DISPLAY=:0")
	address, end := s.signsIn(`https://\S+/oauth2/authorize\?\S+`, "--user", "eve")
	p := newPerson(t)
	page, _ := p.visit(address, nil)
	_, to := p.visit(mesh.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "user": {"admin"}, "password": {mesh.Password()}, "action": {"sign-in"}})
	fetch(t, to.String())
	end(1)
	if _, err := os.Stat(filepath.Join(s.dir, settings.TokenFile)); err == nil {
		t.Error("something is kept")
	}
}

// A1, A3: without a display, by a browser elsewhere.
func TestLoginByDevice(t *testing.T) {
	s := newSeat(t)
	code, end := s.signsIn(`(?m)^  [B-Z]{4}-[B-Z]{4}$`)
	p := newPerson(t)
	page, _ := p.visit(mesh.URL+"/oauth2/device", nil)
	page, _ = p.visit(mesh.URL+"/oauth2/device", url.Values{"request": {p.request(page)}, "user_code": {code}})
	page, _ = p.visit(mesh.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "user": {"admin"}, "password": {mesh.Password()}, "action": {"sign-in"}})
	p.visit(mesh.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "action": {"continue"}})
	end(0)
	if got := s.types(0, "", "whoami"); !strings.Contains(got, "users/admin") {
		t.Error(got)
	}
	s.ages()
	s.types(0, "", "whoami")
	s.types(0, "", "logout")
}

// A1, A3: a program signs in by its secret, and its token is bound too.
func TestLoginOfAProgram(t *testing.T) {
	directory := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t)))
	sp, err := directory.CreateServicePrincipal(t.Context(), &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "login-ci"})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := directory.AddServicePrincipalSecret(t.Context(), &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	s := newSeat(t)
	in := []string{"login", "--server", mesh.URL, "--ca", filepath.Join(s.dir, "ca.pem"), "--client-id", sp.GetUid(), "--client-secret-stdin"}
	s.types(3, "wrong\n", in...)
	s.types(0, secret.GetSecret()+"\n", in...)
	if got := s.types(0, "", "whoami"); !strings.Contains(got, sp.GetName()) {
		t.Error(got)
	}
	if _, err := whoAmI(t, metadata.Pairs("authorization", "Bearer "+s.kept().Value)); fault.ReasonOf(fault.FromStatus(err)) != faultv1.Reason_TOKEN_PROOF_INVALID {
		t.Errorf("the token alone: %v", err)
	}
	s.types(0, "", "logout")
	s.types(3, "", "whoami")
}

// proven is what a call with the session's own key carries.
func (s *seat) proven(token settings.Token) metadata.MD {
	s.t.Helper()
	der, err := base64.StdEncoding.DecodeString(token.Key)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := authn.ParseKey(redact.New(der))
	if err != nil {
		s.t.Fatal(err)
	}
	own, err := authn.NewProver(key, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	proof, err := own.Proof("POST", mesh.URL+identityv1.SignInService_WhoAmI_FullMethodName, token.Value, "")
	if err != nil {
		s.t.Fatal(err)
	}
	return metadata.Pairs("authorization", "DPoP "+token.Value, "dpop", proof)
}

func whoAmI(t *testing.T, md metadata.MD) (*identityv1.WhoAmIResponse, error) {
	t.Helper()
	return identityv1.NewSignInServiceClient(mesh.Dial(t, "")).WhoAmI(metadata.NewOutgoingContext(t.Context(), md), &identityv1.WhoAmIRequest{})
}

func fetch(t *testing.T, address string) (int, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode, res.Header
}
