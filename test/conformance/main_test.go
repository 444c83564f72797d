package conformance

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/orca"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/gateway"
)

// tools are the folder of the programs that run against the gateway.
var tools string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "conformance")
	if err == nil {
		tools = dir
		cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", dir+"/", "google.golang.org/grpc/interop/client", "github.com/summerwind/h2spec/cmd/h2spec",
			"github.com/fullstorydev/grpcurl/cmd/grpcurl", "github.com/grpc-ecosystem/grpc-health-probe")
		cmd.Stderr = os.Stderr
		err = cmd.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the tools cannot be built:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// front is a gateway with grpc-go's test service behind it.
type front struct {
	addr, port string
	ca         string           // a file
	direct     *grpc.ClientConn // to the service behind
	outside    *grpc.ClientConn // to the gateway
}

func start(t *testing.T) *front {
	t.Helper()
	now := time.Now()
	ca, err := svid.NewAuthority(spiffeid.RequireTrustDomainFromString("redoubt.test"), now, time.Hour)
	ok(t, err)
	issue := func() *tls.Certificate {
		key, err := svid.NewKey()
		ok(t, err)
		chain, err := ca.SignServer(key.Public(), []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour, now)
		ok(t, err)
		return &tls.Certificate{Certificate: chain, PrivateKey: key}
	}
	f := &front{ca: filepath.Join(t.TempDir(), "ca.pem")}
	ok(t, os.WriteFile(f.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root().Raw}), 0o600))
	roots := newPool(ca.Root())

	behind, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	inner := grpc.NewServer(orca.CallMetricsServerOption(nil), grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*issue()}, MinVersion: tls.VersionTLS13})))
	testgrpc.RegisterTestServiceServer(inner, interop.NewTestServer())
	go func() { _ = inner.Serve(behind) }()
	t.Cleanup(inner.Stop)
	conn, err := grpc.NewClient("passthrough:///"+behind.Addr().String(), append(gateway.PeerOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13})))...)
	ok(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	f.direct = conn

	rules, err := node.Rules()
	ok(t, err)
	peers := make(map[string]grpc.ClientConnInterface)
	for _, s := range node.Services {
		peers[s] = conn
	}
	cert := issue()
	g, err := gateway.New(gateway.Config{
		Rules: rules, Peers: peers, Installation: "redoubt.test", PublicURL: "https://redoubt.test", Logger: slog.New(slog.DiscardHandler),
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
		Edge:        edge.Limits{PerSecond: 1e6}, // h2spec breaks rules on every second connection, for which its address would have to wait
		Foreign:     []gateway.Foreign{{Service: "grpc.testing.TestService", Peer: "telemetry", Metadata: []string{"x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"}}},
	})
	ok(t, err)
	public, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	f.addr = public.Addr().String()
	_, f.port, _ = net.SplitHostPort(f.addr)
	f.outside, err = grpc.NewClient("passthrough:///"+f.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}})))
	ok(t, err)
	t.Cleanup(func() { _ = f.outside.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, public) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("the gateway ended with %v", err)
		}
	})
	return f
}

// run runs one of the tools, at most for a while; it returns what it printed.
func run(t *testing.T, most time.Duration, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(tools, name), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("%s hangs: %w", name, ctx.Err())
	}
	return string(out), err
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
