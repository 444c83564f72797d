package matrix

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// fixture is what the requests are about, and who sends them.
type fixture struct {
	admin *grpc.ClientConn // the owner's, for what is made on the way

	ours   *place // where most requests go
	beside *place // the same workspace, with another run and another snapshot
	theirs *place // of the stranger

	owner, contributor, reader, stranger caller
	operator                             *tls.Certificate // the owner's

	expired, forged string
	servicePrincipal,
	servicePrincipalSecret string

	// models has a model with a version for each place, replicas who may download it, once one of them was needed.
	models   map[*place]string
	replicas map[*place]*run

	certs  map[string]*tls.Certificate
	conns  map[string]*grpc.ClientConn
	tokens map[string]string
	seq    atomic.Int64
}

// place is a workspace with something of each kind.
type place struct {
	sub, group, ws, wsUID string
	// parking is a self-hosted target that nobody claims from.
	parking, snapshot string
	secret, key       string
	run               *run
	// endpoint and deployment are made when one is needed first.
	endpoint, deployment string
}

// run is a run in RUNNING state, whose agent is the test.
type run struct {
	name, id, uid string
	caller        caller // with the run token
	token         string
}

var (
	shared *fixture
	// stops end what the fixture has started.
	stops []func()
)

// live is the fixture, made by the first test that asks.
func live(t *testing.T) *fixture {
	t.Helper()
	if shared == nil {
		shared = newFixture(t)
	}
	return shared
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{models: map[*place]string{}, replicas: map[*place]*run{}, certs: map[string]*tls.Certificate{}, conns: map[string]*grpc.ClientConn{}, tokens: map[string]string{}}
	f.expired = expired(t)
	f.admin = dial(strings.TrimPrefix(mesh.URL, "https://"), mesh.TLS(), grpc.WithPerRPCCredentials(testmesh.Bearer(mesh.Admin(t))))
	f.forged = forged(t, mesh.Admin(t))
	who, err := identityv1.NewSignInServiceClient(f.admin).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{})
	must(t, err)
	f.owner = f.user(t, "admin", mesh.Password(), who.GetUid(), mesh.Admin(t))
	f.contributor = f.newUser(t, "contributor")
	f.reader = f.newUser(t, "reader")
	f.stranger = f.newUser(t, "stranger")
	f.assign(t, "/", authz.Contributor, f.contributor.uid)
	f.assign(t, "/", authz.Reader, f.reader.uid)

	key := newKey(t)
	r, err := identityv1.NewOperatorServiceClient(f.admin).IssueOperatorCertificate(t.Context(), &identityv1.IssueOperatorCertificateRequest{Csr: csr(t, key)})
	must(t, err)
	f.operator = &tls.Certificate{Certificate: r.GetChain(), PrivateKey: key}

	dir := identityv1.NewDirectoryServiceClient(f.admin)
	sp, err := dir.CreateServicePrincipal(t.Context(), &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "robot"})
	must(t, err)
	secret, err := dir.AddServicePrincipalSecret(t.Context(), &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	must(t, err)
	f.servicePrincipal, f.servicePrincipalSecret = secret.GetClientId(), secret.GetSecret()

	f.ours = f.newPlace(t)
	beside := *f.ours
	beside.snapshot = f.snapshot(t, beside.ws)
	beside.run = f.newRun(t, &beside)
	f.beside = &beside
	f.theirs = f.newPlace(t)
	f.assign(t, f.theirs.ws, authz.Owner, f.stranger.uid)
	return f
}

// id gives an id that was not used yet.
func (f *fixture) id(prefix string) string { return fmt.Sprintf("%s-%d", prefix, f.seq.Add(1)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func signIn(t *testing.T, id, pw string) string {
	t.Helper()
	var out string
	must(t, patient(t.Context(), func() error {
		r, err := identityv1.NewSignInServiceClient(gatewayConn()).SignIn(t.Context(), &identityv1.SignInRequest{User: id, Password: pw})
		out = r.GetSession().GetAccessToken()
		return err
	}))
	return out
}

func (f *fixture) user(t *testing.T, id, pw, uid, token string) caller {
	c := outside(uid, bearer(token))
	c.renew = func(t *testing.T) caller { return outside(uid, bearer(signIn(t, id, pw))) }
	return c
}

func (f *fixture) newUser(t *testing.T, id string) caller {
	t.Helper()
	pw := resource.NewUID("pw")
	u, err := identityv1.NewDirectoryServiceClient(f.admin).CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: id, Password: pw})
	must(t, err)
	return f.user(t, id, pw, u.GetUid(), signIn(t, id, pw))
}

func (f *fixture) assign(t *testing.T, scope, role, principal string) *workspacev1.RoleAssignment {
	t.Helper()
	a, err := workspacev1.NewAccessServiceClient(f.admin).CreateRoleAssignment(t.Context(), &workspacev1.CreateRoleAssignmentRequest{Scope: scope, Role: role, Principal: principal})
	must(t, err)
	return a
}

func (f *fixture) group(t *testing.T) *identityv1.Group {
	t.Helper()
	g, err := identityv1.NewDirectoryServiceClient(f.admin).CreateGroup(t.Context(), &identityv1.CreateGroupRequest{GroupId: f.id("group")})
	must(t, err)
	return g
}

func (f *fixture) subscription(t *testing.T) string {
	t.Helper()
	s, err := workspacev1.NewResourceServiceClient(f.admin).CreateSubscription(t.Context(), &workspacev1.CreateSubscriptionRequest{SubscriptionId: f.id("sub"), Region: "here"})
	must(t, err)
	return s.GetName()
}

func (f *fixture) resourceGroup(t *testing.T, sub string) string {
	t.Helper()
	g, err := workspacev1.NewResourceServiceClient(f.admin).CreateResourceGroup(t.Context(), &workspacev1.CreateResourceGroupRequest{Parent: sub, ResourceGroupId: f.id("group")})
	must(t, err)
	return g.GetName()
}

func (f *fixture) workspace(t *testing.T, group string) *workspacev1.Workspace {
	t.Helper()
	w, err := workspacev1.NewResourceServiceClient(f.admin).CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: group, WorkspaceId: f.id("lab")})
	must(t, err)
	return w
}

func (f *fixture) newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{sub: f.subscription(t)}
	p.group = f.resourceGroup(t, p.sub)
	w := f.workspace(t, p.group)
	p.ws, p.wsUID = w.GetName(), w.GetUid()
	p.parking = f.compute(t, p.ws)
	p.snapshot = f.snapshot(t, p.ws)
	p.secret = f.secret(t, p.ws)
	k, err := keyvaultv1.NewKeyServiceClient(f.admin).CreateKey(t.Context(), &keyvaultv1.CreateKeyRequest{Parent: p.ws, KeyId: "key"})
	must(t, err)
	p.key = k.GetName()
	p.run = f.newRun(t, p)
	return p
}

func (f *fixture) compute(t *testing.T, ws string) string {
	t.Helper()
	c, err := computev1.NewComputeServiceClient(f.admin).CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: ws, ComputeId: f.id("compute"), Kind: computev1.Compute_KIND_SELF_HOSTED, MaxRuns: 64})
	must(t, err)
	return c.GetName()
}

func (f *fixture) secret(t *testing.T, ws string) string {
	t.Helper()
	id := f.id("secret")
	_, err := keyvaultv1.NewSecretServiceClient(f.admin).SetSecret(t.Context(), &keyvaultv1.SetSecretRequest{Parent: ws, SecretId: id, Value: []byte("first")})
	must(t, err)
	return ws + "/secrets/" + id
}

func (f *fixture) blob(t *testing.T, ws string) (content, digest []byte) {
	t.Helper()
	content = []byte("print('" + f.id("hello") + "')\n")
	sum := sha256.Sum256(content)
	s, err := workspacev1.NewSnapshotServiceClient(f.admin).UploadBlob(t.Context())
	must(t, err)
	must(t, s.Send(&workspacev1.UploadBlobRequest{Parent: ws, Digest: sum[:], Size: int64(len(content)), Data: content}))
	_, err = s.CloseAndRecv()
	must(t, err)
	return content, sum[:]
}

func (f *fixture) snapshot(t *testing.T, ws string) string {
	t.Helper()
	content, digest := f.blob(t, ws)
	s, err := workspacev1.NewSnapshotServiceClient(f.admin).CreateSnapshot(t.Context(), &workspacev1.CreateSnapshotRequest{Parent: ws, Entries: []*workspacev1.SnapshotEntry{{Path: "train.py", Digest: digest, Size: int64(len(content))}}})
	must(t, err)
	return s.GetName()
}

// submit queues a run on a target.
func (f *fixture) submit(t *testing.T, p *place, compute string) *computev1.Run {
	t.Helper()
	r, err := computev1.NewRunServiceClient(f.admin).SubmitRun(t.Context(), &computev1.SubmitRunRequest{Parent: p.ws, Compute: compute, Snapshot: p.snapshot, Command: []string{"python3", "train.py"}, RunId: f.id("run")})
	must(t, err)
	return r
}

// newRun takes a run from its queue and enrols as its agent, and keeps it alive until the test has ended.
func (f *fixture) newRun(t *testing.T, p *place) *run {
	t.Helper()
	compute := f.compute(t, p.ws)
	r := f.submit(t, p, compute)
	out := f.carried(t, p, compute, r.GetName())
	agent := computev1.NewAgentRunServiceClient(gatewayConn())
	as := func(method string) context.Context {
		return metadata.AppendToOutgoingContext(context.WithoutCancel(t.Context()), out.caller.auth(t, method)...)
	}
	logs, err := agent.AppendLogs(as(computev1.AgentRunService_AppendLogs_FullMethodName))
	must(t, err)
	must(t, logs.Send(&computev1.AppendLogsRequest{Name: out.name, Data: []byte("hello\n")}))
	_, err = logs.Recv()
	must(t, err)
	_ = logs.CloseSend()
	up, err := agent.UploadOutput(as(computev1.AgentRunService_UploadOutput_FullMethodName))
	must(t, err)
	sum := sha256.Sum256([]byte("model"))
	must(t, up.Send(&computev1.UploadOutputRequest{Name: out.name, Path: "model.json", Size: 5, Digest: sum[:], Data: []byte("model")}))
	_, err = up.CloseAndRecv()
	must(t, err)
	metrics, err := telemetryv1.NewMetricServiceClient(gatewayConn()).LogRunData(as(telemetryv1.MetricService_LogRunData_FullMethodName))
	must(t, err)
	must(t, metrics.Send(&telemetryv1.LogRunDataRequest{Run: out.name, BatchId: f.id("batch"), Metrics: []*telemetryv1.Metric{{Key: "loss", Value: 1}}}))
	_, err = metrics.Recv()
	must(t, err)
	_ = metrics.CloseSend()

	return out
}

// carried claims a run that waits for a target of its own, enrols as its agent, and keeps it alive until the test has ended.
func (f *fixture) carried(t *testing.T, p *place, compute, name string) *run {
	t.Helper()
	c, err := computev1.NewComputeServiceClient(f.admin).ClaimRun(t.Context(), &computev1.ClaimRunRequest{Name: compute, Wait: durationpb.New(5 * time.Second)})
	must(t, err)
	if c.GetBootstrap().GetRun() != name {
		t.Fatalf("claimed %v, not %s", c, name)
	}
	key := newKey(t)
	prover, err := authn.NewProver(key, nil)
	must(t, err)
	e, err := identityv1.NewAgentServiceClient(gatewayConn()).EnrolAgent(t.Context(), &identityv1.EnrolAgentRequest{JoinToken: c.GetBootstrap().GetJoinToken(), Csr: csr(t, key)})
	must(t, err)
	out := &run{name: name, id: name[len(p.ws+"/runs/"):], uid: c.GetBootstrap().GetRunUid(), token: e.GetRunToken(), caller: outside(f.owner.uid, dpop(e.GetRunToken(), prover))}
	agent := computev1.NewAgentRunServiceClient(gatewayConn())
	as := func(method string) context.Context {
		return metadata.AppendToOutgoingContext(context.WithoutCancel(t.Context()), out.caller.auth(t, method)...)
	}
	_, err = agent.GetAssignment(as(computev1.AgentRunService_GetAssignment_FullMethodName), &computev1.GetAssignmentRequest{Name: out.name})
	must(t, err)

	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				ctx, cancel := context.WithTimeout(as(computev1.AgentRunService_Heartbeat_FullMethodName), 5*time.Second)
				_, _ = agent.Heartbeat(ctx, &computev1.HeartbeatRequest{Name: out.name, Running: true})
				cancel()
			}
		}
	}()
	stops = append(stops, func() { close(stop); <-done })
	return out
}

// robot gives a new token of the service principal.
func (f *fixture) robot(t *testing.T) string {
	t.Helper()
	var token string
	must(t, patient(t.Context(), func() error {
		r, err := identityv1.NewTokenServiceClient(gatewayConn()).IssueToken(t.Context(), &identityv1.IssueTokenRequest{GrantType: "client_credentials", ClientId: f.servicePrincipal, ClientSecret: f.servicePrincipalSecret})
		token = r.GetAccessToken()
		return err
	}))
	return token
}
