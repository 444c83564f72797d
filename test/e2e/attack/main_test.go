//go:build linux

// Package attack has strangers attack the gateway while a good client goes on calling, and holds that he does not notice (A3, D10; goal
// 34): no call of his fails, his slowest calls stay what they were, the gateway's memory is bounded, and it is itself again at once.
//
// The gateway, with a service behind it, the attacker, and the good client are processes of their own; the attacker has another address
// and the lowest priority, as if his machine were not this one. All is on loopback, bounded in number and in time: ATTACK_SECONDS of each
// attack, a fifth of one in `make test`.
//
// Linux: it reads /proc, and has many addresses on loopback.
package attack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/gateway"
)

// roleEnv makes the test's own binary one of the other processes.
const roleEnv = "REDOUBT_TEST_ATTACK_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "server":
		err = serve()
	case "attacker":
		err = attack()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// place is where the gateway is.
type place struct {
	Addr string
	CA   []byte // DER
	Pid  int
}

func (p *place) tls(protos ...string) *tls.Config {
	roots := x509.NewCertPool()
	if c, err := x509.ParseCertificate(p.CA); err == nil {
		roots.AddCert(c)
	}
	return &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12, NextProtos: protos}
}

// metrics is the service behind the gateway.
type metrics struct {
	telemetryv1.UnimplementedMetricServiceServer
}

func (metrics) GetRunData(context.Context, *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
	return &telemetryv1.RunData{}, nil
}

// WatchMetrics sends 64 MiB.
func (metrics) WatchMetrics(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
	m := &telemetryv1.WatchMetricsResponse{}
	for range 1000 {
		m.Metrics = append(m.Metrics, &telemetryv1.Metric{Key: strings.Repeat("k", 250)})
	}
	for range 256 {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// serve is the process that is attacked. It ends when its standard input does.
func serve() error {
	now := time.Now()
	ca, err := svid.NewAuthority(spiffeid.RequireTrustDomainFromString("redoubt.test"), now, time.Hour)
	if err != nil {
		return err
	}
	key, err := svid.NewKey()
	if err != nil {
		return err
	}
	chain, err := ca.SignServer(key.Public(), []string{"localhost"}, nil, time.Hour, now)
	if err != nil {
		return err
	}
	cert := tls.Certificate{Certificate: chain, PrivateKey: key}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Root())
	inner := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})), grpc.MaxConcurrentStreams(8192))
	telemetryv1.RegisterMetricServiceServer(inner, metrics{})
	behind, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = inner.Serve(behind) }()
	conn, err := grpc.NewClient("passthrough:///"+behind.Addr().String(), append(gateway.PeerOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13})))...)
	if err != nil {
		return err
	}
	rules, err := node.Rules()
	if err != nil {
		return err
	}
	peers := make(map[string]grpc.ClientConnInterface)
	for _, s := range node.Services {
		peers[s] = conn
	}
	g, err := gateway.New(gateway.Config{
		Rules: rules, Peers: peers, Installation: "redoubt.test", PublicURL: "https://redoubt.test", Logger: slog.New(slog.DiscardHandler), Certificate: func() (*tls.Certificate, error) { return &cert, nil },
	})
	if err != nil {
		return err
	}
	public, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := json.NewEncoder(os.Stdout).Encode(place{Addr: public.Addr().String(), CA: ca.Root().Raw, Pid: os.Getpid()}); err != nil {
		return err
	}
	return g.Serve(ctx, public)
}

// start runs the server until the test ends.
func start(t *testing.T) *place {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	// The bound of the heap that a gateway has in a container of 256 MiB (pkg/machine): what it holds is bounded by its windows and limits, and
	// what the collector leaves beside that by this.
	cmd.Env = append(os.Environ(), roleEnv+"=server", "GOMEMLIMIT=205MiB")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	ok(t, err)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	p := &place{}
	ok(t, json.NewDecoder(out).Decode(p))
	return p
}

// order is what an attacker is told, tally what he says.
type (
	order struct {
		Name  string
		For   time.Duration
		Seed  uint64
		Place place
	}
	tally struct {
		Tried int64 // of what the attack is made of
		Ended int64 // connections that the gateway ended, or did not let through
	}
)

// send has an attack made.
func send(t *testing.T, o order) tally {
	t.Helper()
	b, err := json.Marshal(o)
	ok(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), o.For+20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"=attacker")
	cmd.Stdin, cmd.Stderr = strings.NewReader(string(b)), os.Stderr
	out, err := cmd.Output()
	ok(t, err)
	var r tally
	ok(t, json.Unmarshal(out, &r))
	return r
}

// attack is the attacker's process.
func attack() error {
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19); err != nil {
		return err
	}
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.For)
	defer cancel()
	a := newAttacker(o)
	if err := attacks[o.Name](ctx, a); err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", o.Name, err)
	}
	return json.NewEncoder(os.Stdout).Encode(tally{a.tried.Load(), a.ended.Load()})
}

// rss is the memory that a process has, in bytes.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	ok(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			ok(t, err)
			return n << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
