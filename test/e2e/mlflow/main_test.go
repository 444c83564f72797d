// Package mlflow replays what MLflow's stock client sends to a whole installation, call by call, and holds every answer to the shapes
// that MLflow publishes.
package mlflow

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

var mesh *testmesh.Mesh

func TestMain(m *testing.M) {
	testmesh.Child()
	var err error
	if mesh, err = testmesh.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}

// client is MLflow's, as far as HTTP goes.
type client struct {
	t        *testing.T
	base     string // tracking URI
	parent   string // name of the workspace
	user, pw string
	bearer   string
	http     *http.Client
	calls    int
}

// object is a JSON object.
type object = map[string]any

// newClient makes a workspace and a client of it that signs in as the administrator.
func newClient(t *testing.T, subscription string) *client {
	t.Helper()
	res := workspacev1.NewResourceServiceClient(mesh.Dial(t, mesh.Admin(t)))
	sub, err := res.CreateSubscription(t.Context(), &workspacev1.CreateSubscriptionRequest{SubscriptionId: subscription, Region: "here"})
	if err != nil {
		t.Fatal(err)
	}
	group, err := res.CreateResourceGroup(t.Context(), &workspacev1.CreateResourceGroupRequest{Parent: sub.GetName(), ResourceGroupId: "group"})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := res.CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: group.GetName(), WorkspaceId: "lab"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := mesh.TLS()
	cfg.NextProtos = nil
	return &client{t: t, base: mesh.URL + "/mlflow/" + subscription + ".group.lab", parent: ws.GetName(), bearer: mesh.Admin(t), http: httpClient(t, cfg)}
}

func httpClient(t *testing.T, cfg *tls.Config) *http.Client {
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// as is the same client with another token, sent as the password of Basic.
func (c *client) as(user, token string) *client {
	d := *c
	d.user, d.pw, d.bearer, d.calls = user, token, "", 0
	return &d
}

// raw sends a request as it is.
func (c *client) raw(method, path string, body io.Reader, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	c.calls++
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	switch {
	case c.pw != "":
		req.SetBasicAuth(c.user, c.pw)
	case c.bearer != "":
		req.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res, b
}

// send makes a call as the client does: fields in the query of a GET, in a JSON body otherwise.
func (c *client) send(method, route string, fields object) (int, object) {
	c.t.Helper()
	path := "/api/2.0/" + route
	var res *http.Response
	var b []byte
	if method == http.MethodGet {
		q := url.Values{}
		for k, v := range fields {
			switch x := v.(type) {
			case []string:
				q[k] = x
			default:
				q.Set(k, fmt.Sprint(v))
			}
		}
		res, b = c.raw(method, path+"?"+q.Encode(), nil)
	} else {
		body, err := json.Marshal(fields)
		if err != nil {
			c.t.Fatal(err)
		}
		res, b = c.raw(method, path, bytes.NewReader(body), "Content-Type", "application/json")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out object
	if err := d.Decode(&out); err != nil || res.Header.Get("Content-Type") != "application/json" {
		c.t.Fatalf("%s %s answered %d %q as %q, which is no JSON object", method, route, res.StatusCode, b, res.Header.Get("Content-Type"))
	}
	return res.StatusCode, out
}

// ok makes a call that succeeds, and holds the answer to its shape.
func (c *client) ok(method, route, shape string, fields object) object {
	c.t.Helper()
	status, out := c.send(method, route, fields)
	if status != http.StatusOK {
		c.t.Fatalf("%s %s %v: %d %v", method, route, fields, status, out)
	}
	if wrong := fits("answer", out, shape); len(wrong) > 0 {
		c.t.Fatalf("%s %s answered %v:\n%s", method, route, out, strings.Join(wrong, "\n"))
	}
	return out
}

// refused makes a call that fails in a certain way.
func (c *client) refused(method, route string, fields object, status int, code string) string {
	c.t.Helper()
	got, out := c.send(method, route, fields)
	if got != status || out["error_code"] != code || len(fits("error", out, "Error")) > 0 || out["message"] == "" {
		c.t.Errorf("%s %s %.200v: %d %v, not %d %s", method, route, fields, got, out, status, code)
	}
	message, _ := out["message"].(string)
	return message
}

// put uploads a file.
func (c *client) put(path, content string) {
	c.t.Helper()
	res, b := c.raw(http.MethodPut, "/api/2.0/mlflow-artifacts/artifacts/"+path, strings.NewReader(content))
	if res.StatusCode != http.StatusOK || string(b) != "{}" {
		c.t.Fatalf("PUT %s: %d %s", path, res.StatusCode, b)
	}
}

// get downloads a file.
func (c *client) get(path string) string {
	c.t.Helper()
	res, b := c.raw(http.MethodGet, "/api/2.0/mlflow-artifacts/artifacts/"+path, nil)
	if res.StatusCode != http.StatusOK {
		c.t.Fatalf("GET %s: %d %s", path, res.StatusCode, b)
	}
	return string(b)
}

// at walks into an answer.
func at(v any, path ...any) any {
	for _, p := range path {
		switch k := p.(type) {
		case string:
			o, _ := v.(object)
			v = o[k]
		case int:
			l, _ := v.([]any)
			if k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

func text(v any, path ...any) string {
	s, _ := at(v, path...).(string)
	return s
}
