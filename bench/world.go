package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const (
	domain = "redoubt.local"
	issuer = "https://localhost:7443"
	group  = "subscriptions/bench/resourceGroups/bench"
	run1   = group + "/workspaces/w1/runs/r1"
	caller = "usr_7"
)

// world is all that a service has around it, made of the real parts.
type world struct {
	td        spiffeid.TrustDomain
	authority *svid.Authority
	bundle    *x509bundle.Bundle
	source    *svid.Source
	engine    *authz.Engine
	verifier  *authn.Verifier
	keys      keySet
	token     string
	rules     *rule.Table
	db        *sqldb.DB
	outbox    *audit.Outbox
	log       *observe.Logger
	closers   []func()
}

type keySet struct{ pub *ecdsa.PublicKey }

// Key implements authn.KeySet.
func (k keySet) Key(_ context.Context, kid string) (*ecdsa.PublicKey, error) {
	if kid != "k1" {
		return nil, authn.ErrUnknownKey
	}
	return k.pub, nil
}

// Generation implements authn.KeySet.
func (keySet) Generation() uint64 { return 1 }

func newWorld(ctx context.Context, dir string) (w *world, err error) {
	w = &world{td: spiffeid.RequireTrustDomainFromString(domain)}
	for _, step := range []func() error{
		func() error { w.log, err = quiet(); return err },
		func() error { return w.mesh(ctx, dir) },
		w.authorization, w.tokens,
		func() error { return w.store(ctx, dir) },
		func() error { w.rules, err = rule.Load("redoubt.telemetry.v1.MetricService"); return err },
	} {
		if err := step(); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

func (w *world) close() {
	for _, f := range w.closers {
		defer f()
	}
}

func (w *world) mesh(ctx context.Context, dir string) (err error) {
	if w.authority, err = svid.NewAuthority(w.td, time.Now(), 24*time.Hour); err != nil {
		return err
	}
	w.bundle = x509bundle.FromX509Authorities(w.td, w.authority.Bundle())
	id, err := svid.ServiceID(w.td, "telemetry")
	if err != nil {
		return err
	}
	keeper, err := svid.NewKeeper(svid.KeeperConfig{Dir: filepath.Join(dir, "svid"), ID: id, Issue: func(_ context.Context, _ crypto.Signer, csr []byte) (chain, bundle [][]byte, err error) {
		chain, _, err = w.authority.SignCSR(csr, id, time.Hour, time.Now())
		return chain, [][]byte{w.authority.Root().Raw}, err
	}})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = keeper.Run(ctx) })
	w.closers = append(w.closers, func() { stop(); running.Wait() })
	if err := keeper.Ready(ctx); err != nil {
		return err
	}
	workload, err := svid.NewWorkloadServer(svid.WorkloadConfig{Keeper: keeper, Dir: dir})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, func() { _ = workload.Close() })
	if w.source, err = svid.NewSource(ctx, svid.SourceConfig{Addr: workload.Addr(), TrustDomain: w.td}); err != nil {
		return err
	}
	w.closers = append(w.closers, func() { _ = w.source.Close() })
	return nil
}

// identity makes a key and its SVID.
func (w *world) identity(path string) (*x509svid.SVID, error) {
	key, err := authn.GenerateKey()
	if err != nil {
		return nil, err
	}
	id := spiffeid.RequireFromString("spiffe://" + domain + "/" + path)
	chain, err := w.authority.Sign(&key.PublicKey, id, 12*time.Hour, time.Now())
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}, nil
}

func (w *world) serverCertificate() (*tls.Certificate, error) {
	key, err := authn.GenerateKey()
	if err != nil {
		return nil, err
	}
	chain, err := w.authority.SignServer(&key.PublicKey, []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, 12*time.Hour, time.Now())
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key}, nil
}

// authorization is a middling installation: 1,000 workspaces, 10,000 assignments, half of them to 500 groups of ten.
func (w *world) authorization() error {
	w.engine = authz.New(authz.Config{OwnAuthorization: true, OwnSecurity: true})
	a := &workspacev1.WatchAuthorizationResponse{
		Seq: 1, Reset_: true, Complete: true, Roles: authz.BuiltinRoles(),
		Scopes: []*workspacev1.ScopeRecord{{Uid: "sub_1", Name: "subscriptions/bench", Active: true}, {Uid: "rgp_1", Name: group, ParentUid: "sub_1", Active: true}},
	}
	for i := range 1000 {
		ws := fmt.Sprintf("ws_%d", i)
		a.Scopes = append(a.Scopes, &workspacev1.ScopeRecord{Uid: ws, Name: fmt.Sprintf("%s/workspaces/w%d", group, i), ParentUid: "rgp_1", Active: true})
		for j := range 10 {
			who := fmt.Sprintf("usr_%d", (i*7+j*13)%2000)
			if j%2 == 0 {
				who = fmt.Sprintf("grp_%d", (i*3+j)%500)
			}
			a.Assignments = append(a.Assignments, &workspacev1.AssignmentRecord{Uid: fmt.Sprintf("asg_%d_%d", i, j), ScopeUid: ws, Role: []string{authz.Contributor, authz.Reader}[j%2], PrincipalUid: who})
		}
	}
	a.Assignments = append(a.Assignments, &workspacev1.AssignmentRecord{Uid: "asg_caller", ScopeUid: "rgp_1", Role: authz.Contributor, PrincipalUid: caller})
	s := &identityv1.WatchSecurityResponse{Seq: 1, Reset_: true, Complete: true}
	for g := range 500 {
		m := &identityv1.GroupMembers{GroupUid: fmt.Sprintf("grp_%d", g)}
		for j := range 10 {
			m.MemberUids = append(m.MemberUids, fmt.Sprintf("usr_%d", (g*11+j*17)%2000))
		}
		s.Groups = append(s.Groups, m)
	}
	if err := w.engine.ApplyAuthorization(a); err != nil {
		return err
	}
	return w.engine.ApplySecurity(s)
}

func (w *world) tokens() error {
	key, err := authn.GenerateKey()
	if err != nil {
		return err
	}
	signer, err := authn.NewSigner(key, "k1")
	if err != nil {
		return err
	}
	now := time.Now().Truncate(time.Second)
	w.token, err = signer.Mint(authn.Claims{
		Issuer: issuer, Audience: []string{issuer}, Subject: caller, PrincipalType: authn.User, ClientID: "cli", ID: "tok_bench",
		SessionID: "ses_bench", IssuedAt: now, Expiry: now.Add(12 * time.Hour),
	})
	if err != nil {
		return err
	}
	w.keys = keySet{&key.PublicKey}
	w.verifier, err = authn.New(authn.Config{Issuer: issuer, Keys: w.keys, Revocations: w.engine.Revocations()})
	return err
}

func (w *world) store(ctx context.Context, dir string) (err error) {
	w.db, err = sqldb.Open(ctx, sqldb.Config{
		Driver: sqldb.SQLite, Path: filepath.Join(dir, "db.sqlite"), Migrations: []sqldb.MigrationSet{envelope.Migrations(), audit.Migrations()},
		Finish: func(_ context.Context, commit func() error) error { return commit() },
	})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, func() { _ = w.db.Close() })
	key, err := seal.OpenFile(filepath.Join(dir, "seal.key"), true)
	if err != nil {
		return err
	}
	ring, err := envelope.New(envelope.Config{Source: envelope.SealSource(key, "telemetry"), DB: w.db})
	if err != nil {
		return err
	}
	w.outbox, err = audit.New(audit.Config{Service: "telemetry", DB: w.db, Keys: ring})
	return err
}

// chain is the whole chain, with nothing left out but the rate limits, which one caller on one address would meet at once.
func (w *world) chain() (*rpc.Chain, error) {
	proofs, err := authn.NewProofChecker(authn.ProofConfig{})
	if err != nil {
		return nil, err
	}
	red, err := observe.NewRED(observe.NewMetrics().Registerer())
	if err != nil {
		return nil, err
	}
	tracing, err := observe.NewTracing(context.Background(), observe.TraceConfig{Service: "telemetry", Ratio: 0.01, Log: w.log.Logger})
	if err != nil {
		return nil, err
	}
	return rpc.NewChain(rpc.Config{
		Service: "telemetry", TrustDomain: domain, Installation: domain, Issuer: issuer, PublicURL: issuer, Rules: w.rules, Verifier: w.verifier,
		Proofs: proofs, Engine: w.engine, Recorder: w.outbox, RED: red, Tracing: tracing, Logger: w.log.Logger,
		Limits: rpc.Limits{PerAddress: 1e9, PerPrincipal: 1e9},
	})
}
