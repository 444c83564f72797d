package console

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const home = "https://redoubt.test:7443"

// services answers every call of the console by method, and keeps what came with it.
type services struct {
	answers map[string]func(proto.Message) (proto.Message, error)
	came    map[string]metadata.MD
}

func (s *services) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	md, _ := metadata.FromOutgoingContext(ctx)
	md = md.Copy()
	for _, o := range opts {
		if by, ok := o.(grpc.PerRPCCredsCallOption); ok {
			extra, err := by.Creds.GetRequestMetadata(ctx)
			if err != nil {
				return err
			}
			for k, v := range extra {
				md.Append(k, v)
			}
		}
	}
	s.came[method] = md
	answer, ok := s.answers[method]
	if !ok {
		return nil // an answer without anything in it
	}
	out, err := answer(args.(proto.Message))
	if err != nil {
		return fault.ToStatus(err, "redoubt.test", "req-1").Err()
	}
	proto.Merge(reply.(proto.Message), out)
	return nil
}

func (*services) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, fault.Unavailable("there are no streams here")
}

// newConsole is a console in front of them, and the cookie of somebody whose session is bound to a key.
func newConsole(t *testing.T) (*Console, *services, *http.Cookie) {
	t.Helper()
	s := &services{came: make(map[string]metadata.MD), answers: map[string]func(proto.Message) (proto.Message, error){
		identityv1.SignInService_WhoAmI_FullMethodName: func(proto.Message) (proto.Message, error) {
			return &identityv1.WhoAmIResponse{Principal: "users/erin"}, nil
		},
		workspacev1.AccessService_Explain_FullMethodName: func(proto.Message) (proto.Message, error) { return &workspacev1.ExplainResponse{Allowed: true}, nil },
	}}
	peers := make(map[string]grpc.ClientConnInterface)
	for _, p := range []string{"identity", "workspace", "compute", "telemetry", "inference"} {
		peers[p] = s
	}
	c, err := New(Config{Peers: peers, PublicURL: home, Now: time.Now, Context: func(r *http.Request) context.Context {
		md := metadata.MD{}
		if v := r.Header.Values("Dpop"); len(v) > 0 { // as package onward passes it
			md["dpop"] = v
		}
		return metadata.NewOutgoingContext(r.Context(), md)
	}})
	if err != nil {
		t.Fatal(err)
	}
	prover, key, err := authn.NewHeldProver(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, s, &http.Cookie{Name: cookieName, Value: session{token: "a.b.c", key: key, prover: prover}.cookie()}
}

func ask(c *Console, method, path string, form url.Values, cookie *http.Cookie, headers ...string) *http.Response {
	r := httptest.NewRequest(method, home+path, strings.NewReader(form.Encode()))
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	if cookie != nil {
		r.AddCookie(cookie)
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	return w.Result()
}

// Each call carries the token, and a proof of the session's own key for this method.
func TestCallsCarryProofs(t *testing.T) {
	c, s, cookie := newConsole(t)
	if res := ask(c, http.MethodGet, "/console/account/", nil, cookie, "Dpop", "forged"); res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	check, err := authn.NewProofChecker(authn.ProofConfig{})
	if err != nil {
		t.Fatal(err)
	}
	kept, ok := sessionOf(&http.Request{Header: http.Header{"Cookie": {cookie.String()}}}, time.Now)
	if !ok || kept.prover == nil {
		t.Fatal("the cookie cannot be read")
	}
	jkt := kept.prover.Thumbprint()
	for _, method := range []string{
		identityv1.AccountService_ListSessions_FullMethodName, identityv1.FactorService_ListFactors_FullMethodName, identityv1.SignInService_WhoAmI_FullMethodName,
	} {
		md := s.came[method]
		if len(md["dpop"]) != 1 || len(md["authorization"]) != 1 || md["authorization"][0] != "DPoP a.b.c" {
			t.Errorf("%s came with %v", method, md)
			continue
		}
		if err := check.Check(md["dpop"][0], "POST", home+method, "a.b.c", jkt); err != nil {
			t.Errorf("%s: %v", method, err)
		}
	}
	// One that joined the command line's has a token alone.
	ask(c, http.MethodGet, "/console/account/", nil, &http.Cookie{Name: cookieName, Value: "d.e.f"})
	if md := s.came[identityv1.SignInService_WhoAmI_FullMethodName]; len(md["dpop"]) != 0 || md["authorization"][0] != "Bearer d.e.f" {
		t.Errorf("a session without a key came with %v", md)
	}
}

// What asks for a fresh sign-in sends the browser to the provider, and back to the page that the form stood on (RFC 9470).
func TestSteppingUp(t *testing.T) {
	c, s, cookie := newConsole(t)
	s.answers[identityv1.DirectoryService_CreateUserCode_FullMethodName] = func(proto.Message) (proto.Message, error) {
		return nil, fault.New(codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED, "sign in again").With("max_age", "900").With("acr_values", "urn:redoubt:acr:mfa")
	}
	res := ask(c, http.MethodPost, "/console/users/frank/code", url.Values{}, cookie, "Origin", home)
	if res.StatusCode != http.StatusSeeOther || len(res.Cookies()) != 0 {
		t.Fatalf("%s %v", res.Status, res.Cookies())
	}
	at, err := url.Parse(res.Header.Get("Location"))
	if err != nil || at.Path != beginPath || at.Query().Get("max_age") != "900" || at.Query().Get("to") != "/console/users/frank?done=fresh" {
		t.Fatalf("it leads to %q %v", at, err)
	}
	res = ask(c, http.MethodGet, at.String(), nil, cookie)
	to, err := url.Parse(res.Header.Get("Location"))
	if err != nil || res.StatusCode != http.StatusSeeOther || !strings.HasPrefix(to.String(), home+"/oauth2/authorize?") {
		t.Fatalf("%s to %q", res.Status, to)
	}
	for name, want := range map[string]string{"max_age": "900", "client_id": clientID, "redirect_uri": home + answerPath, "response_type": "code", "scope": "redoubt", "code_challenge_method": "S256"} {
		if got := to.Query().Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, secret := range []string{"code_verifier"} {
		if to.Query().Has(secret) {
			t.Errorf("%s stands in the URL", secret)
		}
	}
	if res := ask(c, http.MethodGet, beginPath+"?max_age=x", nil, cookie); res.StatusCode != http.StatusBadRequest {
		t.Errorf("max_age=x: %s", res.Status)
	}
}

func TestPathsOfOurs(t *testing.T) {
	for path, want := range map[string]string{
		"/console/": "/console/", "/console/users/?page=x": "/console/users/?page=x", "": Prefix, "/": Prefix, "//x/console/": Prefix, "https://x/console/": Prefix,
		"/consolex/": Prefix, "/console/../x": Prefix, "/console/%2e%2e/x": Prefix, "/console/\\x": Prefix, "/console/\nx": Prefix, "/console/" + strings.Repeat("x", 2000): Prefix,
	} {
		if got := here(path); got != want {
			t.Errorf("here(%.40q) = %q, want %q", path, got, want)
		}
	}
}

func TestNamesArePlain(t *testing.T) {
	for s, want := range map[string]string{
		"The erin": "The erin", "a\u202eb": "a[U+202E]b", "\u2066x\u2069": "[U+2066]x[U+2069]", "a\u0000\nb": "a[U+0000][U+000A]b", "\u200b": "[U+200B]", "\xff": "\ufffd",
		"Ерин": "Ерин", strings.Repeat("x", 500): strings.Repeat("x", mostShown) + "…",
	} {
		if got := plain(s); got != want {
			t.Errorf("plain(%.40q) = %q, want %q", s, got, want)
		}
	}
}

// A cookie that is none, or half of one, is no session.
func TestBrokenCookies(t *testing.T) {
	c, _, cookie := newConsole(t)
	key, _, _ := strings.Cut(cookie.Value, between)
	for name, value := range map[string]string{"no key": between + "a.b.c", "no token": key + between, "half a key": key[:10] + between + "a.b.c", "a key of zeros": strings.Repeat("A", 43) + between + "a.b.c"} {
		if res := ask(c, http.MethodGet, "/console/account/", nil, &http.Cookie{Name: cookieName, Value: value}); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %s", name, res.Status)
		}
	}
	if res := ask(c, http.MethodGet, "/console/users/erin", nil, nil); res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != toSignIn("/console/users/erin", "") {
		t.Errorf("without a cookie: %s %s", res.Status, res.Header.Get("Location"))
	}
}
