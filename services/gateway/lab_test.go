package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const domain = "redoubt.test"

// behind are the services that the gateway forwards to. The chain is not among them: what passes the gateway is looked at here.
type behind struct {
	telemetryv1.UnimplementedMetricServiceServer
	telemetryv1.UnimplementedIngestServiceServer
	identityv1.UnimplementedTokenServiceServer
	identityv1.UnimplementedProviderServiceServer

	get   func(context.Context, *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error)
	log   func(grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error
	watch func(*telemetryv1.WatchMetricsRequest, grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error
	issue func(context.Context, *identityv1.IssueTokenRequest) (*identityv1.TokenResponse, error)
	token func(context.Context, *identityv1.RequestTokenRequest) (*identityv1.Page, error)

	mu sync.Mutex
	md metadata.MD // of the last call
}

func (b *behind) saw(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.md = md
}

func (b *behind) seen() metadata.MD {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.md
}

func (b *behind) GetRunData(ctx context.Context, r *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
	b.saw(ctx)
	if b.get == nil {
		return &telemetryv1.RunData{}, nil
	}
	return b.get(ctx, r)
}

func (b *behind) LogRunData(s grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
	return b.log(s)
}

func (b *behind) WatchMetrics(r *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
	return b.watch(r, s)
}

func (b *behind) Ingest(ctx context.Context, _ *telemetryv1.IngestRequest) (*telemetryv1.IngestResponse, error) {
	b.saw(ctx)
	return &telemetryv1.IngestResponse{}, nil
}

func (b *behind) IssueToken(ctx context.Context, r *identityv1.IssueTokenRequest) (*identityv1.TokenResponse, error) {
	b.saw(ctx)
	return b.issue(ctx, r)
}

func (b *behind) RequestToken(ctx context.Context, r *identityv1.RequestTokenRequest) (*identityv1.Page, error) {
	b.saw(ctx)
	return b.token(ctx, r)
}

func (b *behind) GetDiscovery(context.Context, *identityv1.GetDiscoveryRequest) (*identityv1.Document, error) {
	return &identityv1.Document{Json: []byte(`{"issuer":"x"}`)}, nil
}

func (b *behind) GetKeys(context.Context, *identityv1.GetKeysRequest) (*identityv1.Document, error) {
	return &identityv1.Document{Json: []byte(`{"keys":[]}`)}, nil
}

// plain are the credentials of the pipe between gateway and services; mTLS there is pkg/rpc's and pkg/svid's.
type plain struct{ handshaken }

func (plain) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, credentials.TLSInfo{}, nil
}
func (plain) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, credentials.TLSInfo{}, nil
}
func (p plain) Clone() credentials.TransportCredentials { return p }

type lab struct {
	t     *testing.T
	b     *behind
	s     *Service
	addr  string
	roots *x509.CertPool
	stop  func() // of the services behind
	err   chan error
}

func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	l := &lab{t: t, b: &behind{}, roots: x509.NewCertPool(), err: make(chan error, 1)}
	inner := grpc.NewServer(grpc.Creds(plain{}), grpc.MaxRecvMsgSize(64<<20))
	telemetryv1.RegisterMetricServiceServer(inner, l.b)
	telemetryv1.RegisterIngestServiceServer(inner, l.b)
	identityv1.RegisterTokenServiceServer(inner, l.b)
	identityv1.RegisterProviderServiceServer(inner, l.b)
	pipe := bufconn.Listen(1 << 20)
	go func() { _ = inner.Serve(pipe) }()
	l.stop = inner.Stop
	t.Cleanup(inner.Stop)
	conn, err := grpc.NewClient("passthrough:///behind", append(PeerOptions(), grpc.WithTransportCredentials(plain{}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))...)
	ok(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	rules, err := rule.Load("redoubt.telemetry.v1.MetricService", "redoubt.telemetry.v1.IngestService", "redoubt.identity.v1.TokenService", "redoubt.identity.v1.ProviderService", "redoubt.identity.v1.EnrolmentService", "redoubt.identity.v1.AgentService")
	ok(t, err)
	cert := l.certificate()
	cfg := Config{
		Rules: rules, Peers: map[string]grpc.ClientConnInterface{"telemetry": conn, "identity": conn, "workspace": conn, "compute": conn, "inference": conn}, Installation: domain, PublicURL: "https://" + domain,
		Certificate: func() (*tls.Certificate, error) { return cert, nil }, Logger: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&cfg)
	}
	l.s, err = New(cfg)
	ok(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	l.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	go func() { l.err <- l.s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-l.err; err != nil {
			t.Errorf("Serve ended with %v", err)
		}
	})
	return l
}

func (l *lab) certificate() *tls.Certificate {
	a, err := svid.NewAuthority(spiffeid.RequireTrustDomainFromString(domain), time.Now(), time.Hour)
	ok(l.t, err)
	key, err := authn.GenerateKey()
	ok(l.t, err)
	chain, err := a.SignServer(&key.PublicKey, []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour, time.Now())
	ok(l.t, err)
	l.roots.AddCert(a.Root())
	return &tls.Certificate{Certificate: chain, PrivateKey: key}
}

func (l *lab) tls(protos ...string) *tls.Config {
	return &tls.Config{RootCAs: l.roots, ServerName: "localhost", MinVersion: tls.VersionTLS12, NextProtos: protos}
}

// dial is a gRPC client from outside.
func (l *lab) dial(opts ...grpc.DialOption) *grpc.ClientConn {
	l.t.Helper()
	c, err := grpc.NewClient("passthrough:///"+l.addr, append([]grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(l.tls("h2")))}, opts...)...)
	ok(l.t, err)
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (l *lab) metrics() telemetryv1.MetricServiceClient {
	return telemetryv1.NewMetricServiceClient(l.dial())
}

// post sends a form to the token endpoint.
func (l *lab) post(body string, header ...string) (*http.Response, string) {
	l.t.Helper()
	return l.http(http.MethodPost, "/oauth2/token", body, append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)...)
}

func (l *lab) http(method, path, body string, header ...string) (*http.Response, string) {
	l.t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: l.tls(), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(l.t.Context(), method, "https://"+l.addr+path, strings.NewReader(body))
	ok(l.t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(req)
	ok(l.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	ok(l.t, err)
	return res, string(b)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refusedAs(t testing.TB, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	if errors.Is(err, io.EOF) || err == nil {
		t.Fatalf("not refused: %v", err)
	}
	got := fault.FromStatus(err)
	if fault.Code(got) != code || fault.ReasonOf(got) != reason {
		t.Fatalf("got %s %s (%v), want %s %s", fault.Code(got), fault.ReasonOf(got), err, code, reason)
	}
}
