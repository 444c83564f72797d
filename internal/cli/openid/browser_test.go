package openid

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/authn"
)

// surfer is a browser, and what is done in it.
type surfer struct {
	f *fake
	q url.Values // of the authorization request
	// statuses of what was answered to the listener.
	statuses []int
}

// code gives a code for the request, or for one that somebody else made.
func (s *surfer) code(of request) string {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	code := "code-" + of.challenge + of.jkt + of.nonce
	s.f.codes[code] = of
	return code
}

func (s *surfer) own() request {
	return request{s.q.Get("code_challenge"), s.q.Get("dpop_jkt"), s.q.Get("nonce"), s.q.Get("redirect_uri")}
}

// answers is the right answer, changed.
func (s *surfer) answers(change func(url.Values)) {
	q := url.Values{"code": {s.code(s.own())}, "state": {s.q.Get("state")}, "iss": {s.f.server.URL}}
	if change != nil {
		change(q)
	}
	s.get(http.MethodGet, s.q.Get("redirect_uri")+"?"+q.Encode(), "")
}

func (s *surfer) get(method, address, host string) {
	req, err := http.NewRequestWithContext(s.f.t.Context(), method, address, http.NoBody)
	if err != nil {
		s.f.t.Error(err)
		return
	}
	req.Host = host
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.statuses = append(s.statuses, 0)
		return
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(res.Body)
	if csp := res.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(string(b), "code-") || res.Header.Get("Referrer-Policy") != "no-referrer" {
		s.f.t.Errorf("the page: %q %s", csp, b)
	}
	s.statuses = append(s.statuses, res.StatusCode)
}

// A1: what reaches the listener, and what comes of it.
func TestBrowser(t *testing.T) {
	set := func(k, v string) func(url.Values) { return func(q url.Values) { q.Set(k, v) } }
	cases := []struct {
		name string
		do   func(s *surfer)
		// what the provider does besides
		f        func(f *fake)
		want     string
		statuses []int
	}{
		{name: "as it should be", do: func(s *surfer) { s.answers(nil) }, statuses: []int{200}},
		{name: "another issuer", do: func(s *surfer) { s.answers(set("iss", "https://evil.example")) }, want: "iss is"},
		{name: "no issuer", do: func(s *surfer) { s.answers(func(q url.Values) { q.Del("iss") }) }, want: "iss is"},
		{name: "an error", do: func(s *surfer) {
			s.answers(func(q url.Values) {
				q.Del("code")
				q.Set("error", "access_denied")
				q.Set("error_description", "no\x1b[31m")
			})
		}, want: "the sign-in was refused: no"},
		{name: "an error beside a code", do: func(s *surfer) { s.answers(set("error", "server_error")) }, want: "cannot answer now"},
		{name: "an error of another issuer", do: func(s *surfer) {
			s.answers(func(q url.Values) {
				q.Set("iss", "https://evil.example")
				q.Set("error", "x")
				q.Set("error_description", "call 555")
			})
		}, want: "iss is"},
		{name: "neither code nor error", do: func(s *surfer) { s.answers(func(q url.Values) { q.Del("code") }) }, want: "neither"},
		{name: "a code of another request", do: func(s *surfer) {
			r := s.own()
			r.challenge = "of-the-thief"
			s.answers(set("code", s.code(r)))
		}, want: errGrant},
		{name: "a code for another key", do: func(s *surfer) {
			r := s.own()
			r.jkt = "of-the-thief"
			s.answers(set("code", s.code(r)))
		}, want: errGrant},
		// PKCE does not notice this one, for the challenge stands in the address: the nonce does.
		{name: "a code for another nonce", do: func(s *surfer) {
			r := s.own()
			r.nonce = "of-the-thief"
			s.answers(set("code", s.code(r)))
		}, want: "nonce"},
		{name: "another state first", do: func(s *surfer) {
			s.answers(set("state", "guessed"))
			s.answers(func(q url.Values) { q.Del("state") })
			s.answers(func(q url.Values) { q.Add("state", q.Get("state")) })
			s.answers(nil)
		}, statuses: []int{400, 400, 400, 200}},
		{name: "a second answer", do: func(s *surfer) {
			s.answers(nil)
			s.answers(set("code", "code-of-the-thief"))
		}, statuses: []int{200, 410}},
		{name: "closed before the code is used", do: func(s *surfer) {
			s.f.refuse = func(string) string { s.get(http.MethodGet, s.q.Get("redirect_uri"), ""); return "" }
			s.answers(nil)
		}, statuses: []int{200, 0}},
		{name: "not a browser's navigation", do: func(s *surfer) {
			at := s.q.Get("redirect_uri")
			s.get(http.MethodPost, at+"?state="+s.q.Get("state"), "")
			s.get(http.MethodGet, at+"?state="+s.q.Get("state"), "evil.example")
			s.get(http.MethodGet, strings.TrimSuffix(at, callback)+"/", "")
			s.answers(nil)
		}, statuses: []int{404, 404, 404, 200}},
		{name: "a token without a key", do: func(s *surfer) { s.answers(nil) }, f: func(f *fake) { f.answer = func(m map[string]any) { m["token_type"] = "Bearer" } }, want: "not bound"},
		{name: "no ID token", do: func(s *surfer) { s.answers(nil) }, f: func(f *fake) { f.answer = func(m map[string]any) { delete(m, "id_token") } }, want: "no ID token"},
		{name: "no refresh token", do: func(s *surfer) { s.answers(nil) }, f: func(f *fake) { f.answer = func(m map[string]any) { delete(m, "refresh_token") } }, want: "no refresh token"},
		{name: "an ID token for another", do: func(s *surfer) { s.answers(nil) }, f: func(f *fake) { f.claims = func(c *authn.IDClaims) { c.Audience = "board" } }, want: "cannot be believed"},
		{name: "an ID token of another", do: func(s *surfer) { s.answers(nil) }, f: func(f *fake) { f.claims = func(c *authn.IDClaims) { c.Issuer = "https://evil.example" } }, want: "cannot be believed"},
		{name: "an ID token that is over", do: func(s *surfer) { s.answers(nil) }, f: func(f *fake) {
			f.claims = func(c *authn.IDClaims) {
				c.IssuedAt, c.Expiry = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
			}
		}, want: "cannot be believed"},
		{name: "an ID token beside another access token", do: func(s *surfer) { s.answers(nil) }, f: func(f *fake) { f.claims = func(c *authn.IDClaims) { c.AccessToken = "another" } }, want: "at_hash"},
		{name: "an ID token beside none", do: func(s *surfer) { s.answers(nil) }, f: func(f *fake) { f.claims = func(c *authn.IDClaims) { c.AccessToken = "" } }, want: "at_hash"},
		{name: "a proof that is not taken", do: func(s *surfer) { s.answers(nil) }, f: func(f *fake) { f.refuse = func(string) string { return errProof } }, want: "clock"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			if c.f != nil {
				c.f(f)
			}
			s := &surfer{f: f}
			got, err := f.must().Browser(t.Context(), "ada", func(_ context.Context, address string) error {
				u, err := url.Parse(address)
				if err != nil {
					return err
				}
				s.q = u.Query()
				if s.q.Get("code_challenge_method") != "S256" || s.q.Get("response_type") != "code" || s.q.Get("login_hint") != "ada" || s.q.Get("dpop_jkt") == "" || len(s.q.Get("state")) < 26 {
					t.Errorf("the request: %v", s.q)
				}
				c.do(s)
				return nil
			})
			refusal(t, err, c.want)
			if err == nil && (got.Subject != "usr_1" || !got.Token.Bound() || got.Token.Refresh == "") {
				t.Errorf("got %+v", got)
			}
			if err != nil && (strings.Contains(err.Error(), "call 555") || got != (Signed{})) {
				t.Errorf("%v, %+v", err, got)
			}
			for i, want := range c.statuses {
				if i >= len(s.statuses) || s.statuses[i] != want {
					t.Fatalf("statuses %v, want %v", s.statuses, c.statuses)
				}
			}
			s.statuses = nil
			if s.answers(nil); s.statuses[0] != 0 {
				t.Errorf("the listener is there still: %v", s.statuses)
			}
		})
	}
	t.Run("nobody", func(t *testing.T) {
		f := newFake(t)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		s := &surfer{f: f}
		_, err := f.must().Browser(ctx, "", func(_ context.Context, address string) error {
			u, err := url.Parse(address)
			s.q = u.Query()
			s.answers(func(q url.Values) { q.Set("state", "guessed") })
			return err
		})
		if !errors.Is(err, context.DeadlineExceeded) || f.times("authorization_code") != 0 {
			t.Errorf("got %v", err)
		}
	})
}
