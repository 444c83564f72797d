package canary

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

// deploy puts the model behind endpoints of each form, with all that can be said of them, and scores: well, badly, and uninvited.
func (w *walk) deploy() {
	dir := w.t.TempDir()
	name := w.text("entry script")
	script := fmt.Sprintf("# %s\ndef run(raw):\n    print('%s')\n    if raw == b'raise' or raw == 'raise':\n        raise ValueError('%s')\n    return '%s'\n",
		w.text("comment of an entry script"), w.text("log line of a replica"), w.text("what a model raises"), w.text("a model's answer"))
	w.must(os.WriteFile(filepath.Join(dir, name+".py"), []byte(script), 0o600))
	s, err := w.admin.UploadSnapshot(w.ctx, w.workspace, dir, nil)
	w.must(err)
	target, err := w.admin.Computes().CreateCompute(w.ctx, &computev1.CreateComputeRequest{Parent: w.workspace, ComputeId: w.text("target of replicas"), Kind: computev1.Compute_KIND_LOCAL})
	w.must(err)
	endpoints := w.admin.Endpoints()
	e, err := endpoints.CreateEndpoint(w.ctx, &inferencev1.CreateEndpointRequest{Parent: w.workspace, EndpointId: w.text("endpoint id"), Endpoint: &inferencev1.NewEndpoint{
		Description: w.free("endpoint's description"), Tags: map[string]string{w.text("endpoint's tag"): w.free("value of endpoint's tag")},
	}})
	w.must(err)
	d, err := endpoints.CreateDeployment(w.ctx, &inferencev1.CreateDeploymentRequest{Parent: e.GetName(), DeploymentId: w.text("deployment id"), Deployment: &inferencev1.DeploymentSpec{
		Model: w.workspace + "/models/" + w.canaries["model id"] + "/versions/" + w.canaries["model's alias"], Snapshot: s.GetName(), Compute: target.GetName(), EntryScript: name + ".py",
		Environment: map[string]string{"V" + w.text("environment of a deployment"): w.free("value of environment of a deployment")},
	}})
	w.must(err)
	ready, err := w.admin.WaitDeployment(w.ctx, d.GetName(), 1, nil)
	w.must(err)
	if ready.GetState() != inferencev1.Deployment_STATE_READY {
		w.t.Fatalf("%v", ready)
	}
	_, err = endpoints.UpdateEndpoint(w.ctx, &inferencev1.UpdateEndpointRequest{Endpoint: &inferencev1.EndpointUpdate{Name: e.GetName(), Mirror: map[string]int32{w.canaries["deployment id"]: 10}}})
	w.must(err)
	keys, err := endpoints.GetCredentials(w.ctx, &inferencev1.GetCredentialsRequest{Name: e.GetName()})
	w.must(err)
	w.note("primary key", strings.TrimPrefix(keys.GetPrimaryKey(), "rdk_"))
	w.note("secondary key", strings.TrimPrefix(keys.GetSecondaryKey(), "rdk_"))
	tokens, err := endpoints.CreateEndpoint(w.ctx, &inferencev1.CreateEndpointRequest{Parent: w.workspace, EndpointId: w.text("id of an endpoint with tokens"), Endpoint: &inferencev1.NewEndpoint{Auth: inferencev1.Endpoint_AUTH_TOKEN}})
	w.must(err)
	token, err := endpoints.IssueEndpointToken(w.ctx, &inferencev1.IssueEndpointTokenRequest{Name: tokens.GetName()})
	w.must(err)
	w.note("endpoint token", strings.TrimPrefix(token.GetAccessToken(), "rde_"))

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(mesh.CA)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: time.Minute}
	score := func(uri, credential, body string, status int) {
		w.t.Helper()
		req, err := http.NewRequestWithContext(w.ctx, http.MethodPost, uri+"?q="+w.text(fmt.Sprintf("query of a request %d %s", status, body[:1])), bytes.NewReader([]byte(body)))
		w.must(err)
		req.Header.Set("Authorization", "Bearer "+credential)
		req.Header.Set("Content-Type", "text/plain")
		res, err := c.Do(req)
		w.must(err)
		defer func() { _ = res.Body.Close() }()
		got, err := io.ReadAll(res.Body)
		w.must(err)
		if res.StatusCode != status || status == http.StatusOK && string(got) != w.canaries["a model's answer"] {
			w.t.Fatalf("%d %s, want %d", res.StatusCode, got, status)
		}
	}
	score(e.GetScoringUri(), keys.GetPrimaryKey(), w.free("body of a request"), http.StatusOK)
	score(e.GetScoringUri(), keys.GetSecondaryKey(), "raise", http.StatusInternalServerError)
	score(e.GetScoringUri(), w.text("key that is none"), "wrong key", http.StatusUnauthorized)
	score(tokens.GetScoringUri(), token.GetAccessToken(), "nothing there", http.StatusNotFound)
	_, err = endpoints.DeleteEndpoint(w.ctx, &inferencev1.DeleteEndpointRequest{Name: tokens.GetName()})
	w.must(err)
}
