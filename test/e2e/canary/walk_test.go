package canary

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// walk is the tenant's way through the installation. What is written, and may not be found, is in canaries.
type walk struct {
	t        *testing.T
	ctx      context.Context
	admin    *client.Client
	canaries map[string]string
	// sensitive are those of the canaries that not even the caller's own refusal may repeat.
	sensitive map[string]bool
	said      *answers
	agentLog  *buffer // of the self-hosted agent

	workspace, compute, snapshot, run, waiting, waitingUID string
}

// text makes a canary that may be an id: a letter, then letters and digits.
func (w *walk) text(what string) string {
	s := "c" + strings.ToLower(rand.Text())
	if w.canaries[what] != "" {
		w.t.Fatalf("there are two canaries for %q", what)
	}
	w.canaries[what] = s
	return s
}

// free makes a canary with what free text may hold besides.
func (w *walk) free(what string) string {
	s := w.text(what)
	s = s[:9] + " é/" + s[9:]
	w.canaries[what] = s
	return s
}

// note makes a canary of what the installation made.
func (w *walk) note(what, secret string) {
	if secret == "" {
		w.t.Fatalf("there is no %s", what)
	}
	w.canaries[what] = secret
}

func (w *walk) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// eventually repeats what becomes true within milliseconds: changes travel between services.
func (w *walk) eventually(f func() error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			w.t.Fatal(err)
		case <-tick.C:
		}
	}
}

func newWalk(t *testing.T) *walk {
	t.Helper()
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
	w := &walk{t: t, ctx: t.Context(), canaries: make(map[string]string), sensitive: make(map[string]bool), said: &answers{}, agentLog: &buffer{}}
	c, err := client.Dial(client.Context{Name: "canary", Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(mesh.Admin(t)))
	w.must(err)
	t.Cleanup(func() { _ = c.Close() })
	w.admin = c
	w.note("the first password", mesh.Password())
	w.token("the administrator's access token", mesh.Admin(t))
	return w
}

// token notes the parts of a token that are worth something: claims and signature.
func (w *walk) token(what, jwt string) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		w.t.Fatalf("%s is no JWT", what)
	}
	w.note(what+", claims", parts[1])
	w.note(what+", signature", parts[2])
}

// people makes users, groups and service principals.
func (w *walk) people() {
	dir := w.admin.Directory()
	user, pw := w.text("user id"), w.free("user's password")
	u, err := dir.CreateUser(w.ctx, &identityv1.CreateUserRequest{UserId: user, DisplayName: w.free("user's display name"), Password: pw})
	w.must(err)
	s, err := w.admin.SignIn(w.ctx, user, redact.FromString(pw))
	w.must(err)
	w.token("user's access token", s.GetAccessToken())
	again := w.free("user's second password")
	_, err = dir.SetUserPassword(w.ctx, &identityv1.SetUserPasswordRequest{Name: u.GetName(), NewPassword: again})
	w.must(err)
	g, err := dir.CreateGroup(w.ctx, &identityv1.CreateGroupRequest{GroupId: w.text("group id"), DisplayName: w.free("group's display name")})
	w.must(err)
	_, err = dir.AddGroupMember(w.ctx, &identityv1.AddGroupMemberRequest{Name: g.GetName(), Member: u.GetUid()})
	w.must(err)
	sp, err := dir.CreateServicePrincipal(w.ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: w.text("service principal id"), DisplayName: w.free("service principal's display name")})
	w.must(err)
	secret, err := dir.AddServicePrincipalSecret(w.ctx, &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	w.must(err)
	w.note("client secret", secret.GetSecret())
	_, err = w.admin.Access().CreateRoleAssignment(w.ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: w.workspace, Role: "roleDefinitions/reader", Principal: u.GetUid()})
	w.must(err)
}

// places makes the tree of resources.
func (w *walk) places() {
	res := w.admin.Resources()
	sub, err := res.CreateSubscription(w.ctx, &workspacev1.CreateSubscriptionRequest{SubscriptionId: w.text("subscription id"), DisplayName: w.free("subscription's display name"), Region: w.text("region")})
	w.must(err)
	group, err := res.CreateResourceGroup(w.ctx, &workspacev1.CreateResourceGroupRequest{Parent: sub.GetName(), ResourceGroupId: w.text("resource group id"), DisplayName: w.free("resource group's display name")})
	w.must(err)
	ws, err := res.CreateWorkspace(w.ctx, &workspacev1.CreateWorkspaceRequest{
		Parent: group.GetName(), WorkspaceId: w.text("workspace id"), DisplayName: w.free("workspace display name"), Description: w.free("workspace's description"),
		Tags: map[string]string{w.text("workspace's tag"): w.free("value of workspace's tag")},
	})
	w.must(err)
	w.workspace = ws.GetName()
}

// vault fills the workspace's vault.
func (w *walk) vault() {
	var secret *keyvaultv1.SecretVersion
	id, value := w.text("secret name"), w.free("secret value")
	w.eventually(func() (err error) {
		secret, err = w.admin.Secrets().SetSecret(w.ctx, &keyvaultv1.SetSecretRequest{Parent: w.workspace, SecretId: id, Value: []byte(value), ContentType: w.canaries["content type"]})
		return err
	})
	got, err := w.admin.Secrets().AccessSecret(w.ctx, &keyvaultv1.AccessSecretRequest{Name: secret.GetName()[:strings.LastIndex(secret.GetName(), id)+len(id)]})
	w.must(err)
	if string(got.GetValue()) != value {
		w.t.Fatal("the secret comes back as another")
	}
	key := w.text("key name")
	_, err = w.admin.Keys().CreateKey(w.ctx, &keyvaultv1.CreateKeyRequest{Parent: w.workspace, KeyId: key})
	w.must(err)
	name, aad := w.workspace+"/keys/"+key, []byte(w.free("associated data"))
	sealed, err := w.admin.Keys().Encrypt(w.ctx, &keyvaultv1.EncryptRequest{Name: name, Plaintext: []byte(w.free("plaintext passed to key encrypt")), AssociatedData: aad})
	w.must(err)
	_, err = w.admin.Keys().Decrypt(w.ctx, &keyvaultv1.DecryptRequest{Name: name, Ciphertext: sealed.GetCiphertext(), AssociatedData: aad})
	w.must(err)
}

// post.py logs by the run's own endpoint, where there is a Python.
const post = `import json, os, urllib.request
def post(what, **body):
    body["run_id"] = os.environ["MLFLOW_RUN_ID"]
    urllib.request.urlopen(urllib.request.Request(os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/" + what, json.dumps(body).encode())).read()
post("log-metric", key=%q, value=1.5, timestamp=1, step=1)
post("log-parameter", key=%q, value=%q)
post("set-tag", key=%q, value=%q)
`

// train runs a script from a snapshot, to its end; and another one that goes on, so that there is an agent to look at.
func (w *walk) train() {
	dir := w.t.TempDir()
	script := fmt.Sprintf("# %s\nset -e\nif command -v python3 >/dev/null; then python3 post.py; fi\necho '%s'\necho '%s' >&2\nmkdir $REDOUBT_OUTPUTS/%s\necho '%s' > $REDOUBT_OUTPUTS/%[4]s/%[6]s\n",
		w.free("script line"), w.free("log line"), w.free("line of the error output"), w.text("output folder"), w.free("output content"), w.text("output name"))
	w.must(os.WriteFile(filepath.Join(dir, "train.sh"), []byte(script), 0o600))
	w.must(os.WriteFile(filepath.Join(dir, "post.py"), fmt.Appendf(nil, post, w.text("metric name, by the endpoint"), w.text("parameter, by the endpoint"), w.text("value of parameter, by the endpoint"), w.text("tag, by the endpoint"), w.text("value of tag, by the endpoint")), 0o600))
	sub := filepath.Join(dir, w.text("snapshot folder name"))
	w.must(os.Mkdir(sub, 0o700))
	w.must(os.WriteFile(filepath.Join(sub, w.text("snapshot file name")), []byte(strings.Repeat(w.free("snapshot file content")+"\n", 5000)), 0o600))
	s, err := w.admin.UploadSnapshot(w.ctx, w.workspace, dir, nil)
	w.must(err)
	w.snapshot = s.GetName()
	c, err := w.admin.Computes().CreateCompute(w.ctx, &computev1.CreateComputeRequest{Parent: w.workspace, ComputeId: w.text("compute target id"), Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 2})
	w.must(err)
	w.compute = c.GetName()
	env := map[string]string{strings.ToUpper(w.text("environment name")): w.free("environment value")}
	w.canaries["environment name"] = strings.ToUpper(w.canaries["environment name"])
	r, err := w.admin.Runs().SubmitRun(w.ctx, &computev1.SubmitRunRequest{
		Parent: w.workspace, RunId: w.text("run name"), DisplayName: w.free("run's display name"), Compute: w.compute, Snapshot: w.snapshot,
		Command: []string{"/bin/sh", "train.sh", w.free("command argument")}, Experiment: w.free("experiment"), Environment: env, Limits: &computev1.RunLimits{Timeout: durationpb.New(time.Minute)},
	})
	w.must(err)
	w.run = r.GetName()
	w.measure()
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	end, err := w.admin.WaitRun(ctx, w.run, nil)
	w.must(err)
	var log strings.Builder
	_, err = w.admin.FollowLogs(ctx, w.run, 0, false, &log)
	w.must(err)
	if end.GetState() != computev1.Run_STATE_COMPLETED || !strings.Contains(log.String(), w.canaries["log line"]) {
		w.t.Fatalf("the run ended as %s: %s\n%s", end.GetState(), end.GetMessage(), log.String())
	}
	out := w.t.TempDir()
	w.must(w.admin.DownloadOutputs(ctx, w.run, out, nil, nil))
	if b, err := os.ReadFile(filepath.Join(out, w.canaries["output folder"], w.canaries["output name"])); err != nil || strings.TrimSpace(string(b)) != w.canaries["output content"] {
		w.t.Fatalf("the output: %q %v", b, err)
	}
	long, err := w.admin.Runs().SubmitRun(w.ctx, &computev1.SubmitRunRequest{
		Parent: w.workspace, RunId: w.text("waiting run's name"), Compute: w.compute, Snapshot: w.snapshot, Command: []string{"/bin/sh", "-c", "echo " + w.text("waiting run's log line") + "; sleep 600"},
	})
	w.must(err)
	w.waiting, w.waitingUID = long.GetName(), long.GetUid()
	w.eventually(func() error {
		var log strings.Builder
		if _, err := w.admin.FollowLogs(w.ctx, w.waiting, 0, false, &log); err != nil {
			return err
		}
		if !strings.Contains(log.String(), w.canaries["waiting run's log line"]) {
			return fmt.Errorf("the waiting run has logged %q", log.String())
		}
		return nil
	})
}

// register makes models of the run's output and of a file, with all that can be said of them.
func (w *walk) register() {
	models := w.admin.Models()
	m, err := models.CreateModel(w.ctx, &inferencev1.CreateModelRequest{
		Parent: w.workspace, ModelId: w.text("model id"), Description: w.free("model's description"), Tags: map[string]string{w.text("model's tag"): w.free("value of model's tag")},
	})
	w.must(err)
	v, err := models.CreateModelVersion(w.ctx, &inferencev1.CreateModelVersionRequest{
		Parent: m.GetName(), SourceRun: w.run, SourcePath: w.canaries["output folder"], RequestId: w.text("request id of a model version"),
		Description: w.free("version's description"), Tags: map[string]string{w.text("version's tag"): w.free("value of version's tag")},
	})
	w.must(err)
	_, err = models.SetModelAlias(w.ctx, &inferencev1.SetModelAliasRequest{Name: m.GetName(), Alias: w.text("model's alias"), Version: v.GetVersion()})
	w.must(err)
	content := []byte(w.free("content of a model's file"))
	sum := sha256.Sum256(content)
	up, err := models.UploadModelVersion(w.ctx)
	w.must(err)
	w.must(up.Send(&inferencev1.UploadModelVersionRequest{
		Parent: w.workspace + "/models/" + w.text("other model's id"), CreateModel: true,
		File: &inferencev1.ModelFile{Path: w.text("folder of a model") + "/" + w.text("file of a model"), Size: int64(len(content)), Digest: sum[:]}, Data: content,
	}))
	other, err := up.CloseAndRecv()
	w.must(err)
	for name, want := range map[string]string{m.GetName() + "/versions/" + w.canaries["model's alias"]: w.canaries["output content"] + "\n", other.GetName(): string(content)} {
		down, err := models.DownloadModelVersion(w.ctx, &inferencev1.DownloadModelVersionRequest{Name: name})
		w.must(err)
		msg, err := down.Recv()
		w.must(err)
		if string(msg.GetData()) != want {
			w.t.Fatalf("the model's file came back as %q", msg.GetData())
		}
	}
}

// measure logs to a run as a user.
func (w *walk) measure() {
	stream, err := w.admin.Metrics().LogRunData(w.ctx)
	w.must(err)
	w.must(stream.Send(&telemetryv1.LogRunDataRequest{
		Run: w.run, BatchId: w.text("batch id"),
		Metrics: []*telemetryv1.Metric{{Key: w.text("metric name"), Value: 1, Step: 1, Time: timestamppb.Now()}},
		Params:  []*telemetryv1.Param{{Key: w.text("parameter"), Value: w.free("value of parameter")}},
		Tags:    []*telemetryv1.Tag{{Key: w.text("tag"), Value: w.free("value of tag")}},
	}))
	_, err = stream.Recv()
	w.must(err)
	w.must(stream.CloseSend())
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		w.t.Fatal(err)
	}
}

// host carries a run with an agent of this process, whose join token and run token are known then.
func (w *walk) host() {
	c, err := w.admin.Computes().CreateCompute(w.ctx, &computev1.CreateComputeRequest{Parent: w.workspace, ComputeId: w.text("self-hosted target id"), Kind: computev1.Compute_KIND_SELF_HOSTED})
	w.must(err)
	_, err = w.admin.Runs().SubmitRun(w.ctx, &computev1.SubmitRunRequest{
		Parent: w.workspace, RunId: w.text("hosted run's name"), Compute: c.GetName(), Snapshot: w.snapshot, Command: []string{"/bin/sh", "-c", "echo " + w.text("hosted run's log line") + "; sleep 1"},
	})
	w.must(err)
	claimed, err := w.admin.Computes().ClaimRun(w.ctx, &computev1.ClaimRunRequest{Name: c.GetName(), Wait: durationpb.New(10 * time.Second)})
	w.must(err)
	b := claimed.GetBootstrap()
	w.note("join token", b.GetJoinToken())
	u, err := url.Parse(mesh.URL)
	w.must(err)
	roots, err := agent.NewRoots(mesh.CA)
	w.must(err)
	a, err := agent.New(agent.Config{
		Gateway: u.Host, PublicURL: mesh.URL, Roots: roots, Run: b.GetRun(), RunUID: b.GetRunUid(), JoinToken: redact.FromString(b.GetJoinToken()),
		Logger: slog.New(slog.NewJSONHandler(w.agentLog, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	w.must(err)
	defer func() { _ = a.Close() }()
	done := make(chan error, 1)
	go func() { done <- a.Run(w.ctx) }()
	token := ""
	w.eventually(func() error {
		if token = a.Token().RevealString(); token == "" {
			return fmt.Errorf("the agent has no token yet")
		}
		return nil
	})
	w.token("run token", token)
	w.must(<-done)
}

// refused has the installation refuse what holds canaries: errors go other ways than what succeeds.
func (w *walk) refused() {
	fails := func(what string, err error) {
		w.t.Helper()
		if err == nil {
			w.t.Errorf("%s succeeded", what)
		}
	}
	ctx := metadata.AppendToOutgoingContext(w.ctx, "x-canary", w.text("header"), "x-request-id", w.free("request id that is none"))
	_, err := w.admin.SignIn(ctx, w.text("user who is not there"), redact.FromString(w.free("password of nobody")))
	fails("a sign-in", err)
	_, err = w.admin.SignIn(ctx, "admin", redact.FromString(w.free("wrong password")))
	fails("a wrong password", err)
	_, err = w.admin.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: w.workspace + "/runs/" + w.text("run that is not there")})
	fails("a run", err)
	_, err = w.admin.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: "../" + w.text("name that is none")})
	fails("a name", err)
	_, err = w.admin.Secrets().SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: w.workspace, SecretId: "-" + w.text("secret id that is refused"), Value: []byte(w.free("secret value that is refused"))})
	fails("a secret", err)
	_, err = w.admin.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: w.workspace, Compute: w.compute, Snapshot: w.snapshot, Command: []string{"true"}, Environment: map[string]string{"DB_PASSWORD": w.free("secret in the environment")}})
	fails("a secret in the environment", err)
	_, err = w.admin.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: w.workspace, Compute: w.compute, Snapshot: w.workspace + "/snapshots/" + w.text("snapshot that is not there"), Command: []string{"true"}})
	fails("a snapshot", err)
	_, err = w.admin.Resources().GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: "subscriptions/" + w.text("subscription that is not there") + "/resourceGroups/a/workspaces/b"})
	fails("a workspace", err)
	_, err = w.admin.Runs().ListRuns(ctx, &computev1.ListRunsRequest{Parent: w.workspace, PageToken: w.text("page token that is none")})
	fails("a page token", err)
	_, err = w.admin.Keys().Decrypt(ctx, &keyvaultv1.DecryptRequest{Name: w.workspace + "/keys/" + w.canaries["key name"], Ciphertext: []byte(w.free("ciphertext that is none"))})
	fails("a ciphertext", err)
	stranger, err := client.Dial(client.Context{Name: "stranger", Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(w.text("bearer token that is none")))
	w.must(err)
	defer func() { _ = stranger.Close() }()
	_, err = stranger.Identity().WhoAmI(ctx, &identityv1.WhoAmIRequest{})
	fails("a token", err)
	w.web()
	// A run that cannot start, and one that ends badly: reports hold messages.
	r, err := w.admin.Runs().SubmitRun(w.ctx, &computev1.SubmitRunRequest{Parent: w.workspace, Compute: w.compute, Snapshot: w.snapshot, Command: []string{"/no/" + w.text("program that is not there")}})
	w.must(err)
	bounded, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	end, err := w.admin.WaitRun(bounded, r.GetName(), nil)
	w.must(err)
	if end.GetState() != computev1.Run_STATE_FAILED {
		w.t.Errorf("a run without a program ended as %s", end.GetState())
	}
}

// web asks the HTTP side.
func (w *walk) web() {
	cfg := mesh.TLS()
	cfg.NextProtos = nil
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
	defer web.CloseIdleConnections()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {w.text("client id that is not there")}, "client_secret": {w.free("client secret that is wrong")}, "scope": {w.text("scope of a form")}}
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/oauth2/token", form.Encode()},
		{"GET", "/" + w.text("path") + "?" + w.text("query") + "=" + url.QueryEscape(w.free("value of query")), ""},
		{"POST", "/oauth2/token?" + w.text("query of the token endpoint"), "%zz" + w.text("form that is none")},
	} {
		req, err := http.NewRequestWithContext(w.ctx, c.method, mesh.URL+c.path, strings.NewReader(c.body))
		w.must(err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("User-Agent", w.canaries["user agent"])
		req.Header.Set("Referer", "https://"+w.canaries["referer"])
		req.SetBasicAuth(w.canaries["user of basic authentication"], w.canaries["password of basic authentication"])
		if strings.Contains(c.body, "client_secret") {
			req.Header.Del("Authorization")
		}
		res, err := web.Do(req)
		w.must(err)
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode < 400 {
			w.t.Errorf("%s %s: %s", c.method, c.path, res.Status)
		}
	}
}
