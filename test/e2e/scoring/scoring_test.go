package scoring

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/redoubt-ml/redoubt/gen/inference"
	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// patience is for what has to come, however slow the machine is.
const patience = 150 * time.Second

// script gives the sum of each row.
const script = `import json

def init():
    pass

def run(raw):
    return [float(sum(row)) for row in json.loads(raw)["data"]]
`

// lab is a workspace with what deployments need.
type lab struct {
	*client.Client
	t                          *testing.T
	workspace, model, snapshot string
	compute                    string
	http                       *http.Client
	oip                        inference.GRPCInferenceServiceClient
	reader                     string // uid of who may read, and so score
	byRole                     inferencev1.ScoringServiceClient
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
	if _, _, err := sandbox.Interpreter(t.Context(), "python3"); err != nil {
		t.Skipf("there is no Python for replicas: %v", err)
	}
	c := must[*client.Client](t)(client.Dial(client.Context{Name: "scoring", Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(mesh.Admin(t))))
	t.Cleanup(func() { _ = c.Close() })
	l := &lab{Client: c, t: t}
	res := workspacev1.NewResourceServiceClient(mesh.Dial(t, mesh.Admin(t)))
	id := strings.ToLower(strings.TrimPrefix(t.Name(), "Test"))
	sub := must[*workspacev1.Subscription](t)(res.CreateSubscription(t.Context(), &workspacev1.CreateSubscriptionRequest{SubscriptionId: id, Region: "here"}))
	group := must[*workspacev1.ResourceGroup](t)(res.CreateResourceGroup(t.Context(), &workspacev1.CreateResourceGroupRequest{Parent: sub.GetName(), ResourceGroupId: "group"}))
	ws := must[*workspacev1.Workspace](t)(res.CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: group.GetName(), WorkspaceId: "lab"}))
	l.workspace = ws.GetName()

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(mesh.CA)
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	tr := &http.Transport{TLSClientConfig: conf.Clone(), MaxIdleConnsPerHost: 64}
	l.http = &http.Client{Transport: tr, Timeout: patience}
	conn := must[*grpc.ClientConn](t)(grpc.NewClient(strings.TrimPrefix(mesh.ScoringURL, "https://"), grpc.WithTransportCredentials(credentials.NewTLS(conf))))
	t.Cleanup(func() { tr.CloseIdleConnections(); _ = conn.Close() })
	l.oip = inference.NewGRPCInferenceServiceClient(conn)

	uid, token := mesh.User(t, id+"-reader")
	l.reader = uid
	access := workspacev1.NewAccessServiceClient(mesh.Dial(t, mesh.Admin(t)))
	must[*workspacev1.RoleAssignment](t)(access.CreateRoleAssignment(t.Context(), &workspacev1.CreateRoleAssignmentRequest{Scope: l.workspace, Role: authz.Reader, Principal: uid}))
	l.byRole = inferencev1.NewScoringServiceClient(mesh.Dial(t, token))
	return l
}

// deployable makes what deployments are made of.
func (l *lab) deployable(replicas int32) {
	t := l.t
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"score.py": script, "model.txt": "m"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.compute = must[*computev1.Compute](t)(l.Computes().CreateCompute(t.Context(), &computev1.CreateComputeRequest{
		Parent: l.workspace, ComputeId: "here", Kind: computev1.Compute_KIND_LOCAL, MaxRuns: replicas,
	})).GetName()
	l.snapshot = must[*workspacev1.Snapshot](t)(l.UploadSnapshot(t.Context(), l.workspace, dir, nil)).GetName()
	l.model = must[*inferencev1.ModelVersion](t)(l.UploadModel(t.Context(), &inferencev1.UploadModelVersionRequest{Parent: l.workspace + "/models/m", CreateModel: true}, filepath.Join(dir, "model.txt"), nil)).GetName()
}

func (l *lab) endpoint(id string, auth inferencev1.Endpoint_Auth) *inferencev1.Endpoint {
	l.t.Helper()
	kind := inferencev1.Endpoint_KIND_LOCAL
	if auth == inferencev1.Endpoint_AUTH_NONE {
		kind = inferencev1.Endpoint_KIND_CONTAINER_INSTANCE
	}
	return must[*inferencev1.Endpoint](l.t)(l.Endpoints().CreateEndpoint(l.t.Context(), &inferencev1.CreateEndpointRequest{
		Parent: l.workspace, EndpointId: id, Endpoint: &inferencev1.NewEndpoint{Kind: kind, Auth: auth, TokenTtl: durationpb.New(5 * time.Minute)},
	}))
}

// deploy puts a replica behind each endpoint and waits for all of them.
func (l *lab) deploy(workers int32, endpoints ...*inferencev1.Endpoint) {
	l.t.Helper()
	var made []*inferencev1.Deployment
	for _, e := range endpoints {
		made = append(made, must[*inferencev1.Deployment](l.t)(l.Endpoints().CreateDeployment(l.t.Context(), &inferencev1.CreateDeploymentRequest{
			Parent: e.GetName(), DeploymentId: "blue", Deployment: &inferencev1.DeploymentSpec{Model: l.model, Snapshot: l.snapshot, Compute: l.compute, Workers: workers},
		})))
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	for _, d := range made {
		if got, err := l.WaitDeployment(ctx, d.GetName(), d.GetGeneration(), nil); err != nil || got.GetState() != inferencev1.Deployment_STATE_READY {
			l.t.Fatalf("%v %v", got, err)
		}
	}
}

func (l *lab) keys(e *inferencev1.Endpoint) *inferencev1.Credentials {
	l.t.Helper()
	return must[*inferencev1.Credentials](l.t)(l.Endpoints().GetCredentials(l.t.Context(), &inferencev1.GetCredentialsRequest{Name: e.GetName()}))
}

func (l *lab) regenerate(e *inferencev1.Endpoint) string {
	l.t.Helper()
	return must[*inferencev1.Credentials](l.t)(l.Endpoints().RegenerateKey(l.t.Context(), &inferencev1.RegenerateKeyRequest{
		Name: e.GetName(), KeyType: inferencev1.KeyType_KEY_TYPE_PRIMARY,
	})).GetPrimaryKey()
}

func (l *lab) token(e *inferencev1.Endpoint) string {
	l.t.Helper()
	return must[*inferencev1.EndpointToken](l.t)(l.Endpoints().IssueEndpointToken(l.t.Context(), &inferencev1.IssueEndpointTokenRequest{Name: e.GetName()})).GetAccessToken()
}

func (l *lab) change(e *inferencev1.Endpoint, auth inferencev1.Endpoint_Auth) {
	l.t.Helper()
	must[*inferencev1.Endpoint](l.t)(l.Endpoints().UpdateEndpoint(l.t.Context(), &inferencev1.UpdateEndpointRequest{Endpoint: &inferencev1.EndpointUpdate{Name: e.GetName(), Auth: auth}}))
}

// said is what a caller got, in the terms of every protocol.
type said struct {
	status int    // of HTTP; of gRPC the one that its code stands for
	reason string // of a refusal, where the protocol has one
	sum    float64
	words  string
	ok     bool // the body has the form of the protocol
}

// post sends JSON.
func (l *lab) post(path, credential, id, body string) (int, []byte) {
	l.t.Helper()
	r := must[*http.Request](l.t)(http.NewRequestWithContext(context.Background(), http.MethodPost, mesh.ScoringURL+path, strings.NewReader(body)))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Request-Id", id)
	if credential != "" {
		r.Header.Set("Authorization", "Bearer "+credential)
	}
	resp, err := l.http.Do(r)
	if err != nil {
		l.t.Errorf("%s: %v", path, err)
		return 0, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.Header.Get("X-Request-Id") != id {
		l.t.Errorf("%s: %v, request id %q", path, err, resp.Header.Get("X-Request-Id"))
	}
	return resp.StatusCode, b
}

type ask func(l *lab, e *inferencev1.Endpoint, credential, id string) said

func byHTTP(l *lab, e *inferencev1.Endpoint, credential, id string) said {
	status, b := l.post("/endpoints/"+e.GetUid()+"/score", credential, id, `{"data":[[1,2.5]]}`)
	var sums []float64
	if status == 200 {
		ok := json.Unmarshal(b, &sums) == nil && len(sums) == 1
		return said{status: status, sum: append(sums, 0)[0], ok: ok}
	}
	var m struct {
		Error struct{ Code, Reason, Message string }
	}
	err := json.Unmarshal(b, &m)
	return said{status: status, reason: m.Error.Reason, words: m.Error.Message, ok: err == nil && m.Error.Code == "UNAUTHENTICATED"}
}

func byREST(l *lab, e *inferencev1.Endpoint, credential, id string) said {
	status, b := l.post("/endpoints/"+e.GetUid()+"/v2/models/m/infer", credential, id, `{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2.5]}]}`)
	var m struct {
		ModelName string `json:"model_name"`
		Outputs   []struct {
			Datatype string
			Shape    []int
			Data     []float64
		}
		Error string
	}
	err := json.Unmarshal(b, &m)
	if status != 200 {
		return said{status: status, words: m.Error, ok: err == nil && m.Error != ""}
	}
	ok := err == nil && m.ModelName == "m" && len(m.Outputs) == 1 && m.Outputs[0].Datatype == "FP64" && len(m.Outputs[0].Data) == 1
	if !ok {
		return said{status: status}
	}
	return said{status: status, sum: m.Outputs[0].Data[0], ok: true}
}

func byGRPC(l *lab, e *inferencev1.Endpoint, credential, id string) said {
	pairs := []string{"redoubt-endpoint", e.GetUid(), "x-request-id", id}
	if credential != "" {
		pairs = append(pairs, "authorization", "Bearer "+credential)
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), pairs...), patience)
	defer cancel()
	out, err := l.oip.ModelInfer(ctx, &inference.ModelInferRequest{ModelName: "m", Inputs: []*inference.ModelInferRequest_InferInputTensor{{
		Name: "x", Datatype: "FP32", Shape: []int64{1, 2}, Contents: &inference.InferTensorContents{Fp32Contents: []float32{1, 2.5}},
	}}})
	if err != nil {
		return refusedBy(err, id)
	}
	v := out.GetOutputs()
	if len(v) != 1 || len(v[0].GetContents().GetFp64Contents()) != 1 {
		return said{status: 200}
	}
	return said{status: 200, sum: v[0].GetContents().GetFp64Contents()[0], ok: true}
}

func refusedBy(err error, id string) said {
	f := fault.FromStatus(err)
	status := map[codes.Code]int{codes.Unauthenticated: 401}[fault.Code(f)]
	return said{status: status, reason: fault.ReasonOf(f).String(), words: fault.Describe(f).Message(), ok: fault.RequestID(f) == id}
}

// cellOf is one row of the table.
type row struct {
	credential string // by name
	value      string
	opens      bool
	label      string // in the record
	words      string // in the refusal
}

// A5, G3: every form of authentication, every kind of credential, every protocol.
func TestMatrix(t *testing.T) {
	l := newLab(t)
	none, key, token := inferencev1.Endpoint_AUTH_NONE, inferencev1.Endpoint_AUTH_KEY, inferencev1.Endpoint_AUTH_TOKEN
	ek, et, en := l.endpoint("by-key", key), l.endpoint("by-token", key), l.endpoint("by-none", none)
	oldForm := l.keys(et).GetPrimaryKey()
	l.change(et, token)
	expired := l.token(et)
	l.present() // seven minutes later
	others := l.endpoint("other-key", key)
	othersToken := l.endpoint("other-token", token)
	l.deployable(3)
	l.deploy(1, ek, et, en)

	oldKey := l.keys(ek).GetPrimaryKey()
	newKey := l.regenerate(ek)
	oldNone := l.keys(en).GetPrimaryKey()
	newNone := l.regenerate(en)
	right, again := l.token(et), l.token(et)
	random := make([]byte, 32)
	_, _ = rand.Read(random)
	wrong := base64.RawURLEncoding.EncodeToString(random)
	otherKey, otherToken := l.keys(others).GetPrimaryKey(), l.token(othersToken)
	const generic = "there is no such endpoint, or this is no credential of it"

	protocols := []struct {
		name string
		ask  ask
	}{{"http", byHTTP}, {"oip-rest", byREST}, {"oip-grpc", byGRPC}}
	type wanted struct {
		cell, protocol string
		e              *inferencev1.Endpoint
		row
		reason string
	}
	want := make(map[string]wanted)
	cells := 0
	for _, form := range []struct {
		name string
		e    *inferencev1.Endpoint
		rows []row
	}{
		{"key", ek, []row{
			{"right", l.keys(ek).GetSecondaryKey(), true, "key-secondary", ""},
			{"wrong", "rdk_" + wrong, false, "", generic},
			{"other endpoint's", otherKey, false, "", generic},
			{"old", oldKey, false, "", generic},
			{"regenerated", newKey, true, "key-primary", ""},
			{"expired", expired, false, "", generic},
			{"none", "", false, "", generic},
		}},
		{"token", et, []row{
			{"right", right, true, "token", ""},
			{"wrong", "rde_" + wrong, false, "", generic},
			{"other endpoint's", otherToken, false, "", generic},
			{"old", oldForm, false, "", "takes a token at present"},
			{"regenerated", again, true, "token", ""},
			{"expired", expired, false, "", ""},
			{"none", "", false, "", generic},
		}},
		{"none", en, []row{
			{"right", "", true, "none", ""},
			{"wrong", "rdk_" + wrong, true, "none", ""},
			{"other endpoint's", otherKey, true, "none", ""},
			{"old", oldNone, true, "none", ""},
			{"regenerated", newNone, true, "none", ""},
			{"expired", expired, true, "none", ""},
			{"none", "", true, "none", ""},
		}},
	} {
		for _, c := range form.rows {
			for _, p := range protocols {
				cells++
				id := fmt.Sprintf("cell-%d", cells)
				t.Run(form.name+"/"+c.credential+"/"+p.name, func(t *testing.T) {
					got := p.ask(l, form.e, c.value, id)
					w := wanted{t.Name(), p.name, form.e, c, ""}
					switch {
					case c.opens && (got.status != 200 || got.sum != 3.5 || !got.ok):
						t.Errorf("%+v, want the sum of the row", got)
					case !c.opens && (got.status != 401 || !got.ok || !strings.Contains(got.words, c.words)):
						t.Errorf("%+v, want 401 with %q", got, c.words)
					case !c.opens && got.reason != "":
						if w.reason = got.reason; got.reason != "ENDPOINT_CREDENTIAL_INVALID" && (c.credential != "expired" || got.reason != "TOKEN_EXPIRED") {
							t.Errorf("reason %s", got.reason)
						}
					}
					want[id] = w
				})
			}
			// By a role: no credential of the endpoint's is one, and a Reader needs none.
			cells++
			id := fmt.Sprintf("cell-%d", cells)
			t.Run(form.name+"/"+c.credential+"/rpc", func(t *testing.T) {
				in := &inferencev1.ScoreRequest{Endpoint: form.e.GetName(), Data: []byte(`{"data":[[1,2.5]]}`)}
				ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "x-request-id", id), patience)
				defer cancel()
				if c.credential == "right" {
					out, err := l.byRole.Score(ctx, in)
					if err != nil || out.GetStatus() != 200 || string(out.GetData()) != "[3.5]" || out.GetDeployment() != "blue" || out.GetRequestId() != id {
						t.Errorf("%v %v", out, err)
					}
					want[id] = wanted{t.Name(), "rpc", form.e, row{opens: true, label: "role"}, ""}
					return
				}
				_, err := inferencev1.NewScoringServiceClient(mesh.Dial(t, c.value)).Score(ctx, in)
				if got := refusedBy(err, id); got.status != 401 || !got.ok || !strings.HasPrefix(got.reason, "TOKEN_") {
					t.Errorf("%+v", got)
				}
			})
		}
	}

	// The log has each of them, with what it was.
	found := l.records(want2ids(want), ek, et, en)
	for id, w := range want {
		r := found[id]
		if r == nil {
			t.Errorf("%s is not in the log", w.cell)
			continue
		}
		status, model := int32(401), int32(0)
		if w.opens {
			status, model = 200, 200
		}
		if r.GetStatusCode() != status || r.GetModelStatusCode() != model || r.GetAuth() != w.label || r.GetProtocol() != w.protocol || r.GetEndpointUid() != w.e.GetUid() ||
			r.GetHttpMethod() != "POST" || r.GetUserAgent() == "" || r.GetDuration().AsDuration() <= 0 || r.GetRequestUrl() == "" || r.GetComputeType() == "" ||
			w.opens && (r.GetDeployment() != "blue" || r.GetReplicaUid() == "") || (r.GetReason() == "") != w.opens || w.reason != "" && r.GetReason() != w.reason ||
			w.protocol == "rpc" && r.GetPrincipal() != l.reader {
			t.Errorf("%s: recorded %v", w.cell, r)
		}
		for _, secret := range []string{oldKey, newKey, right, otherKey, expired} {
			if strings.Contains(r.String(), secret) {
				t.Errorf("%s: a credential stands in the log", w.cell)
			}
		}
	}
	t.Logf("%d cells, %d of them recorded", cells, len(want))
}

func want2ids[T any](m map[string]T) []string {
	ids := make([]string, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	return ids
}

// present brings the mesh's clock to the present, and waits until every service decides from state that is fresh by it.
func (l *lab) present() {
	l.t.Helper()
	watch.behind.Store(0)
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, inference := l.Endpoints().ListEndpoints(ctx, &inferencev1.ListEndpointsRequest{Parent: l.workspace})
		_, compute := l.Computes().ListComputes(ctx, &computev1.ListComputesRequest{Parent: l.workspace})
		_, workspace := workspacev1.NewResourceServiceClient(l.Conn()).ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{})
		_, identity := identityv1.NewSignInServiceClient(l.Conn()).WhoAmI(ctx, &identityv1.WhoAmIRequest{})
		_, telemetry := telemetryv1.NewActivityServiceClient(l.Conn()).ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: l.workspace})
		err := errors.Join(inference, compute, workspace, identity, telemetry)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			l.t.Fatal(err)
		case <-tick.C:
		}
	}
}

// records waits until the log has all the ids.
func (l *lab) records(ids []string, endpoints ...*inferencev1.Endpoint) map[string]*telemetryv1.ScoringRequest {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		found := make(map[string]*telemetryv1.ScoringRequest)
		for _, e := range endpoints {
			for token := ""; ; {
				out, err := l.Requests().ListRequests(ctx, &telemetryv1.ListRequestsRequest{Endpoint: e.GetName(), PageSize: 1000, PageToken: token})
				if err != nil {
					l.t.Fatal(err)
				}
				if out.GetDropped() != 0 {
					l.t.Fatalf("%d records were dropped", out.GetDropped())
				}
				for _, r := range out.GetRequests() {
					if found[r.GetRequestId()] != nil {
						l.t.Errorf("%s stands in the log twice", r.GetRequestId())
					}
					found[r.GetRequestId()] = r
				}
				if token = out.GetNextPageToken(); token == "" {
					break
				}
			}
		}
		missing := 0
		for _, id := range ids {
			if found[id] == nil {
				missing++
			}
		}
		select {
		case <-ctx.Done():
			return found
		default:
		}
		if missing == 0 {
			return found
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// A5: a key is regenerated round after round, by the RPC, under load: when the call has returned, the old one opens nothing; the other one
// never fails.
func TestRegenerateUnderLoad(t *testing.T) {
	l := newLab(t)
	l.present()
	l.deployable(1)
	e := l.endpoint("steady", inferencev1.Endpoint_AUTH_KEY)
	l.deploy(4, e)
	other := l.keys(e).GetSecondaryKey()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var old atomic.Pointer[string]
	var steady, refused atomic.Int64
	score := func(credential string) int {
		r := must[*http.Request](t)(http.NewRequestWithContext(context.Background(), http.MethodPost, e.GetScoringUri(), strings.NewReader(`{"data":[[1]]}`)))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+credential)
		resp, err := l.http.Do(r)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if got := score(other); got != 200 {
					t.Errorf("the other key: %d", got)
				}
				steady.Add(1)
				if p := old.Load(); p != nil {
					if got := score(*p); got != 401 {
						t.Errorf("a key that was replaced: %d", got)
					}
					refused.Add(1)
				}
			}
		})
	}
	const rounds = 200
	now := l.keys(e).GetPrimaryKey()
	for i := range rounds {
		before := now
		now = l.regenerate(e)
		old.Store(&before)
		if got := score(before); got != 401 {
			t.Errorf("round %d: the old key is honoured: %d", i, got)
		}
		if got := score(now); got != 200 {
			t.Errorf("round %d: the new key: %d", i, got)
		}
	}
	stop()
	wg.Wait()
	if steady.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d and %d", steady.Load(), refused.Load())
	}
	for i := range 20 { // the other way to withdraw: one form at a time
		l.change(e, inferencev1.Endpoint_AUTH_TOKEN)
		token := l.token(e)
		if k, o := score(other), score(token); k != 401 || o != 200 {
			t.Errorf("switch %d: by token: the key gets %d, the token %d", i, k, o)
		}
		l.change(e, inferencev1.Endpoint_AUTH_KEY)
		if k, o := score(other), score(token); k != 200 || o != 401 {
			t.Errorf("switch %d: by key: the key gets %d, the token %d", i, k, o)
		}
	}
	t.Logf("%d rounds, %d requests with the other key, %d with replaced ones", rounds, steady.Load(), refused.Load())
}
