package node

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/pkg/svid/jointoken"
	"github.com/redoubt-ml/redoubt/services/gateway"
)

// mesh is a service's side of the mesh: its identity, what it finds others by, and its connections to them.
type mesh struct {
	td        spiffeid.TrustDomain
	own       holder       // of the SVID: keeper, or source
	keeper    *svid.Keeper // nil on another's Workload API
	jwts      *svid.JWTs
	issuer    atomic.Pointer[grpc.ClientConn] // to identity, as soon as there is one
	source    *svid.Source
	registry  *discovery.Registry
	rules     *rule.Table
	exchanges *rpc.Exchanges
	calls     string // the service config of every connection

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // guarded by mu
}

// joinMesh gets the service its identity and its client connections. issue asks for certificates: over the enrolment listener, or,
// in identity itself, directly.
func (n *Node) joinMesh(ctx context.Context, rules *rule.Table, issue svid.IssueFunc) (*mesh, error) {
	td, err := spiffeid.TrustDomainFromString(n.cfg.Mesh.TrustDomain)
	if err != nil {
		return nil, fault.InvalidArgument("mesh.trust_domain is not one: %v", err)
	}
	id, err := svid.ServiceID(td, n.name)
	if err != nil {
		return nil, err
	}
	m := &mesh{td: td, rules: rules, conns: make(map[string]*grpc.ClientConn)}
	if m.calls, err = callConfig(rules); err != nil {
		return nil, err
	}
	if n.cfg.Service.WorkloadAPI != "" {
		err = n.takeSVID(ctx, m, id)
	} else {
		err = n.keepSVID(ctx, m, id, issue)
	}
	if err != nil {
		return nil, err
	}
	etcdTLS, err := etcdClientTLS(n.cfg.Mesh.EtcdTLS)
	if err != nil {
		return nil, err
	}
	n.warnOfEnd(etcdTLS)
	version, _, _ := observe.Build()
	if m.registry, err = discovery.Open(discovery.Config{Endpoints: n.cfg.Mesh.Etcd, TLS: etcdTLS, Version: version, Now: n.opts.Now, Logger: n.log}); err != nil {
		return nil, err
	}
	n.onStop(func() { _ = m.registry.Close() })
	ids, err := n.dial(m, "identity")
	if err != nil {
		return nil, err
	}
	m.issuer.Store(ids)
	n.followAuthorities(m, identityv1.NewKeyServiceClient(ids))
	tokens := identityv1.NewTokenServiceClient(ids)
	m.exchanges = rpc.NewExchanges(func(ctx context.Context, subject, audience string) (string, time.Time, error) {
		r, err := tokens.ExchangeToken(ctx, &identityv1.ExchangeTokenRequest{SubjectToken: subject, Audience: audience})
		if err != nil {
			return "", time.Time{}, err
		}
		return r.GetAccessToken(), r.GetExpireTime().AsTime(), nil
	}, n.opts.Now)
	return m, nil
}

// holder has the SVID that a service shows, and the roots that it believes.
type holder interface {
	Current() (*svid.SVID, error)
	Bundle() []*x509.Certificate
}

// keepSVID has the service keep an SVID of identity's, and offer it at a Workload API of its own.
func (n *Node) keepSVID(ctx context.Context, m *mesh, id spiffeid.ID, issue svid.IssueFunc) (err error) {
	if issue == nil {
		issue = n.enrol(m)
	}
	failures, err := n.counter("redoubt_svid_failures_total", "Failed attempts to get an X.509-SVID.")
	if err != nil {
		return err
	}
	dir := n.path("svid")
	if m.keeper, err = svid.NewKeeper(svid.KeeperConfig{Dir: dir, ID: id, Issue: issue, OnError: func(error) { failures.Inc() }, Now: n.opts.Now, Logger: n.log}); err != nil {
		return err
	}
	n.hold(m, m.keeper)
	n.background("svid", m.keeper.Run)
	if err := m.keeper.Ready(ctx); err != nil {
		return fmt.Errorf("no certificate from identity at %s: %w", strings.Join(n.cfg.Mesh.Enrolment(), ", "), err)
	}
	if m.jwts, err = svid.NewJWTs(svid.JWTConfig{ID: id, Issue: m.issueJWT, Now: n.opts.Now, Logger: n.log}); err != nil {
		return err
	}
	w, err := svid.NewWorkloadServer(svid.WorkloadConfig{Keeper: m.keeper, JWTs: m.jwts, Dir: dir, Logger: n.log})
	if err != nil {
		return err
	}
	n.onStop(func() { _ = w.Close() })
	return n.openSource(ctx, m, svid.SourceConfig{Addr: w.Addr()})
}

// takeSVID has the service take its SVID from another's Workload API: it enrols nowhere, and keeps no key.
func (n *Node) takeSVID(ctx context.Context, m *mesh, id spiffeid.ID) error {
	if err := n.openSource(ctx, m, svid.SourceConfig{Addr: n.cfg.Service.WorkloadAPI, Workload: id}); err != nil {
		return err
	}
	if _, err := m.source.Current(); err != nil {
		return err
	}
	n.hold(m, m.source)
	return nil
}

func (n *Node) hold(m *mesh, h holder) {
	m.own = h
	n.own.Store(&h)
}

func (n *Node) openSource(ctx context.Context, m *mesh, cfg svid.SourceConfig) error {
	handshakes, err := n.counter("redoubt_handshake_failures_total", "TLS handshakes that failed on the mesh port.")
	if err != nil {
		return err
	}
	cfg.TrustDomain, cfg.OnHandshakeError, cfg.Now, cfg.Logger = m.td, func(error) { handshakes.Inc() }, n.opts.Now, n.log
	if m.source, err = svid.NewSource(ctx, cfg); err != nil {
		return err
	}
	n.onStop(func() { _ = m.source.Close() })
	return nil
}

// peers are the connections to other services, and their states.
func (m *mesh) peers() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]string, len(m.conns))
	for name, c := range m.conns {
		out[name] = c.GetState().String()
	}
	return out
}

// dial makes the connection to a peer, once.
func (n *Node) dial(m *mesh, service string) (*grpc.ClientConn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, ok := m.conns[service]; ok {
		return c, nil
	}
	id, err := svid.ServiceID(m.td, service)
	if err != nil {
		return nil, err
	}
	opts := append(m.registry.DialOptions(), grpc.WithDefaultServiceConfig(m.calls))
	if n.name == rpc.Gateway {
		opts = append(opts, gateway.PeerOptions()...)
	}
	c, err := rpc.Dial(rpc.DialConfig{
		Service: service, Target: discovery.Target(service), Options: opts, Creds: m.source.ClientCredentials(id),
		Rules: m.rules, Exchanges: m.exchanges, Logger: n.log,
	})
	if err != nil {
		return nil, err
	}
	n.onStop(func() { _ = c.Close() })
	m.conns[service] = c
	return c, nil
}

// enrol asks identity's enrolment listeners for certificates, one after the other until one answers. The join token is needed once; after
// that the pinned key is enough.
func (n *Node) enrol(m *mesh) svid.IssueFunc {
	return func(ctx context.Context, key crypto.Signer, csr []byte) (chain, bundle [][]byte, err error) {
		server, err := svid.ServiceID(m.td, "identity")
		if err != nil {
			return nil, nil, err
		}
		join, pin, err := n.joinToken()
		if err != nil {
			return nil, nil, err
		}
		e := svid.Enrolment{Server: server, Key: key, Now: n.opts.Now}
		if pin != "" {
			e.Pins = []string{pin}
		}
		if m.keeper != nil {
			e.Roots, e.Left = m.keeper.Bundle(), m.keeper.Left()
		}
		cfg, err := svid.EnrolClientTLS(e)
		if err != nil {
			return nil, nil, err
		}
		req := &identityv1.IssueRequest{Service: n.name, Instance: n.cfg.Service.Instance, Csr: csr, JoinToken: join.RevealString()}
		addresses := n.cfg.Mesh.Enrolment()
		for i, address := range addresses {
			var r *identityv1.IssueResponse
			if r, err = enrolAt(ctx, address, cfg, req, len(addresses)-i); err == nil {
				n.dropJoinToken()
				return r.GetChain(), r.GetBundle(), nil
			}
			if code := status.Code(err); ctx.Err() != nil || code != codes.Unavailable && code != codes.DeadlineExceeded {
				break // it was refused, and the others know the same
			}
		}
		return nil, nil, fault.FromStatus(err)
	}
}

// enrolAt asks one instance of identity. Where others remain it may take its share of the caller's time only, as one that is frozen
// must not be what keeps the service from asking them.
func enrolAt(ctx context.Context, address string, cfg *tls.Config, req *identityv1.IssueRequest, remaining int) (*identityv1.IssueResponse, error) {
	if end, ok := ctx.Deadline(); ok && remaining > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(remaining))
		defer cancel()
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithNoProxy())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return identityv1.NewEnrolmentServiceClient(conn).Issue(ctx, req)
}

// joinToken reads the join token, where there still is one, and says which root to believe.
func (n *Node) joinToken() (secret redact.Secret, pin string, err error) {
	pin = n.cfg.Mesh.CAPin
	if n.cfg.Service.JoinTokenFile == "" {
		return redact.Secret{}, pin, nil
	}
	s, err := readSecret(n.cfg.Service.JoinTokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return redact.Secret{}, pin, nil
	}
	if err != nil {
		return redact.Secret{}, "", err
	}
	t, err := jointoken.Parse(s)
	if err != nil {
		return redact.Secret{}, "", err
	}
	if pin == "" {
		pin = t.Pin
	}
	return t.Secret, pin, nil
}

// dropJoinToken removes the token that is used up.
func (n *Node) dropJoinToken() {
	f := n.cfg.Service.JoinTokenFile
	if f == "" {
		return
	}
	if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.tokenStays.Do(func() {
			n.log.Warn("the join token is used up and could not be removed: it opens nothing any more", "error", err)
		})
	}
}

// etcdClientTLS reads the folder that bootstrap made for this service, and the certificate in it anew at each connection.
func etcdClientTLS(dir string) (*tls.Config, error) {
	return etcdnode.Files{CA: filepath.Join(dir, "root.crt"), Cert: filepath.Join(dir, "client.crt"), Key: filepath.Join(dir, "client.key")}.ClientTLS()
}

// etcdSoon is how long before its end the certificate for etcd is worth a line at each start: nothing renews it by itself.
const etcdSoon = 90 * 24 * time.Hour

func (n *Node) warnOfEnd(cfg *tls.Config) {
	c, err := cfg.GetClientCertificate(nil)
	if err != nil || c.Leaf == nil {
		return // it was read a moment ago
	}
	if left := c.Leaf.NotAfter.Sub(n.opts.Now()); left < etcdSoon {
		n.log.Warn("the certificate for etcd ends soon: run redoubt bootstrap --renew --data FOLDER, and carry it here", "end", c.Leaf.NotAfter, "left", left.Round(time.Hour))
	}
}

// vaultSource gives a service the data keys of workspaces: keyvault makes and opens them for this service alone.
type vaultSource struct{ vaults keyvaultv1.VaultServiceClient }

// Generate implements envelope.Source.
func (v vaultSource) Generate(ctx context.Context, owner string) (redact.Secret, []byte, error) {
	k, err := v.vaults.GenerateDataKey(ctx, &keyvaultv1.GenerateDataKeyRequest{OwnerUid: owner})
	if err != nil {
		return redact.Secret{}, nil, fault.FromStatus(err)
	}
	return redact.New(k.GetPlaintext()), k.GetWrapped(), nil
}

// Unwrap implements envelope.Source.
func (v vaultSource) Unwrap(ctx context.Context, owner string, wrapped []byte) (redact.Secret, error) {
	k, err := v.vaults.UnwrapDataKey(ctx, &keyvaultv1.UnwrapDataKeyRequest{OwnerUid: owner, Wrapped: wrapped})
	if err != nil {
		return redact.Secret{}, fault.FromStatus(err)
	}
	return redact.New(k.GetPlaintext()), nil
}
