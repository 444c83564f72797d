package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// lab is a workspace with something of every kind in it.
type lab struct {
	*client.Client
	workspace, snapshot, compute, model, endpoint string
	endpointUID, token                            string
	tracked                                       string // a run that is only tracked
	ran, runs                                     string // one that is over, one that goes; "" where this machine cannot isolate runs
	bob                                           string // password of users/bob
}

func dialed(t testing.TB, m *testmesh.Mesh, token string) *client.Client {
	t.Helper()
	c, err := client.Dial(client.Context{Name: "test", Server: m.URL, CAPEM: m.CA}, redact.FromString(token))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func furnish(t *testing.T, m *testmesh.Mesh) *lab {
	t.Helper()
	ctx := t.Context()
	l := &lab{Client: dialed(t, m, m.Admin(t)), bob: "correct horse battery"}
	sub, err := l.Resources().CreateSubscription(ctx, &workspacev1.CreateSubscriptionRequest{SubscriptionId: "sub", Region: "here"})
	must(t, err)
	group, err := l.Resources().CreateResourceGroup(ctx, &workspacev1.CreateResourceGroupRequest{Parent: sub.GetName(), ResourceGroupId: "group"})
	must(t, err)
	ws, err := l.Resources().CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{Parent: group.GetName(), WorkspaceId: "lab"})
	must(t, err)
	l.workspace = ws.GetName()
	bob, err := l.Directory().CreateUser(ctx, &identityv1.CreateUserRequest{UserId: "bob", Password: l.bob})
	must(t, err)
	_, err = l.Access().CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: l.workspace, Role: "roleDefinitions/reader", Principal: bob.GetUid()})
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "hello.txt"), []byte("hello from the snapshot\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "big.bin"), bytes.Repeat([]byte("0123456789abcdef"), 50_000), 0o600))
	s, err := l.UploadSnapshot(ctx, l.workspace, dir, nil)
	must(t, err)
	l.snapshot = s.GetName()
	target, err := l.Computes().CreateCompute(ctx, &computev1.CreateComputeRequest{Parent: l.workspace, ComputeId: "here", Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 4})
	must(t, err)
	l.compute = target.GetName()
	v, err := l.UploadModel(ctx, &inferencev1.UploadModelVersionRequest{Parent: l.workspace + "/models/m", CreateModel: true}, filepath.Join(dir, "big.bin"), nil)
	must(t, err)
	l.model = v.GetName()
	e, err := l.Endpoints().CreateEndpoint(ctx, &inferencev1.CreateEndpointRequest{Parent: l.workspace, EndpointId: "e", Endpoint: &inferencev1.NewEndpoint{Auth: inferencev1.Endpoint_AUTH_TOKEN}})
	must(t, err)
	l.endpoint, l.endpointUID = e.GetName(), e.GetUid()
	tok, err := l.Endpoints().IssueEndpointToken(ctx, &inferencev1.IssueEndpointTokenRequest{Name: l.endpoint})
	must(t, err)
	l.token = tok.GetAccessToken()
	tracked, err := l.Tracking().CreateTrackedRun(ctx, &computev1.CreateTrackedRunRequest{Parent: l.workspace, RunId: "tracked"})
	must(t, err)
	l.tracked = tracked.GetName()
	if err := sandbox.Check(ctx); err != nil {
		t.Logf("this machine cannot isolate a run, so there is none in the backup: %v", err)
		return l
	}
	l.ran = l.submit(t, "/bin/sh", "-c", `cat hello.txt; printf result >"$REDOUBT_OUTPUTS/result.txt"`)
	_, err = l.WaitRun(ctx, l.ran, nil)
	must(t, err)
	l.runs = l.submit(t, "/bin/sh", "-c", "sleep 300")
	return l
}

func (l *lab) submit(t *testing.T, command ...string) string {
	t.Helper()
	r, err := l.Runs().SubmitRun(t.Context(), &computev1.SubmitRunRequest{Parent: l.workspace, Compute: l.compute, Snapshot: l.snapshot, Command: command})
	must(t, err)
	return r.GetName()
}

// contents is what a reader finds of everything that does not change, as digests.
func (l *lab) contents(t *testing.T) map[string]string {
	t.Helper()
	ctx, out, dir := t.Context(), map[string]string{}, t.TempDir()
	must(t, l.DownloadModel(ctx, l.model, filepath.Join(dir, "model"), "", nil))
	s, err := l.Snapshots().GetSnapshot(ctx, &workspacev1.GetSnapshotRequest{Name: l.snapshot})
	must(t, err)
	out["snapshot"] = fmt.Sprint(s.GetTotalBytes())
	e, err := l.Endpoints().GetEndpoint(ctx, &inferencev1.GetEndpointRequest{Name: l.endpoint})
	must(t, err)
	out["endpoint"] = e.GetUid()
	if l.ran != "" {
		must(t, l.DownloadOutputs(ctx, l.ran, filepath.Join(dir, "outputs"), nil, nil))
		var log bytes.Buffer
		_, err := l.FollowLogs(ctx, l.ran, 0, false, &log)
		must(t, err)
		out["log"] = log.String()
	}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		sum := sha256.Sum256(b)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = hex.EncodeToString(sum[:])
		return err
	}))
	return out
}

// present are the changes of a load that an installation has.
func (l *lab) present(t *testing.T, want *load) map[string]bool {
	t.Helper()
	ctx, out := t.Context(), map[string]bool{}
	for req := (&identityv1.ListServicePrincipalsRequest{PageSize: 1000}); ; {
		r, err := l.Directory().ListServicePrincipals(ctx, req)
		must(t, err)
		for _, p := range r.GetServicePrincipals() {
			out[strings.TrimPrefix(p.GetName(), "servicePrincipals/")] = true
		}
		if req.PageToken = r.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	for req := (&keyvaultv1.ListSecretsRequest{Parent: l.workspace, PageSize: 1000}); ; {
		r, err := l.Secrets().ListSecrets(ctx, req)
		must(t, err)
		for _, s := range r.GetSecrets() {
			id := s.GetName()[strings.LastIndexByte(s.GetName(), '/')+1:]
			got, err := l.Secrets().AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: s.GetName()})
			for fault.ReasonOf(fault.FromStatus(err)).String() == "RATE_LIMITED" {
				time.Sleep(20 * time.Millisecond)
				got, err = l.Secrets().AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: s.GetName()})
			}
			if err != nil || string(got.GetValue()) != id {
				t.Errorf("the secret %s is %q, %v", id, got.GetValue(), err)
			}
			out[id] = true
		}
		if req.PageToken = r.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	for w := range want.workers {
		key := fmt.Sprint("load", w)
		r, err := l.Metrics().ListMetricHistory(ctx, &telemetryv1.ListMetricHistoryRequest{Run: l.tracked, Key: key, PageSize: 50_000})
		if fault.Is(fault.FromStatus(err), codes.NotFound) {
			continue
		}
		must(t, err)
		for _, p := range r.GetMetrics() {
			out[fmt.Sprintf("metric-%d-%d", w, p.GetStep())] = true
		}
	}
	return out
}

// wholeLog reads the activity log and looks whether each service's numbers are there once, from 1 on.
func (l *lab) wholeLog(t *testing.T, of string) (events int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		seqs, wrong := map[string][]int64{}, ""
		events = 0
		for req := (&telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1000}); ; {
			r, err := l.Activity().ListActivity(t.Context(), req)
			must(t, err)
			for _, ev := range r.GetEvents() {
				seqs[ev.GetService()] = append(seqs[ev.GetService()], ev.GetSeq())
				if strings.HasSuffix(ev.GetMethod(), of) && ev.GetResult() == telemetryv1.ActivityEvent_RESULT_SUCCEEDED {
					events++
				}
			}
			if req.PageToken = r.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		for service, all := range seqs {
			slices.Sort(all)
			for i, seq := range all {
				if seq != int64(i+1) {
					wrong = fmt.Sprintf("%s: the number %d stands at place %d of %d", service, seq, i+1, len(all))
					break
				}
			}
		}
		if wrong == "" && len(seqs) >= 5 {
			return events
		}
		if time.Now().After(deadline) {
			t.Errorf("the activity log: %s (%d services)", wrong, len(seqs))
			return events
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// score asks an endpoint with a token.
func score(t *testing.T, m *testmesh.Mesh, uid, token string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.ScoringURL+"/endpoints/"+uid+"/score", strings.NewReader("{}"))
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	cfg := m.TLS()
	cfg.NextProtos = nil
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
	defer hc.CloseIdleConnections()
	res, err := hc.Do(r)
	must(t, err)
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode
}

// D5, D10: an installation that works is backed up, lost, and made again; whatever was acknowledged before is there, nothing is there
// half, and nothing that was issued then opens anything.
func TestBackupUnderLoadComesBack(t *testing.T) {
	m, err := testmesh.StartOnPorts()
	must(t, err)
	defer m.Close()
	l := furnish(t, m)
	oldToken := m.Admin(t)
	x := at(t, m.URL, m.CA, oldToken)
	key, file, seals, data := filepath.Join(x.dir, "key"), filepath.Join(x.dir, "backup.age"), filepath.Join(x.dir, "seals"), filepath.Join(x.dir, "data")
	recipient, _ := x.ok("backup", "keygen", key)
	recipient = strings.TrimSpace(recipient)
	x.ok("seals", "copy", "--data", m.Dir, "--to", seals)
	if status := score(t, m, l.endpointUID, l.token); status == http.StatusUnauthorized || status == http.StatusForbidden {
		t.Fatalf("the endpoint's token does not work before: %d", status)
	}
	want := l.contents(t)

	changes := newLoad(t, m.Dial(t, oldToken), l.workspace, l.tracked, 2)
	changes.until(t, 60)
	begin := time.Now()
	_, said := x.ok("backup", file, "--recipient", recipient, "--data", m.Dir)
	end := time.Now()
	changes.until(t, changes.acknowledged()+20)
	changes.stop()
	t.Logf("%s", said)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file: %v, %v", info, err)
	}
	x.refused("is there already", "backup", file, "--recipient", recipient, "--data", m.Dir)
	_, said = x.ok("backup", "verify", file, "--identity", key, "--seals", seals)
	if !strings.Contains(said, "your installation made it") {
		t.Errorf("verify says %q", said)
	}
	// After the backup: what must not come back to life, and what a restore undoes.
	l.wholeLog(t, "CreateServicePrincipal")
	password := m.Password()
	m.Stop()

	_, said = x.ok("restore", file, "--identity", key, "--seals", seals, "--data", data)
	t.Logf("%s", said)
	again, err := testmesh.Start(func(c *node.UpConfig) { c.Data = data })
	must(t, err)
	defer again.Close()
	if !again.FirstPassword.Empty() {
		t.Error("the restored installation has made another administrator")
	}
	stranger := dialed(t, again, oldToken)
	if _, err := stranger.Identity().WhoAmI(t.Context(), &identityv1.WhoAmIRequest{}); !fault.Is(fault.FromStatus(err), codes.Unauthenticated) {
		t.Errorf("a token from before the restore: %v", err)
	}
	if status := score(t, again, l.endpointUID, l.token); status != http.StatusUnauthorized {
		t.Errorf("an endpoint's token from before the restore: %d", status)
	}
	back := *l
	back.Client = dialed(t, again, again.SignIn(t, "admin", password))
	for name, sum := range back.contents(t) {
		if want[name] != sum {
			t.Errorf("%s came back as %q, not %q", name, sum, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	compare(t, changes, back.present(t, changes), begin, end)
	principals := 0
	for id := range back.present(t, changes) {
		if strings.HasPrefix(id, "user-") {
			principals++
		}
	}
	if events := back.wholeLog(t, "CreateServicePrincipal"); events != principals {
		t.Errorf("%d service principals, and %d records of making one", principals, events)
	}
	if _, err := dialed(t, again, again.SignIn(t, "bob", l.bob)).Runs().GetRun(t.Context(), &computev1.GetRunRequest{Name: l.tracked}); err != nil {
		t.Errorf("bob does not read what he may: %v", err)
	}
	works(t, &back)
}

// works uses what came back.
func works(t *testing.T, l *lab) {
	t.Helper()
	_, err := l.Secrets().SetSecret(t.Context(), &keyvaultv1.SetSecretRequest{Parent: l.workspace, SecretId: "afterwards", Value: []byte("x")})
	must(t, err)
	_, err = l.Metrics().LogBatch(t.Context(), &telemetryv1.LogBatchRequest{Run: l.tracked, Metrics: []*telemetryv1.Metric{{Key: "afterwards", Value: 1}}})
	must(t, err)
	if l.ran == "" {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	r, err := l.WaitRun(ctx, l.submit(t, "/bin/sh", "-c", "cat hello.txt"), nil)
	if err != nil || r.GetState() != computev1.Run_STATE_COMPLETED {
		t.Errorf("a new run: %v, %v", r, err)
	}
	if l.runs == "" {
		return
	}
	r, err = l.WaitRun(ctx, l.runs, nil)
	if err != nil || r.GetState() != computev1.Run_STATE_LOST {
		t.Errorf("the run that went on at the backup: %v, %v", r.GetState(), err)
	}
}

// compare holds what came back against what was acknowledged: all from before the backup, nothing that was begun after it, no holes in what
// one worker did one after the other, and no consequence without its cause.
func compare(t *testing.T, changes *load, present map[string]bool, begin, end time.Time) {
	t.Helper()
	before, lost, early, holes := 0, 0, 0, 0
	for id, acked := range changes.acked {
		if acked.Before(begin) {
			before++
			if !present[id] {
				lost++
				t.Errorf("%s was acknowledged %s before the backup, and is lost", id, begin.Sub(acked))
			}
		}
	}
	for id, begun := range changes.begun {
		if begun.After(end) && present[id] {
			early++
			t.Errorf("%s was begun after the backup, and is in it", id)
		}
		i := strings.LastIndexByte(id, '-')
		var n int
		if _, err := fmt.Sscan(id[i+1:], &n); err != nil || n == 0 || !present[id] {
			continue
		}
		if earlier := fmt.Sprintf("%s-%d", id[:i], n-1); !present[earlier] {
			holes++
			t.Errorf("%s is there, and %s is not", id, earlier)
		}
	}
	for n := range changes.chain() {
		for _, c := range [][2]string{{"metric-0-%d", "user-chain-%d"}, {"user-chain-%d", "secret-chain-%d"}} {
			effect, cause := fmt.Sprintf(c[0], n), fmt.Sprintf(c[1], n)
			if present[effect] && !present[cause] {
				t.Errorf("%s is there, and what it came after, %s, is not", effect, cause)
			}
		}
	}
	t.Logf("%d changes, %d acknowledged before the backup and %d of them lost, %d present, %d from after it, %d holes, a chain of %d", len(changes.begun), before, lost, len(present), early, holes, changes.chain())
}
