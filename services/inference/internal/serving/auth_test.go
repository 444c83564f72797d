package serving

import (
	"crypto/sha256"
	"net/http"
	"strings"
	"testing"
	"time"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

// paths are one of each thing below an endpoint that answers by HTTP.
var paths = []struct{ method, path, body string }{
	{"POST", "score", "{}"},
	{"GET", "swagger.json", ""},
	{"GET", "", ""},
	{"GET", "nothing", ""},
}

// TestCredentials is the table of A5: what opens an endpoint of each form, and what who is refused reads.
func TestCredentials(t *testing.T) {
	l, _ := serving(t, echo)
	now := time.Now()
	set := func(auth inferencev1.Endpoint_Auth, own, others []Credential) {
		e := simple("ep_1", "run_1")
		e.Auth, e.Credentials, e.Others = auth, own, others
		l.Set(e)
	}
	keys := []Credential{key("primary", "key-primary"), key("secondary", "key-secondary")}
	token := Credential{Hash: sha256.Sum256([]byte("token")), Label: "token", Principal: "usr_1", Expires: now.Add(time.Hour)}
	over := Credential{Hash: sha256.Sum256([]byte("over")), Label: "token", Principal: "usr_1", Expires: now.Add(-time.Second)}
	other := simple("ep_2", "run_1")
	other.Credentials = []Credential{key("others", "key-primary")}
	l.Set(other)
	many := []string{"Bearer primary", "Bearer primary"}

	key, tok, none := inferencev1.Endpoint_AUTH_KEY, inferencev1.Endpoint_AUTH_TOKEN, inferencev1.Endpoint_AUTH_NONE
	for _, c := range []struct {
		name   string
		auth   inferencev1.Endpoint_Auth
		send   []string
		status int
		label  string // of who came in
		words  string // in the refusal
	}{
		{"key: primary", key, []string{"Bearer primary"}, 200, "key-primary", ""},
		{"key: secondary", key, []string{"Bearer secondary"}, 200, "key-secondary", ""},
		{"key: the scheme in other letters", key, []string{"bEARER primary"}, 200, "key-primary", ""},
		{"key: none", key, nil, 401, "", "no such endpoint, or"},
		{"key: wrong", key, []string{"Bearer wrong"}, 401, "", "no such endpoint, or"},
		{"key: nearly", key, []string{"Bearer primarY"}, 401, "", "no such endpoint, or"},
		{"key: a prefix", key, []string{"Bearer primar"}, 401, "", "no such endpoint, or"},
		{"key: two spaces", key, []string{"Bearer  primary"}, 401, "", "no such endpoint, or"},
		{"key: no scheme", key, []string{"primary"}, 401, "", "no such endpoint, or"},
		{"key: Basic", key, []string{"Basic primary"}, 401, "", "no such endpoint, or"},
		{"key: empty", key, []string{"Bearer "}, 401, "", "no such endpoint, or"},
		{"key: long", key, []string{"Bearer " + strings.Repeat("x", 8000)}, 401, "", "no such endpoint, or"},
		{"key: another endpoint's", key, []string{"Bearer others"}, 401, "", "no such endpoint, or"},
		{"key: this endpoint's token", key, []string{"Bearer token"}, 401, "", "takes a key at present"},
		{"key: twice", key, many, 400, "", "2 times"},
		{"token: right", tok, []string{"Bearer token"}, 200, "token", ""},
		{"token: its time is over", tok, []string{"Bearer over"}, 401, "", "have a new one issued"},
		{"token: this endpoint's key", tok, []string{"Bearer primary"}, 401, "", "takes a token at present"},
		{"token: wrong", tok, []string{"Bearer wrong"}, 401, "", "no such endpoint, or"},
		{"token: none", tok, nil, 401, "", "no such endpoint, or"},
		{"none: nothing", none, nil, 200, "none", ""},
		{"none: anything", none, []string{"Bearer wrong"}, 200, "none", ""},
		{"none: twice", none, many, 400, "", "2 times"},
		{"a form that was not chosen", 0, []string{"Bearer primary"}, 401, "", "no such endpoint, or"},
		{"a form of later days", 77, []string{"Bearer primary"}, 401, "", "no such endpoint, or"},
	} {
		t.Run(c.name, func(t *testing.T) {
			switch c.auth {
			case tok:
				set(tok, []Credential{token, over}, keys)
			case key:
				set(key, keys, []Credential{token, over})
			default:
				set(c.auth, keys, nil)
			}
			for _, p := range paths {
				var headers []string
				for _, v := range c.send {
					headers = append(headers, bearer, v)
				}
				got := l.call(l.client, p.method, "/endpoints/ep_1/"+p.path, p.body, headers...)
				want := c.status
				if want == 200 && p.path == "nothing" {
					want = 404
				}
				rec := l.log.last(t)
				if got.status != want || rec.GetStatusCode() != int32(want) || rec.GetAuth() != c.label {
					t.Errorf("%s: %d %q, want %d; recorded %v", p.path, got.status, got.body, want, rec)
				}
				if c.label == "token" && rec.GetPrincipal() != "usr_1" {
					t.Errorf("%s: principal %q", p.path, rec.GetPrincipal())
				}
				if c.words != "" && !strings.Contains(got.body, c.words) {
					t.Errorf("%s: %s does not say %q", p.path, got.body, c.words)
				}
				if got.status == 401 && (got.header.Get("WWW-Authenticate") == "" || got.reason(t) != rec.GetReason()) {
					t.Errorf("%s: %v, recorded %v", p.path, got.header, rec)
				}
			}
		})
	}
}

// TestUnknownEndpointReadsAsAWrongKey compares the whole of both answers (AIP-211).
func TestUnknownEndpointReadsAsAWrongKey(t *testing.T) {
	l, _ := serving(t, echo)
	for _, c := range [][]string{nil, {bearer, "Bearer wrong"}, {bearer, "Bearer primary"}} {
		for _, p := range paths {
			headers := append([]string{"X-Request-Id", "same"}, c...)
			before, records := l.Unknown(), len(l.log.all())
			missing := l.call(l.client, p.method, "/endpoints/ep_none/"+p.path, p.body, headers...)
			if l.Unknown() != before+1 || len(l.log.all()) != records {
				t.Errorf("%q: %d counted, %d records more", p.path, l.Unknown()-before, len(l.log.all())-records)
			}
			if len(c) > 0 && c[1] == "Bearer primary" {
				if missing.status != 401 {
					t.Errorf("%q: %d", p.path, missing.status)
				}
				continue
			}
			wrong := l.call(l.client, p.method, "/endpoints/ep_1/"+p.path, p.body, headers...)
			for _, a := range []answer{missing, wrong} {
				a.header.Del("Date")
			}
			if missing.status != wrong.status || missing.body != wrong.body || len(missing.header) != len(wrong.header) {
				t.Errorf("%q: %v, and %v", p.path, missing, wrong)
			}
			for name := range missing.header {
				if missing.header.Get(name) != wrong.header.Get(name) {
					t.Errorf("%q: %s differs", p.path, name)
				}
			}
		}
	}
}

func TestPathsOfNoEndpoint(t *testing.T) {
	l, _ := serving(t, echo)
	if got := l.call(l.client, "GET", "/", ""); got.status != 200 || got.body != "Healthy" || !strings.HasPrefix(got.header.Get("Content-Type"), "text/plain") {
		t.Errorf("GET / : %v", got)
	}
	if got := l.call(l.client, "POST", "/", "x"); got.status != 405 {
		t.Errorf("POST / : %v", got)
	}
	for _, path := range []string{"/score", "/endpoints", "/endpoints/", "/endpoints//score", "/favicon.ico", "/Endpoints/ep_1/score"} {
		if got := l.call(l.client, "POST", path, "{}", bearer, "Bearer primary"); got.status != 404 {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	for path, want := range map[string]int{"/endpoints/ep_1/score/": 404, "/endpoints/ep_1/SCORE": 404, "/endpoints/ep_1//score": 404, "/endpoints/ep_1": 405, "/endpoints/ep%5f1/score": 200} {
		if got := l.call(l.client, "POST", path, "{}", bearer, "Bearer primary"); got.status != want {
			t.Errorf("%s: %d, want %d", path, got.status, want)
		}
	}
	for _, method := range []string{"GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"} {
		got := l.call(l.client, method, "/endpoints/ep_1/score", "", bearer, "Bearer primary")
		if got.status != 405 || got.header.Get("Allow") != "POST" {
			t.Errorf("%s: %v", method, got)
		}
	}
	if got := l.call(l.client, http.MethodHead, "/endpoints/ep_1/", "", bearer, "Bearer primary"); got.status != 200 {
		t.Errorf("HEAD: %v", got)
	}
}
