package node

import (
	"cmp"
	"context"
	"crypto/x509"
	"net/url"
	"slices"
	"time"

	"google.golang.org/grpc"
	channelzpb "google.golang.org/grpc/channelz/grpc_channelz_v1"
	channelz "google.golang.org/grpc/channelz/service"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/compute"
	"github.com/redoubt-ml/redoubt/services/identity"
	"github.com/redoubt-ml/redoubt/services/inference"
	"github.com/redoubt-ml/redoubt/services/keyvault"
	"github.com/redoubt-ml/redoubt/services/telemetry"
	"github.com/redoubt-ml/redoubt/services/workspace"
)

// foreign are the contracts of others that our servers serve.
var foreign = []string{"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", channelzpb.Channelz_ServiceDesc.ServiceName}

// Rules loads what every method of ours declares, with the overlay for the contracts of others.
func Rules() (*rule.Table, error) {
	return rule.Load(append(rule.Registered("redoubt"), foreign...)...)
}

// served is what the constructors give.
type served interface {
	Register(grpc.ServiceRegistrar)
}

// migrations of each service's own tables; the gateway keeps none.
var migrations = map[string]func() sqldb.MigrationSet{
	"identity": identity.Migrations, "workspace": workspace.Migrations, "keyvault": keyvault.Migrations,
	"telemetry": telemetry.Migrations, "compute": compute.Migrations, "inference": inference.Migrations,
}

func (n *Node) start(ctx context.Context) error {
	rules, err := Rules()
	if err != nil {
		return err
	}
	if err := n.serveMetrics(); err != nil {
		return err
	}
	tracing, err := n.newTracing(ctx)
	if err != nil {
		return err
	}
	red, err := observe.NewRED(n.metrics.Registerer())
	if err != nil {
		return err
	}
	chain := rpc.Config{
		Service: n.name, TrustDomain: n.cfg.Mesh.TrustDomain, Installation: n.cfg.Mesh.TrustDomain, Issuer: n.cfg.Mesh.PublicURL,
		PublicURL: n.cfg.Mesh.PublicURL, Rules: rules, RED: red, Tracing: tracing, Logger: n.log, Now: n.opts.Now, Limits: n.opts.Limits,
	}
	if n.name == rpc.Gateway {
		return n.startGateway(ctx, chain)
	}
	var own []sqldb.MigrationSet
	if f, ok := migrations[n.name]; ok {
		own = append(own, f())
	}
	st, err := n.openState(ctx, own...)
	if err != nil {
		return err
	}
	chain.Recorder, chain.Engine = st.outbox, st.engine
	if chain.Proofs, err = authn.NewProofChecker(authn.ProofConfig{Now: n.opts.Now, Shared: st.proofs}); err != nil {
		return err
	}
	l, err := n.listen(n.name, n.cfg.Service.Listen)
	if err != nil {
		return err
	}
	n.addr = l.Addr().String()
	var issue svid.IssueFunc
	if n.name == "identity" {
		if err := n.newIdentity(st); err != nil {
			return err
		}
		issue = n.identity.IssueSelf
	}
	m, err := n.joinMesh(ctx, rules, issue)
	if err != nil {
		return err
	}
	if n.name == "identity" {
		n.countInstances(m)
	}
	if n.name == "identity" && m.keeper != nil {
		// Others need no etcd to enrol, and get nothing but certificates of a root that they know already.
		if err := n.serveEnrolment(chain, m); err != nil {
			return err
		}
	}
	if err := n.claim(ctx, m); err != nil {
		return err
	}
	n.elect(st, m)
	if chain.Fence, err = n.joinFence(st, m); err != nil {
		return err
	}
	svc, err := n.build(ctx, st, m)
	if err != nil {
		return err
	}
	if chain.Verifier, err = n.verifier(st, m); err != nil {
		return err
	}
	c, err := rpc.NewChain(chain)
	if err != nil {
		return err
	}
	n.chain = c
	server := c.NewServer(m.source.ServerCredentials(), rule.Registered("redoubt."+n.name)...)
	svc.Register(c.Registrar(server))
	if err := n.serveBackup(c.Registrar(server), st); err != nil {
		return err
	}
	n.serveStatus(c.Registrar(server), st, m)
	n.standard(c, server)
	channelz.RegisterChannelzServiceToServer(c.Registrar(server)) // not at the gateway, which decides about nobody
	n.serve("server", server, l)
	if n.identity != nil && n.cfg.Service.MTLSListen != "" {
		if err := n.serveCertificates(chain, m); err != nil {
			return err
		}
	}
	if s, ok := svc.(*inference.Service); ok {
		n.serveScoring(s, m)
	}
	if err := n.follow(st, m); err != nil {
		return err
	}
	if r, ok := svc.(interface{ Run(context.Context) error }); ok {
		n.background("work", r.Run)
	}
	if s, ok := svc.(interface{ Close() error }); ok {
		n.onStop(func() { _ = s.Close() })
	}
	n.state, n.mesh = st, m
	n.catchUp(ctx, st, m)
	return n.announce(m, n.addr)
}

// catchUpWithin is how long an instance leaves the calls to the others while it does not decide yet.
const catchUpWithin = 10 * time.Second

// catchUp waits, where another instance of the service takes calls, until this one decides too: from fresh state, under the fence. A call that
// may not be repeated would fail here else. The first instance does not wait: others may need it to get their own state.
func (n *Node) catchUp(ctx context.Context, st *state, m *mesh) {
	ctx, cancel := context.WithTimeout(ctx, catchUpWithin)
	defer cancel()
	there, err := m.registry.List(ctx)
	if err != nil || !slices.ContainsFunc(there[n.name], func(i discovery.Instance) bool { return i.Name != n.cfg.Service.Instance }) {
		return
	}
	if err := n.decides(ctx, st, nil); err != nil {
		n.log.WarnContext(ctx, "this instance is announced although it does not decide yet", "error", err)
	}
}

// announce says where the service is, which is addr unless the configuration knows better, and that it serves.
func (n *Node) announce(m *mesh, addr string) (err error) {
	if n.registration, err = m.registry.Announce(n.name, n.cfg.Service.Instance, cmp.Or(n.cfg.Service.Advertise, addr)); err != nil {
		return err
	}
	n.onStop(n.registration.Close)
	n.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	return nil
}

// follow keeps the engine fed and the outbox drained.
func (n *Node) follow(st *state, m *mesh) error {
	var authorization workspacev1.AuthorizationStateServiceClient
	var security identityv1.TokenServiceClient
	if n.name != "workspace" {
		c, err := n.dial(m, "workspace")
		if err != nil {
			return err
		}
		authorization = workspacev1.NewAuthorizationStateServiceClient(c)
	}
	if n.name != "identity" {
		c, err := n.dial(m, "identity")
		if err != nil {
			return err
		}
		security = identityv1.NewTokenServiceClient(c)
	}
	n.background("authorization state", func(ctx context.Context) error {
		authz.Follow(ctx, st.engine, authorization, security, n.log)
		return nil
	})
	t, err := n.dial(m, "telemetry")
	if err != nil {
		return err
	}
	n.background("outbox", func(ctx context.Context) error {
		return st.outbox.Relay(ctx, audit.To(telemetryv1.NewIngestServiceClient(t)))
	})
	return nil
}

// verifier verifies callers' tokens with identity's published keys and what the engine knows of revocations.
func (n *Node) verifier(st *state, m *mesh) (rpc.Verifier, error) {
	if n.identity != nil {
		return n.identity.Verifier(), nil
	}
	c, err := n.dial(m, "identity")
	if err != nil {
		return nil, err
	}
	tokens := identityv1.NewTokenServiceClient(c)
	keys, err := authn.NewRemoteKeys(authn.RemoteKeysConfig{Now: n.opts.Now, Epoch: st.engine.Revocations().KeysEpoch, Fetch: func(ctx context.Context) ([]byte, error) {
		d, err := tokens.GetKeys(ctx, &identityv1.GetKeysRequest{})
		return d.GetJson(), err
	}})
	if err != nil {
		return nil, err
	}
	return authn.New(authn.Config{Issuer: n.cfg.Mesh.PublicURL, Keys: keys, Revocations: st.engine.Revocations(), Now: n.opts.Now})
}

func (n *Node) newIdentity(st *state) (err error) {
	var enrol string
	var elsewhere func() []*x509.Certificate
	if a := n.cfg.Mesh.Enrolment(); len(a) > 0 {
		enrol = a[0]
	}
	if n.cfg.Service.WorkloadAPI != "" {
		elsewhere = func() []*x509.Certificate {
			if h := n.own.Load(); h != nil {
				return (*h).Bundle()
			}
			return nil
		}
	}
	passwords := n.opts.Password
	passwords.Apart = passwords.Apart && !n.cfg.Service.PasswordsInProcess
	n.count.Store(1) // until it is known
	n.identity, err = identity.New(identity.Config{
		DB: st.db, Outbox: st.outbox, Own: st.own, Engine: st.engine, Leader: st.leader, Fence: st.fence, Proofs: st.proofs, TrustDomain: n.cfg.Mesh.TrustDomain, Issuer: n.cfg.Mesh.PublicURL,
		PublicHosts: n.cfg.Service.PublicHosts, CertificateURL: n.cfg.Service.MTLSURL, EnrolAddress: enrol, ServiceRoots: elsewhere, SVIDLife: n.cfg.Mesh.LeafLife,
		RunTokenLife: n.cfg.Service.RunLife, RootPeriod: n.cfg.Service.RootPeriod, Instance: n.cfg.Service.Instance, Instances: n.instances, ConnectionLife: n.opts.Limits.ConnectionLife(),
		KeyPeriod: n.cfg.Service.KeyPeriod, KeyAhead: n.cfg.Service.KeyAhead, TokenLife: n.cfg.Service.TokenLife, Consumers: n.cfg.Service.Consumers, Password: passwords, Now: n.opts.Now, Logger: n.log,
	})
	if err != nil {
		return err
	}
	return n.countPasswords()
}

// serveEnrolment opens the one listener that takes self-signed certificates.
func (n *Node) serveEnrolment(cfg rpc.Config, m *mesh) error {
	cfg.Enrolment = true
	c, err := rpc.NewChain(cfg)
	if err != nil {
		return err
	}
	l, err := n.listen("identity-enrol", n.cfg.enrolListen())
	if err != nil {
		return err
	}
	failures, err := n.counter("redoubt_enrolment_handshake_failures_total", "TLS handshakes that failed on the enrolment port.")
	if err != nil {
		return err
	}
	s := c.NewServer(svid.EnrolServerCredentials(m.own.Current, n.opts.Now, func(error) { failures.Inc() }))
	n.identity.RegisterEnrolment(c.Registrar(s))
	n.serve("enrolment", s, l)
	return nil
}

// build makes the service itself.
func (n *Node) build(ctx context.Context, st *state, m *mesh) (served, error) {
	peer := func(service string) grpc.ClientConnInterface {
		c, err := n.dial(m, service)
		if err != nil {
			return broken{err}
		}
		return c
	}
	keys := func() (*envelope.Keyring, error) {
		k, err := envelope.New(envelope.Config{Source: vaultSource{keyvaultv1.NewVaultServiceClient(peer("keyvault"))}, DB: st.db, Now: n.opts.Now})
		if err == nil {
			n.background("data keys", func(ctx context.Context) error { k.Follow(ctx); return nil })
		}
		return k, err
	}
	switch n.name {
	case "identity":
		return n.identity, nil
	case "keyvault":
		return keyvault.New(keyvault.Config{DB: st.db, Own: st.own, Now: n.opts.Now, Logger: n.log})
	}
	k, err := keys()
	if err != nil {
		return nil, err
	}
	if n.name == "telemetry" {
		return telemetry.New(telemetry.Config{
			DB: st.db, Own: st.own, Keys: k, Leader: st.leader, Runs: computev1.NewRunInternalServiceClient(peer("compute")),
			Endpoints:        inferencev1.NewInferenceInternalServiceClient(peer("inference")),
			RequestRetention: time.Duration(n.cfg.Service.RequestLogDays) * 24 * time.Hour, Now: n.opts.Now, Logger: n.log,
		})
	}
	b, err := n.openBlobs(ctx)
	if err != nil {
		return nil, err
	}
	if n.name == "workspace" {
		n.workspace, err = workspace.New(workspace.Config{
			DB: st.db, Outbox: st.outbox, Own: st.own, Keys: k, Blobs: b, Engine: st.engine, Leader: st.leader, Fence: st.fence,
			Identity: identityv1.NewPrincipalServiceClient(peer("identity")), Vaults: keyvaultv1.NewVaultServiceClient(peer("keyvault")),
			Runs: computev1.NewRunInternalServiceClient(peer("compute")), Ingest: telemetryv1.NewIngestServiceClient(peer("telemetry")),
			Endpoints: inferencev1.NewInferenceInternalServiceClient(peer("inference")),
			Now:       n.opts.Now, Logger: n.log,
		})
		if err == nil && n.cfg.Service.Admin != "" {
			err = n.workspace.Bootstrap(ctx, n.cfg.Service.Admin)
		}
		return n.workspace, err
	}
	if n.name == "inference" {
		return n.buildInference(st, m, k, b, peer)
	}
	if _, err := n.publicCA(m); err != nil {
		return nil, err
	}
	ca := func() ([]byte, error) { return n.publicCA(m) }
	u, err := url.Parse(n.cfg.Mesh.PublicURL)
	if err != nil {
		return nil, err
	}
	return compute.New(compute.Config{
		DB: st.db, Outbox: st.outbox, Own: st.own, Keys: k, Blobs: b, Engine: st.engine, Decide: st.fence.decide, Dir: n.cfg.Service.Dir,
		Tokens: identityv1.NewTokenServiceClient(peer("identity")), Agents: identityv1.NewAgentServiceClient(peer("identity")),
		Snapshots: workspacev1.NewSnapshotServiceClient(peer("workspace")), RunData: telemetryv1.NewMetricServiceClient(peer("telemetry")),
		Gateway: u.Host, PublicURL: n.cfg.Mesh.PublicURL, CA: ca, AgentCommand: n.cfg.Service.AgentCommand, Instance: n.cfg.Service.Instance, Leader: st.leader, NoLocalTargets: !n.cfg.Service.LocalTargets,
		ConnectionAge: n.opts.Limits.ConnectionAge, Now: n.opts.Now, Logger: n.log,
		Python: func(ctx context.Context) (compute.Interpreter, error) {
			path, roots, err := sandbox.Interpreter(ctx, agent.UsualPython)
			return compute.Interpreter{Path: path, Roots: roots}, err
		},
	})
}

// broken fails every call with the error that a connection could not be made for.
type broken struct{ err error }

// Invoke implements grpc.ClientConnInterface.
func (b broken) Invoke(context.Context, string, any, any, ...grpc.CallOption) error { return b.err }

// NewStream implements grpc.ClientConnInterface.
func (b broken) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, b.err
}
