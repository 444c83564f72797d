//go:build linux

package mesh

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// Cluster asks the members of etcd themselves, with the certificate of a service.
type Cluster struct {
	mesh *Mesh
	tls  *tls.Config
}

// Cluster of the mesh.
func (m *Mesh) Cluster() (*Cluster, error) {
	dir := filepath.Join(m.Of("gateway")[0].Dir, "etcd")
	ca, err := os.ReadFile(filepath.Join(dir, "root.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err != nil {
		return nil, err
	}
	return &Cluster{m, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}}, nil
}

func (c *Cluster) client(of ...*Process) (*clientv3.Client, error) {
	var endpoints []string
	for _, p := range of {
		endpoints = append(endpoints, "https://"+net.JoinHostPort(p.Host.Addr, "2379"))
	}
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, TLS: c.tls, DialTimeout: time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return c.mesh.Dial(ctx, addr) })},
	})
}

// Leader is the process that leads, as the members say; after a fault before they may need a while to agree.
func (c *Cluster) Leader(ctx context.Context) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderLimit)
	defer cancel()
	var leads *Process
	if _, err := Poll(ctx, func(ctx context.Context) (err error) {
		leads, err = c.leader(ctx)
		return err
	}); err != nil {
		return nil, fmt.Errorf("no member of etcd says that it leads: %w", err)
	}
	return leads, nil
}

func (c *Cluster) leader(ctx context.Context) (*Process, error) {
	err := errors.New("there is no leader")
	for _, p := range c.mesh.Of(Etcd) {
		e, e1 := c.client(p)
		if e1 != nil {
			return nil, e1
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		s, e1 := e.Status(short, e.Endpoints()[0])
		cancel()
		_ = e.Close()
		if e1 != nil {
			err = e1
			continue
		}
		if s.Leader == s.Header.GetMemberId() {
			return p, nil
		}
	}
	return nil, err
}

// leaderLimit is how long the members may take to say who leads.
const leaderLimit = 15 * time.Second

// probeKey lies beside everything that services use.
const probeKey = "redoubt-fault/probe"

// Writes waits until the members take a write.
func (c *Cluster) Writes(ctx context.Context) (time.Duration, error) {
	e, err := c.client(c.mesh.Of(Etcd)...)
	if err != nil {
		return 0, err
	}
	defer func() { _ = e.Close() }()
	took, err := Poll(ctx, func(ctx context.Context) error {
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		_, err := e.Put(short, probeKey, "x")
		return err
	})
	if err != nil {
		return took, fmt.Errorf("etcd takes no write: %w", err)
	}
	return took, nil
}
