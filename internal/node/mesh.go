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
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/pkg/svid/jointoken"
)

// mesh is a service's side of the mesh: its identity, what it finds others by, and its connections to them.
type mesh struct {
	td        spiffeid.TrustDomain
	keeper    *svid.Keeper
	source    *svid.Source
	registry  *discovery.Registry
	rules     *rule.Table
	exchanges *rpc.Exchanges
	calls     string // the service config of every connection
	conns     map[string]*grpc.ClientConn
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
	if issue == nil {
		issue = n.enrol(m)
	}
	failures, err := n.counter("redoubt_svid_failures_total", "Failed attempts to get an X.509-SVID.")
	if err != nil {
		return nil, err
	}
	handshakes, err := n.counter("redoubt_handshake_failures_total", "TLS handshakes that failed on the mesh port.")
	if err != nil {
		return nil, err
	}
	dir := n.path("svid")
	if m.keeper, err = svid.NewKeeper(svid.KeeperConfig{Dir: dir, ID: id, Issue: issue, OnError: func(error) { failures.Inc() }, Now: n.opts.Now, Logger: n.log}); err != nil {
		return nil, err
	}
	n.background("svid", m.keeper.Run)
	if err := m.keeper.Ready(ctx); err != nil {
		return nil, fmt.Errorf("no certificate from identity at %s: %w", n.cfg.Mesh.EnrolAddress, err)
	}
	w, err := svid.NewWorkloadServer(svid.WorkloadConfig{Keeper: m.keeper, Dir: dir, Logger: n.log})
	if err != nil {
		return nil, err
	}
	n.onStop(func() { _ = w.Close() })
	if m.source, err = svid.NewSource(ctx, svid.SourceConfig{Addr: w.Addr(), TrustDomain: td, OnHandshakeError: func(error) { handshakes.Inc() }, Now: n.opts.Now, Logger: n.log}); err != nil {
		return nil, err
	}
	n.onStop(func() { _ = m.source.Close() })
	etcdTLS, err := etcdClientTLS(n.cfg.Mesh.EtcdTLS)
	if err != nil {
		return nil, err
	}
	if m.registry, err = discovery.Open(discovery.Config{Endpoints: n.cfg.Mesh.Etcd, TLS: etcdTLS, Now: n.opts.Now, Logger: n.log}); err != nil {
		return nil, err
	}
	n.onStop(func() { _ = m.registry.Close() })
	ids, err := n.dial(m, "identity")
	if err != nil {
		return nil, err
	}
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

// dial makes the connection to a peer, once.
func (n *Node) dial(m *mesh, service string) (*grpc.ClientConn, error) {
	if c, ok := m.conns[service]; ok {
		return c, nil
	}
	id, err := svid.ServiceID(m.td, service)
	if err != nil {
		return nil, err
	}
	c, err := rpc.Dial(rpc.DialConfig{
		Service: service, Target: discovery.Target(service), Options: append(m.registry.DialOptions(), grpc.WithDefaultServiceConfig(m.calls)), Creds: m.source.ClientCredentials(id),
		Rules: m.rules, Exchanges: m.exchanges, Logger: n.log,
	})
	if err != nil {
		return nil, err
	}
	n.onStop(func() { _ = c.Close() })
	m.conns[service] = c
	return c, nil
}

// enrol asks identity's enrolment listener for certificates. The join token is needed once; after that the pinned key is enough.
func (n *Node) enrol(m *mesh) svid.IssueFunc {
	return func(ctx context.Context, key crypto.Signer, csr []byte) ([][]byte, [][]byte, error) {
		server, err := svid.ServiceID(m.td, "identity")
		if err != nil {
			return nil, nil, err
		}
		join, address, pin, err := n.joinToken()
		if err != nil {
			return nil, nil, err
		}
		e := svid.Enrolment{Server: server, Key: key, Now: n.opts.Now}
		if pin != "" {
			e.Pins = []string{pin}
		}
		if m.keeper != nil {
			e.Roots = m.keeper.Bundle()
		}
		cfg, err := svid.EnrolClientTLS(e)
		if err != nil {
			return nil, nil, err
		}
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithNoProxy())
		if err != nil {
			return nil, nil, err
		}
		defer func() { _ = conn.Close() }()
		r, err := identityv1.NewEnrolmentServiceClient(conn).Issue(ctx, &identityv1.IssueRequest{Service: n.name, Instance: n.cfg.Service.Instance, Csr: csr, JoinToken: join.RevealString()})
		if err != nil {
			return nil, nil, fault.FromStatus(err)
		}
		n.dropJoinToken()
		return r.GetChain(), r.GetBundle(), nil
	}
}

// joinToken reads the join token, where there still is one, and says where identity is and which root to believe.
func (n *Node) joinToken() (secret redact.Secret, address, pin string, err error) {
	address, pin = n.cfg.Mesh.EnrolAddress, n.cfg.Mesh.CAPin
	if n.cfg.Service.JoinTokenFile == "" {
		return redact.Secret{}, address, pin, nil
	}
	s, err := readSecret(n.cfg.Service.JoinTokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return redact.Secret{}, address, pin, nil
	}
	if err != nil {
		return redact.Secret{}, "", "", err
	}
	t, err := jointoken.Parse(s)
	if err != nil {
		return redact.Secret{}, "", "", err
	}
	if pin == "" {
		pin = t.Pin
	}
	return t.Secret, address, pin, nil
}

// dropJoinToken removes the token that is used up.
func (n *Node) dropJoinToken() {
	if f := n.cfg.Service.JoinTokenFile; f != "" {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.log.Warn("the used join token could not be removed", "error", err)
		}
	}
}

// etcdClientTLS reads the folder that bootstrap made for this service.
func etcdClientTLS(dir string) (*tls.Config, error) {
	files := etcdnode.Files{CA: filepath.Join(dir, "root.crt"), Cert: filepath.Join(dir, "client.crt"), Key: filepath.Join(dir, "client.key")}
	ca, err := os.ReadFile(files.CA)
	if err != nil {
		return nil, fmt.Errorf("etcd's root: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", files.CA)
	}
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, fmt.Errorf("etcd's client certificate: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{cert}}, nil
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
