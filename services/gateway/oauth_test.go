package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

func basicAuth(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
}

// TestTokenEndpoint holds the form of RFC 6749 sections 3.2, 5.1 and 5.2.
func TestTokenEndpoint(t *testing.T) {
	refuse := func(err *fault.Error) func() error {
		return func() error { return fault.ToStatus(err, "redoubt."+domain, "r").Err() }
	}
	for name, tc := range map[string]struct {
		body    string
		header  []string
		answer  func() error
		status  int
		code    string // "" for a token
		id, key string // what identity got
	}{
		"in the body":                  {body: "grant_type=client_credentials&client_id=a&client_secret=b", status: 200, id: "a", key: "b"},
		"by basic":                     {body: "grant_type=client_credentials", header: []string{"Authorization", basicAuth("a%3Ab", "c%20d")}, status: 200, id: "a:b", key: "c d"},
		"by basic, named again":        {body: "grant_type=client_credentials&client_id=a", header: []string{"Authorization", basicAuth("a", "b")}, status: 200, id: "a", key: "b"},
		"by both":                      {body: "grant_type=x&client_secret=b", header: []string{"Authorization", basicAuth("a", "b")}, status: 401, code: "invalid_client"},
		"by basic of another":          {body: "grant_type=x&client_id=z", header: []string{"Authorization", basicAuth("a", "b")}, status: 401, code: "invalid_client"},
		"basic that is none":           {body: "grant_type=x", header: []string{"Authorization", "Basic !!!"}, status: 401, code: "invalid_client"},
		"bearer":                       {body: "grant_type=x", header: []string{"Authorization", "Bearer abc"}, status: 401, code: "invalid_client"},
		"as JSON":                      {body: `{"grant_type":"x"}`, header: []string{"Content-Type", "application/json"}, status: 400, code: "invalid_request"},
		"a parameter twice":            {body: "grant_type=x&grant_type=y", status: 400, code: "invalid_request"},
		"too long":                     {body: "grant_type=" + strings.Repeat("x", maxForm), status: 400, code: "invalid_request"},
		"no form":                      {body: "%zz", status: 400, code: "invalid_request"},
		"a wrong secret":               {body: "grant_type=x", answer: refuse(fault.Unauthenticated("no").With("oauth_error", "invalid_client")), status: 401, code: "invalid_client"},
		"a grant that there is not":    {body: "grant_type=x", answer: refuse(fault.InvalidArgument("no").With("oauth_error", "unsupported_grant_type")), status: 400, code: "unsupported_grant_type"},
		"a scope that there is not":    {body: "grant_type=x", answer: refuse(fault.InvalidArgument("no").With("oauth_error", "invalid_scope")), status: 400, code: "invalid_scope"},
		"refused by the contract":      {body: "grant_type=x", answer: refuse(fault.InvalidArgument("no")), status: 400, code: "invalid_request"},
		"too often":                    {body: "grant_type=x", answer: refuse(fault.ResourceExhausted("no").Retry(7 * time.Second)), status: 429, code: "temporarily_unavailable"},
		"a fault within, not its text": {body: "grant_type=x", answer: refuse(fault.Internal(nil, "no")), status: 500, code: "server_error"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			var got *identityv1.IssueTokenRequest
			l.b.issue = func(_ context.Context, r *identityv1.IssueTokenRequest) (*identityv1.TokenResponse, error) {
				got = r
				if tc.answer != nil {
					return nil, tc.answer()
				}
				return &identityv1.TokenResponse{AccessToken: "tok", TokenType: "Bearer", ExpiresIn: durationpb.New(600 * time.Second), Scope: "s"}, nil
			}
			res, body := l.post(tc.body, append([]string{rpc.AddressHeader, "192.0.2.66"}, tc.header...)...)
			var m map[string]any
			if err := json.Unmarshal([]byte(body), &m); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			if res.StatusCode != tc.status {
				t.Fatalf("%d %s", res.StatusCode, body)
			}
			for k, want := range map[string]string{"Cache-Control": "no-store", "Pragma": "no-cache", "Content-Type": "application/json", "X-Content-Type-Options": "nosniff"} {
				if res.Header.Get(k) != want {
					t.Errorf("%s: %q", k, res.Header.Get(k))
				}
			}
			if tc.code != "" {
				if m["error"] != tc.code || m["error_description"] == "" || m["access_token"] != nil {
					t.Errorf("it says %s", body)
				}
				if tc.status == http.StatusUnauthorized && tc.answer != nil && res.Header.Get("WWW-Authenticate") == "" {
					t.Error("it does not say how to authenticate")
				}
				if tc.status == 429 && res.Header.Get("Retry-After") != "7" {
					t.Errorf("Retry-After: %q", res.Header.Get("Retry-After"))
				}
				if tc.answer == nil && got != nil {
					t.Error("identity was asked")
				}
				return
			}
			if m["access_token"] != "tok" || m["token_type"] != "Bearer" || m["expires_in"] != 600.0 || m["scope"] != "s" {
				t.Errorf("it says %s", body)
			}
			if got.GetClientId() != tc.id || got.GetClientSecret() != tc.key {
				t.Errorf("identity got %q %q", got.GetClientId(), got.GetClientSecret())
			}
			if a := l.b.seen().Get(rpc.AddressHeader); len(a) != 1 || a[0] != "127.0.0.1" {
				t.Errorf("the address is %q", a)
			}
		})
	}
	t.Run("parameters in the URL", func(t *testing.T) {
		res, body := newLab(t).http(http.MethodPost, "/oauth2/token?grant_type=x", "grant_type=x", "Content-Type", "application/x-www-form-urlencoded")
		if res.StatusCode != 400 || !strings.Contains(body, "invalid_request") {
			t.Errorf("%d %s", res.StatusCode, body)
		}
	})
	t.Run("GET", func(t *testing.T) {
		if res, _ := newLab(t).http(http.MethodGet, "/oauth2/token", ""); res.StatusCode == 200 {
			t.Error("it answers GET")
		}
	})
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
