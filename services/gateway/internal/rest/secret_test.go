package rest

import (
	"net/http"
	"strings"
	"testing"
)

// E1: what is wrong with a request is said without what was sent: a value, or a name that is none of ours, may be a secret. Fields of ours are named.
func TestRefusalsRepeatNothing(t *testing.T) {
	h := serve(t, &peer{})
	const secret = "hunter2hunter2"
	for body, says := range map[string]string{
		`{"user":"u","password":["` + secret + `"]}`:     "invalid value for string field password",
		`{"user":"u","password":{"x":"` + secret + `"}}`: "invalid value for string field password",
		`{"user":["` + secret + `"]}`:                    "invalid value for string field user",
		`{"` + secret + `":1}`:                           "unknown field",
		`{"user":"u","` + secret + `":"` + secret + `"}`: "unknown field",
		`{"` + secret + `":1,"` + secret + `":2}`:        "unknown field",
		`{"user":"u","user":"` + secret + `"}`:           "duplicate field",
		`"` + secret + `"`:                               "unexpected token",
		`["` + secret + `"]`:                             "unexpected token",
		`{"password":"` + secret + `\ud800"}`:            "unexpected EOF",
		`{"password":"` + secret + `","user":7}`:         "invalid value for string field user",
	} {
		res := send(t, h, "POST", "/v1/signIn", body)
		text := read(t, res)
		if res.StatusCode != http.StatusBadRequest || strings.Contains(text, secret) || !strings.Contains(text, says) {
			t.Errorf("%s: %d %s", body, res.StatusCode, text)
		}
	}
	// Bytes and enumerations.
	const ws = "/v1/subscriptions/s/resourceGroups/g/workspaces/w"
	for path, body := range map[string]string{
		ws + "/keys/k:encrypt": `{"plaintext":"` + secret + `~"}`,
		ws + "/computes":       `{"kind":"` + secret + `"}`,
	} {
		res := send(t, h, "POST", path, body)
		if text := read(t, res); res.StatusCode != http.StatusBadRequest || strings.Contains(text, secret) {
			t.Errorf("%s: %d %s", body, res.StatusCode, text)
		}
	}
	res := send(t, h, "GET", ws+"/runs?pageSize="+secret, "")
	if text := read(t, res); res.StatusCode != http.StatusBadRequest || strings.Contains(text, secret) {
		t.Errorf("in the query: %d %s", res.StatusCode, text)
	}
}
