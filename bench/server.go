package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/gateway"
)

const (
	serverEnv  = "REDOUBT_BENCH_SERVER"
	profileEnv = "REDOUBT_BENCH_PROFILE"
)

// hello is what a server process tells the one that started it.
type hello struct {
	Addr    string // mTLS
	Gateway string // TLS, of the gateway in front of it
	Direct  string // TLS, of identity's own port for clients with certificates
	Root    []byte // DER
	Chain   []byte // DER of the client's certificate, the gateway's SVID
	Key     []byte // PKCS#8
	Token   string
}

// metrics is the method that is called: a read at a run's scope, whose handler does next to nothing.
type metrics struct {
	telemetryv1.UnimplementedMetricServiceServer
}

// GetRunData implements the service.
func (metrics) GetRunData(context.Context, *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
	return &telemetryv1.RunData{Latest: []*telemetryv1.Metric{{Key: "loss", Value: 0.25, Step: 10}}}, nil
}

// serve is the server process: "chain", "bare", or "gateway" (both the chain and a gateway in front of it).
func serve(ctx context.Context, kind string) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w, err := newWorld(ctx, dir)
	if err != nil {
		return err
	}
	defer w.close()
	own, err := w.identity("service/telemetry")
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var s *grpc.Server
	if kind == "bare" {
		// What ours has without its chain: the same workers, the same TLS.
		s = grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsconfig.MTLSServerConfig(own, w.bundle, tlsconfig.AuthorizeMemberOf(w.td)))), grpc.NumStreamWorkers(64))
		telemetryv1.RegisterMetricServiceServer(s, metrics{})
	} else {
		chain, err := w.chain()
		if err != nil {
			return err
		}
		s = chain.NewServer(w.source.ServerCredentials(), "redoubt.telemetry.v1.MetricService")
		telemetryv1.RegisterMetricServiceServer(chain.Registrar(s), metrics{})
	}
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	h := hello{Addr: l.Addr().String(), Root: w.authority.Root().Raw, Token: w.token}
	if err := w.client(&h); err != nil {
		return err
	}
	if kind == "gateway" {
		stop, err := w.gateway(ctx, &h)
		if err != nil {
			return err
		}
		defer stop()
	}
	if kind == "chain" {
		stop, err := profiled()
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := json.NewEncoder(os.Stdout).Encode(h); err != nil {
		return err
	}
	_, _ = bufio.NewReader(os.Stdin).ReadByte() // until who started it is done
	return nil
}

// client makes the certificate with which the other process calls.
func (w *world) client(h *hello) error {
	id, err := w.identity("service/" + rpc.Gateway)
	if err != nil {
		return err
	}
	h.Chain = id.Certificates[0].Raw
	h.Key, err = x509.MarshalPKCS8PrivateKey(id.PrivateKey)
	return err
}

// gateway puts a gateway in front of the service at h.Addr.
func (w *world) gateway(ctx context.Context, h *hello) (func(), error) {
	id, err := w.identity("service/" + rpc.Gateway)
	if err != nil {
		return nil, err
	}
	tlsConf := tlsconfig.MTLSClientConfig(id, w.bundle, tlsconfig.AuthorizeMemberOf(w.td))
	conn, err := rpc.Dial(rpc.DialConfig{Service: "telemetry", Target: "passthrough:///" + h.Addr, Creds: credentials.NewTLS(tlsConf), Options: gateway.PeerOptions(), Rules: w.rules, Logger: w.log.Logger})
	if err != nil {
		return nil, err
	}
	cert, err := w.serverCertificate()
	if err != nil {
		return nil, err
	}
	peers := make(map[string]grpc.ClientConnInterface) // all but telemetry are never called here
	for _, name := range node.Services {
		peers[name] = conn
	}
	g, err := gateway.New(gateway.Config{
		Calls: gateway.Calls{PerSecond: 1e6}, // all callers are one address here
		Rules: w.rules, Peers: peers, Installation: domain, PublicURL: "https://" + domain, Logger: w.log.Logger,
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
	})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h.Gateway = l.Addr().String()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(ctx, l) }()
	return func() { cancel(); <-done; _ = conn.Close() }, nil
}

// profiled writes the CPU profile that was asked for until stop, of this process.
func profiled() (stop func(), err error) {
	p := os.Getenv(profileEnv)
	if p == "" {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Clean(p))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }, nil
}

// process is a server in a process of its own.
type process struct {
	hello
	pid  int
	stop func() error
}

func start(ctx context.Context, o options, kind string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), serverEnv+"="+kind, "GOGC="+o.gogc)
	if o.profile != "" {
		cmd.Env = append(cmd.Env, profileEnv+"="+o.profile)
	}
	cmd.Stderr = o.log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, stop: func() error { _ = in.Close(); return cmd.Wait() }}
	if err := json.NewDecoder(out).Decode(&p.hello); err != nil {
		return nil, errors.Join(fmt.Errorf("the server process said nothing: %w", err), p.stop())
	}
	return p, nil
}

// dial connects as the gateway's SVID.
func (p *process) dial(addr string) (*grpc.ClientConn, error) {
	root, err := x509.ParseCertificate(p.Root)
	if err != nil {
		return nil, err
	}
	if addr == p.hello.Gateway {
		pool := x509.NewCertPool()
		pool.AddCert(root)
		return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, ServerName: "localhost", NextProtos: []string{"h2"}})))
	}
	leaf, err := x509.ParseCertificate(p.Chain)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(p.Key)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key cannot sign")
	}
	td := spiffeid.RequireTrustDomainFromString(domain)
	own := &x509svid.SVID{ID: spiffeid.RequireFromString("spiffe://" + domain + "/service/" + rpc.Gateway), Certificates: []*x509.Certificate{leaf}, PrivateKey: signer}
	conf := tlsconfig.MTLSClientConfig(own, x509bundle.FromX509Authorities(td, []*x509.Certificate{root}), tlsconfig.AuthorizeMemberOf(td))
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
}

// quiet is how a service logs: buffered, to nowhere.
func quiet() (*observe.Logger, error) {
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	return observe.NewLogger(observe.LogConfig{Writer: f, JSON: true, Now: time.Now}), nil
}
