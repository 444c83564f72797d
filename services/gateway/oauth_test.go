package gateway

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/oauthwire"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// A1: the gateway carries requests to the provider as they are, and its answers back; it decides nothing.
func TestCarry(t *testing.T) {
	l := newLab(t)
	var got *identityv1.Exchange
	l.b.token = func(_ context.Context, r *identityv1.RequestTokenRequest) (*identityv1.Page, error) {
		got = r.GetHttp()
		return &identityv1.Page{
			Status: 201, ContentType: "text/html; charset=utf-8", Body: []byte("page"), Location: "https://app.example/?code=1", ContentSecurityPolicy: "default-src 'none'", Cookie: "rdb_1",
		}, nil
	}
	res, body := l.http(http.MethodPost, "/oauth2/token?a=1&a=%zz", "b=2&b=2", "Content-Type", "x/y", "Authorization", "Basic abc", "DPoP", "proof",
		"Cookie", "other=1; __Host-redoubt-login=rdb_0", "Origin", "https://o", "Sec-Fetch-Site", "none", rpc.AddressHeader, "192.0.2.66")
	if got.GetMethod() != "POST" || got.GetQuery() != "a=1&a=%zz" || string(got.GetBody()) != "b=2&b=2" || got.GetContentType() != "x/y" || got.GetAuthorization() != "Basic abc" ||
		got.GetDpop() != "proof" || got.GetCookie() != "rdb_0" || got.GetOrigin() != "https://o" || got.GetSecFetchSite() != "none" {
		t.Errorf("identity got %v", got)
	}
	if a := l.b.seen().Get(rpc.AddressHeader); len(a) != 1 || a[0] != "127.0.0.1" {
		t.Errorf("the address is %q", a)
	}
	if len(l.b.seen().Get("authorization")) != 0 {
		t.Error("what is for the endpoint went along as a caller's own token")
	}
	if res.StatusCode != 201 || body != "page" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	for k, want := range map[string]string{
		"Location": "https://app.example/?code=1", "Content-Security-Policy": "default-src 'none'", "Cache-Control": "no-store", "Pragma": "no-cache",
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
		"Set-Cookie": "__Host-redoubt-login=rdb_1; Path=/; HttpOnly; Secure; SameSite=Lax",
	} {
		if res.Header.Get(k) != want {
			t.Errorf("%s: %q", k, res.Header.Get(k))
		}
	}
}

// TestCarryRefuses holds the form of RFC 6749 section 5.2.
func TestCarryRefuses(t *testing.T) {
	refuse := func(err *fault.Error) error { return fault.ToStatus(err, "redoubt."+domain, "r").Err() }
	for name, tc := range map[string]struct {
		body   string
		header []string
		err    error
		status int
		code   string
		asked  bool
	}{
		"too long":                     {body: strings.Repeat("x", 64<<10+1), status: 400, code: "invalid_request"},
		"a wrong secret":               {err: refuse(fault.Unauthenticated("no").With("oauth_error", "invalid_client")), status: 401, code: "invalid_client", asked: true},
		"a wrong token":                {err: refuse(fault.Unauthenticated("no").With("oauth_error", "invalid_token")), status: 401, code: "invalid_token", asked: true},
		"a token for less":             {err: refuse(fault.Unauthenticated("no").With("oauth_error", "insufficient_scope")), status: 403, code: "insufficient_scope", asked: true},
		"a grant that there is not":    {err: refuse(fault.InvalidArgument("no").With("oauth_error", "unsupported_grant_type")), status: 400, code: "unsupported_grant_type", asked: true},
		"refused by the contract":      {err: refuse(fault.InvalidArgument("no")), status: 400, code: "invalid_request", asked: true},
		"too often":                    {err: refuse(fault.ResourceExhausted("no").Retry(7 * time.Second)), status: 429, code: "temporarily_unavailable", asked: true},
		"a fault within, not its text": {err: refuse(fault.Internal(nil, "no")), status: 500, code: "server_error", asked: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			asked := false
			l.b.token = func(context.Context, *identityv1.RequestTokenRequest) (*identityv1.Page, error) {
				asked = true
				return nil, tc.err
			}
			res, body := l.post(tc.body, tc.header...)
			var m map[string]any
			if err := json.Unmarshal([]byte(body), &m); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			if res.StatusCode != tc.status || m["error"] != tc.code || m["error_description"] == "" || m["access_token"] != nil || asked != tc.asked {
				t.Errorf("%d %s, asked %v", res.StatusCode, body, asked)
			}
			if res.Header.Get("Cache-Control") != "no-store" {
				t.Error("a refusal may be kept")
			}
			if tc.status == 401 && res.Header.Get("WWW-Authenticate") == "" {
				t.Error("it does not say how to authenticate")
			}
			if tc.status == 429 && res.Header.Get("Retry-After") != "7" {
				t.Errorf("Retry-After: %q", res.Header.Get("Retry-After"))
			}
		})
	}
	for name, header := range map[string]http.Header{
		"two authorizations": {"Authorization": {"Basic a", "Basic b"}}, "two proofs": {"Dpop": {"a", "b"}}, "two types": {"Content-Type": {"a/b", "c/d"}},
		"two cookies": {"Cookie": {"__Host-redoubt-login=a; __Host-redoubt-login=b"}}, "two origins": {"Origin": {"https://a", "https://b"}},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/oauth2/token", strings.NewReader(""))
		ok(t, err)
		r.Header = header
		if x, err := oauthwire.Read(nil, r, providerCookie); err == nil {
			t.Errorf("%s: passed on as %v", name, x)
		}
	}
	if res, _ := newLab(t).http(http.MethodGet, "/oauth2/token", ""); res.StatusCode != 404 {
		t.Errorf("GET of the token endpoint: %d", res.StatusCode)
	}
}

func TestDocuments(t *testing.T) {
	l := newLab(t)
	for path, want := range map[string]string{
		"/.well-known/openid-configuration": `{"issuer":"x"}`, "/.well-known/oauth-authorization-server": `{"issuer":"x"}`, "/oauth2/keys": `{"keys":[]}`,
	} {
		res, body := l.http(http.MethodGet, path, "")
		if res.StatusCode != 200 || body != want || res.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
	}
}
