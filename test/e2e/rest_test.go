package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestREST walks by REST what others walk by gRPC: the same rules, the same refusals, in AIP-193's form (part I, B1).
func TestREST(t *testing.T) {
	tls := mesh.TLS()
	tls.NextProtos = nil
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: tls}}
	defer client.CloseIdleConnections()
	send := func(token, method, path, body string, header ...string) (int, http.Header, map[string]any) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, mesh.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Add(header[i], header[i+1])
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]any{}
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatalf("%s %s answered %q", method, path, b)
		}
		return res.StatusCode, res.Header, out
	}
	reason := func(out map[string]any) string {
		e, _ := out["error"].(map[string]any)
		details, _ := e["details"].([]any)
		for _, d := range details {
			if d, _ := d.(map[string]any); d["@type"] == "type.googleapis.com/google.rpc.ErrorInfo" {
				s, _ := d["reason"].(string)
				return s
			}
		}
		return ""
	}
	status, head, out := send("", "POST", "/v1/signIn", `{"user":"admin","password":"`+mesh.Password()+`"}`)
	session, _ := out["session"].(map[string]any)
	token, _ := session["accessToken"].(string)
	if status != http.StatusOK || token == "" || head.Get("Cache-Control") != "no-store" {
		t.Fatalf("sign in: %d %v", status, head)
	}
	const group = "/v1/subscriptions/by-rest/resourceGroups/group"
	for _, step := range []struct{ method, path, body string }{
		{"POST", "/v1/subscriptions", `{"subscriptionId":"by-rest","region":"here"}`},
		{"POST", "/v1/subscriptions/by-rest/resourceGroups", `{"resource_group_id":"group"}`},
		{"POST", group + "/workspaces", `{"workspaceId":"lab"}`},
		{"POST", group + "/workspaces/lab/secrets", `{"secretId":"s","value":"aGVsbG8="}`},
		{"GET", group + "/workspaces/lab/secrets/s:access", ""},
		{"GET", group + "/workspaces/lab/runs?pageSize=5", ""},
		{"GET", "/v1/activity?scope=subscriptions/by-rest&pageSize=5", ""},
		{"GET", "/v1/whoAmI", ""},
	} {
		if status, _, out := send(token, step.method, step.path, step.body); status != http.StatusOK {
			t.Fatalf("%s %s: %d %v", step.method, step.path, status, out)
		}
	}
	if _, _, out := send(token, "GET", group+"/workspaces/lab/secrets/s:access", ""); out["value"] != "aGVsbG8=" {
		t.Errorf("the secret is %v", out["value"])
	}
	_, stranger := mesh.User(t, "rest-stranger")
	for name, c := range map[string]struct {
		token, method, path, body string
		header                    []string
		status                    int
		reason                    string
	}{
		"nobody":                   {"", "GET", "/v1/whoAmI", "", nil, 401, "TOKEN_MISSING"},
		"no token of ours":         {"nonsense", "GET", "/v1/whoAmI", "", nil, 401, "TOKEN_INVALID"},
		"two tokens":               {token, "GET", "/v1/whoAmI", "", []string{"Authorization", "Bearer " + stranger}, 401, ""},
		"a stranger, what is":      {stranger, "GET", group + "/workspaces/lab", "", nil, 404, "RESOURCE_NOT_FOUND"},
		"a stranger, what is not":  {stranger, "GET", group + "/workspaces/none", "", nil, 404, "RESOURCE_NOT_FOUND"},
		"a stranger makes":         {stranger, "POST", "/v1/subscriptions", `{"subscriptionId":"mine","region":"here"}`, nil, 403, "AUTHZ_ACTION_MISSING"},
		"there already":            {token, "POST", "/v1/subscriptions", `{"subscriptionId":"by-rest","region":"here"}`, nil, 409, "RESOURCE_ALREADY_EXISTS"},
		"no such id":               {token, "POST", "/v1/subscriptions", `{"subscriptionId":"By Rest","region":"here"}`, nil, 400, "REQUEST_INVALID"},
		"a path for services only": {token, "POST", "/v1/ingest", `{}`, nil, 404, "METHOD_UNKNOWN"},
		"a path of a proof's RPC":  {token, "POST", "/redoubt.identity.v1.TokenService/ExchangeToken", `{}`, nil, 404, ""},
	} {
		status, head, out := send(c.token, c.method, c.path, c.body, c.header...)
		if status != c.status || c.reason != "" && reason(out) != c.reason || (status == 401) != (head.Get("WWW-Authenticate") != "") {
			t.Errorf("%s: %d %v, not %d %s", name, status, out, c.status, c.reason)
		}
	}
}
