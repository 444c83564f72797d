package openid

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// fake is a provider that does what it should, but for what a test has changed.
type fake struct {
	t      *testing.T
	server *httptest.Server
	signer *authn.Signer
	public *ecdsa.PublicKey
	proofs *authn.ProofChecker

	// What a test changes.
	describe func(map[string]any)
	device   func(map[string]any)
	answer   func(map[string]any)             // an answer of the token endpoint that gives tokens
	claims   func(*authn.IDClaims)            // of an ID token
	refuse   func(grant string) (code string) // before anything is done; "" goes on
	nonce    func() string                    // that a proof has to have; "" is none

	off atomic.Int64 // of its clock and the command line's

	mu      sync.Mutex
	codes   map[string]request
	refresh string // that is good now
	count   map[string]int
	used    int // of tokens made
}

// request is what an authorization request bound a code to.
type request struct{ challenge, jkt, nonce, redirect string }

func newFake(t *testing.T) *fake {
	t.Helper()
	key, err := authn.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, public: &key.PublicKey, codes: make(map[string]request), count: make(map[string]int)}
	if f.signer, err = authn.NewSigner(key, "k1"); err != nil {
		t.Fatal(err)
	}
	f.server = httptest.NewTLSServer(f)
	t.Cleanup(f.server.Close)
	if f.proofs, err = authn.NewProofChecker(authn.ProofConfig{Now: f.now}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fake) now() time.Time { return time.Now().Add(time.Duration(f.off.Load())) }

func (f *fake) context() client.Context {
	return client.Context{Server: f.server.URL, CAPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw})}
}

func (f *fake) find() (*Provider, error) {
	return Find(f.t.Context(), f.context(), redact.Secret{}, f.now)
}

func (f *fake) must() *Provider {
	f.t.Helper()
	p, err := f.find()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(p.Close)
	return p
}

func (f *fake) times(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[what]
}

// ServeHTTP implements http.Handler.
func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := f.server.URL
	f.count[r.URL.Path]++
	switch r.URL.Path {
	case wellKnown:
		m := map[string]any{
			"issuer": at, "authorization_endpoint": at + "/authorize", "token_endpoint": at + "/token", "jwks_uri": at + "/keys", "revocation_endpoint": at + "/revoke",
			"device_authorization_endpoint": at + "/device", "code_challenge_methods_supported": []string{"S256"}, "dpop_signing_alg_values_supported": []string{"ES256"},
		}
		if f.describe != nil {
			f.describe(m)
		}
		write(w, http.StatusOK, m)
		return
	case "/keys":
		b, err := authn.RenderJWKS(map[string]*ecdsa.PublicKey{"k1": f.public})
		if err != nil {
			f.t.Error(err)
		}
		_, _ = w.Write(b)
		return
	}
	if r.ParseForm() != nil {
		write(w, http.StatusBadRequest, map[string]any{"error": "invalid_request"})
		return
	}
	if f.nonce != nil {
		want := f.nonce()
		w.Header().Set("DPoP-Nonce", want)
		if !strings.Contains(payload(r.Header.Get("DPoP")), `"nonce":"`+want+`"`) {
			f.count["asked for a nonce"]++
			write(w, http.StatusBadRequest, map[string]any{"error": errNonce})
			return
		}
	}
	jkt, err := f.proofs.Bind(r.Header.Get("DPoP"), r.Method, at+r.URL.Path)
	if err != nil {
		write(w, http.StatusBadRequest, map[string]any{"error": errProof, "error_description": fault.Describe(err).Message()})
		return
	}
	switch r.URL.Path {
	case "/token":
		f.token(w, r, jkt)
	case "/device":
		m := map[string]any{"device_code": "device", "user_code": "BCDF-GHJK", "verification_uri": at + "/device", "expires_in": 600, "interval": 5}
		if f.device != nil {
			f.device(m)
		}
		write(w, http.StatusOK, m)
	case "/revoke":
		if r.PostForm.Get("token") == f.refresh {
			f.refresh = ""
		}
		w.WriteHeader(http.StatusOK)
	default:
		http.NotFound(w, r)
	}
}

func (f *fake) token(w http.ResponseWriter, r *http.Request, jkt string) {
	q := r.PostForm
	grant := q.Get("grant_type")
	f.count[grant]++
	no := func(code string) {
		status := http.StatusBadRequest
		if code == "temporarily_unavailable" {
			status = http.StatusServiceUnavailable
		}
		write(w, status, map[string]any{"error": code, "error_description": "the provider says \x1b[31m" + code})
	}
	if f.refuse != nil {
		if code := f.refuse(grant); code != "" {
			no(code)
			return
		}
	}
	nonce := ""
	switch grant {
	case "authorization_code":
		sum := sha256.Sum256([]byte(q.Get("code_verifier")))
		of, ok := f.codes[q.Get("code")]
		delete(f.codes, q.Get("code"))
		if !ok || of.challenge != base64.RawURLEncoding.EncodeToString(sum[:]) || of.jkt != jkt || of.redirect != q.Get("redirect_uri") {
			no(errGrant)
			return
		}
		nonce = of.nonce
	case "refresh_token":
		if f.refresh == "" || q.Get("refresh_token") != f.refresh {
			f.refresh = "" // the family dies, at once: there is no moment of grace here
			no(errGrant)
			return
		}
	case grantDevice:
		if q.Get("device_code") != "device" {
			no(errGrant)
			return
		}
	case "client_credentials":
		if q.Get("client_secret") != "open" {
			no("invalid_client")
			return
		}
	}
	f.used++
	access := "access-" + strconv.Itoa(f.used)
	out := map[string]any{"access_token": access, "token_type": "DPoP", "expires_in": 600}
	if grant != "client_credentials" {
		f.refresh = "refresh-" + strconv.Itoa(f.used)
		out["refresh_token"] = f.refresh
		now := f.now()
		c := authn.IDClaims{Issuer: f.server.URL, Subject: "usr_1", Audience: ClientID, IssuedAt: now, Expiry: now.Add(time.Minute), Nonce: nonce, AccessToken: access}
		if f.claims != nil {
			f.claims(&c)
		}
		id, err := f.signer.MintID(c)
		if err != nil {
			f.t.Error(err)
		}
		out["id_token"] = id
	}
	if f.answer != nil {
		f.answer(out)
	}
	write(w, http.StatusOK, out)
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// payload is the middle part of a JWS.
func payload(jws string) string {
	parts := strings.Split(jws, ".")
	if len(parts) != 3 {
		return ""
	}
	b, _ := base64.RawURLEncoding.DecodeString(parts[1])
	return string(b)
}

// A1: nothing is begun with a provider that is another, or that does not protect codes and tokens.
func TestFindRefuses(t *testing.T) {
	for _, c := range []struct {
		name     string
		describe func(map[string]any)
		want     string
	}{
		{"as it should be", func(map[string]any) {}, ""},
		{"another issuer", func(m map[string]any) { m["issuer"] = "https://evil.example" }, "calls itself https://evil.example"},
		{"no issuer", func(m map[string]any) { delete(m, "issuer") }, "calls itself"},
		{"no PKCE", func(m map[string]any) { delete(m, "code_challenge_methods_supported") }, "PKCE"},
		{"PKCE by plain alone", func(m map[string]any) { m["code_challenge_methods_supported"] = []string{"plain"} }, "PKCE"},
		{"no DPoP", func(m map[string]any) { delete(m, "dpop_signing_alg_values_supported") }, "DPoP"},
		{"tokens elsewhere", func(m map[string]any) { m["token_endpoint"] = "https://evil.example/token" }, "elsewhere"},
		{"pages without TLS", func(m map[string]any) {
			m["authorization_endpoint"] = strings.Replace(m["authorization_endpoint"].(string), "https", "http", 1)
		}, "elsewhere"},
		{"no device endpoint", func(m map[string]any) { delete(m, "device_authorization_endpoint") }, "elsewhere"},
		{"keys elsewhere", func(m map[string]any) {
			m["jwks_uri"] = "https://user@" + strings.TrimPrefix(m["jwks_uri"].(string), "https://")
		}, "elsewhere"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			f.describe = c.describe
			_, err := f.find()
			refusal(t, err, c.want)
		})
	}
	t.Run("a certificate of another", func(t *testing.T) {
		f := newFake(t)
		at := f.context()
		at.Server = strings.Replace(at.Server, "127.0.0.1", "localhost", 1) // which it does not name
		_, err := Find(t.Context(), at, redact.Secret{}, f.now)
		refusal(t, err, "certificate")
	})
}

// refusal wants an error that has the text, or none where want is "".
func refusal(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case (err == nil) != (want == ""):
		t.Fatalf("got %v, want %q", err, want)
	case err != nil && !strings.Contains(err.Error(), want):
		t.Fatalf("got %q, want %q in it", err, want)
	case err != nil && strings.ContainsRune(err.Error(), '\x1b'):
		t.Fatalf("%q steers the terminal", err)
	}
}

// A1: a server that wants its nonce in proofs gets it, once for each request.
func TestNonces(t *testing.T) {
	for _, c := range []struct {
		name  string
		nonce func(n int) string
		asked int
		want  string
	}{
		{"one that stays", func(int) string { return "n1" }, 1, ""},
		{"another each time", func(n int) string { return "n" + strconv.Itoa(n) }, 2, errNonce},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			n := 0
			f.nonce = func() string { n++; return c.nonce(n) }
			p := f.must()
			_, err := p.Program(t.Context(), "spn_1", redact.FromString("open"))
			refusal(t, err, c.want)
			if got := f.times("asked for a nonce"); got != c.asked {
				t.Errorf("the server had to ask %d times", got)
			}
			if c.want != "" {
				return
			}
			if _, err := p.Program(t.Context(), "spn_1", redact.FromString("open")); err != nil || f.times("asked for a nonce") != c.asked {
				t.Errorf("the nonce was not kept: %v", err)
			}
		})
	}
}

// A1: a program's token is bound too; what is not bound is not taken.
func TestProgram(t *testing.T) {
	f := newFake(t)
	p := f.must()
	tok, err := p.Program(t.Context(), "spn_1", redact.FromString("open"))
	if err != nil || !tok.Bound() || tok.Refresh != "" || tok.Value == "" || !tok.Expires.After(time.Now()) {
		t.Fatalf("%+v %v", tok, err)
	}
	_, err = p.Program(t.Context(), "spn_1", redact.FromString("wrong"))
	refusal(t, err, "invalid_client")
	for name, answer := range map[string]func(map[string]any){
		"bearer":  func(m map[string]any) { m["token_type"] = "Bearer" },
		"no type": func(m map[string]any) { delete(m, "token_type") },
		"over":    func(m map[string]any) { m["expires_in"] = -1 },
		"no end":  func(m map[string]any) { delete(m, "expires_in") },
	} {
		f.answer = answer
		if tok, err := p.Program(t.Context(), "spn_1", redact.FromString("open")); err == nil || tok != (settings.Token{}) {
			t.Errorf("%s: %+v", name, tok)
		}
	}
}

// A1: the device grant waits as it is told.
func TestDevice(t *testing.T) {
	for _, c := range []struct {
		name  string
		codes []string // of the polls, one after the other
		waits []int    // seconds
		want  string
	}{
		{"at once", nil, []int{5}, ""},
		{"later", []string{errPending, errPending}, []int{5, 5, 5}, ""},
		{"slower", []string{errSlowDown, errPending, errSlowDown}, []int{5, 10, 10, 15}, ""},
		{"away", []string{"temporarily_unavailable"}, []int{5, 10}, ""},
		{"refused", []string{errPending, "access_denied"}, []int{5, 5}, "refused"},
		{"too late", []string{"expired_token"}, []int{5}, "in time"},
		{"another proof", []string{errProof}, []int{5}, "clock"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			polls := 0
			f.refuse = func(string) string {
				polls++
				if polls <= len(c.codes) {
					return c.codes[polls-1]
				}
				return ""
			}
			var waits []int
			shown := ""
			s, err := f.must().Device(t.Context(), func(_, code string, _ time.Duration) { shown = code }, func(_ context.Context, d time.Duration) error {
				waits = append(waits, int(d/time.Second))
				return nil
			})
			refusal(t, err, c.want)
			if err == nil && (s.Subject != "usr_1" || !s.Token.Bound() || s.Token.Refresh == "") {
				t.Errorf("got %+v", s)
			}
			if shown != "BCDF-GHJK" || len(waits) != len(c.waits) {
				t.Fatalf("code %q, waits %v", shown, waits)
			}
			for i := range waits {
				if waits[i] != c.waits[i] {
					t.Fatalf("waits %v, want %v", waits, c.waits)
				}
			}
		})
	}
	t.Run("its end, here", func(t *testing.T) {
		f := newFake(t)
		f.refuse = func(string) string { return errPending }
		p := f.must()
		var off time.Duration
		p.now = func() time.Time { return time.Now().Add(off) }
		_, err := p.Device(t.Context(), func(string, string, time.Duration) {}, func(context.Context, time.Duration) error { off += time.Minute; return nil })
		refusal(t, err, "in time")
		if n := f.times(grantDevice); n < 5 || n > 10 {
			t.Errorf("asked %d times within ten minutes", n)
		}
	})
}

// A1: a person is led to this installation, by a code that steers no terminal.
func TestDeviceRefuses(t *testing.T) {
	for name, device := range map[string]func(map[string]any){
		"elsewhere":      func(m map[string]any) { m["verification_uri"] = "https://evil.example/device" },
		"steers":         func(m map[string]any) { m["user_code"] = "\x1b[31mBCDF" },
		"a long code":    func(m map[string]any) { m["user_code"] = strings.Repeat("B", maxUserCode+1) },
		"no code":        func(m map[string]any) { delete(m, "user_code") },
		"no device code": func(m map[string]any) { delete(m, "device_code") },
	} {
		f := newFake(t)
		f.device = device
		_, err := f.must().Device(t.Context(), func(at, code string, _ time.Duration) { t.Errorf("%s: %s %s was shown", name, at, code) },
			func(context.Context, time.Duration) error { return nil })
		refusal(t, err, "cannot be used")
	}
}
