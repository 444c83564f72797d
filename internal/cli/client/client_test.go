package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// gateway stands at the other end of a real TLS connection.
type gateway struct {
	computev1.UnimplementedRunServiceServer
	workspacev1.UnimplementedSnapshotServiceServer
	telemetryv1.UnimplementedMetricServiceServer
	identityv1.UnimplementedTokenServiceServer

	mu         sync.Mutex
	calls      map[string]int
	tokens     []string
	fail       int    // so many calls are answered UNAVAILABLE first
	issued     int    // tokens
	refused    string // this token, or all with *
	failTokens bool
	states     []computev1.Run_State
	log        string
	batches    int // calls of UploadBlobs
	history    []*telemetryv1.Metric
	blobs      map[string]string
	entries    []*workspacev1.SnapshotEntry
}

func (g *gateway) called(ctx context.Context, what string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls[what]++
	md, _ := metadata.FromIncomingContext(ctx)
	bearer := strings.Join(md.Get("authorization"), ",")
	if what == "token" {
		if g.failTokens {
			return status.Error(codes.Unavailable, "away")
		}
		return nil
	}
	g.tokens = append(g.tokens, bearer)
	if g.refused == "*" || bearer != "" && bearer == g.refused {
		return status.Error(codes.Unauthenticated, "no more")
	}
	if g.fail > 0 {
		g.fail--
		return fault.ToStatus(fault.Unavailable("away"), "redoubt.test", "r1").Err()
	}
	return nil
}

func (g *gateway) GetRun(ctx context.Context, r *computev1.GetRunRequest) (*computev1.Run, error) {
	return &computev1.Run{Name: r.GetName()}, g.called(ctx, "get")
}

func (g *gateway) CancelRun(ctx context.Context, r *computev1.CancelRunRequest) (*computev1.Run, error) {
	return &computev1.Run{Name: r.GetName()}, g.called(ctx, "cancel")
}

func (g *gateway) SubmitRun(ctx context.Context, r *computev1.SubmitRunRequest) (*computev1.Run, error) {
	return &computev1.Run{Name: r.GetParent()}, g.called(ctx, "submit")
}

// WatchRun breaks off after each state.
func (g *gateway) WatchRun(_ *computev1.WatchRunRequest, s grpc.ServerStreamingServer[computev1.Run]) error {
	g.mu.Lock()
	state := g.states[0]
	if len(g.states) > 1 {
		g.states = g.states[1:]
	}
	g.mu.Unlock()
	if err := s.Send(&computev1.Run{State: state}); err != nil || state >= computev1.Run_STATE_COMPLETED {
		return err
	}
	return status.Error(codes.Unavailable, "restart")
}

// StreamLogs sends from a little before the offset, and breaks off every four bytes.
func (g *gateway) StreamLogs(r *computev1.StreamLogsRequest, s grpc.ServerStreamingServer[computev1.LogChunk]) error {
	if r.GetOffset() >= int64(len(g.log)) {
		return nil
	}
	from := max(r.GetOffset()-2, 0)
	to := min(r.GetOffset()+4, int64(len(g.log)))
	if err := s.Send(&computev1.LogChunk{Offset: from, Data: []byte(g.log[from:to])}); err != nil {
		return err
	}
	return status.Error(codes.Unavailable, "restart")
}

// WatchMetrics sends the first of what there is, twice, and no more.
func (g *gateway) WatchMetrics(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
	for range 2 {
		if err := s.Send(&telemetryv1.WatchMetricsResponse{Metrics: g.history[:1]}); err != nil {
			return err
		}
	}
	<-s.Context().Done()
	return s.Context().Err()
}

func (g *gateway) GetRunData(context.Context, *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
	return &telemetryv1.RunData{Latest: g.history[len(g.history)-1:]}, nil
}

func (g *gateway) ListMetricHistory(_ context.Context, r *telemetryv1.ListMetricHistoryRequest) (*telemetryv1.ListMetricHistoryResponse, error) {
	if r.GetPageToken() == "" {
		return &telemetryv1.ListMetricHistoryResponse{Metrics: g.history[:2], NextPageToken: "2"}, nil
	}
	return &telemetryv1.ListMetricHistoryResponse{Metrics: g.history[2:]}, nil
}

func (g *gateway) FindMissingBlobs(_ context.Context, r *workspacev1.FindMissingBlobsRequest) (*workspacev1.FindMissingBlobsResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := &workspacev1.FindMissingBlobsResponse{}
	for _, d := range r.GetDigests() {
		if _, ok := g.blobs[string(d)]; !ok {
			out.Missing = append(out.Missing, d)
		}
	}
	return out, nil
}

func (g *gateway) UploadBlob(s grpc.ClientStreamingServer[workspacev1.UploadBlobRequest, workspacev1.UploadBlobResponse]) error {
	var digest []byte
	var b bytes.Buffer
	for first := true; ; first = false {
		m, err := s.Recv()
		if err != nil {
			break
		}
		if first != (m.GetParent() != "") || len(m.GetData()) > chunk {
			return status.Error(codes.InvalidArgument, "the parent stands in the first message, and data is bounded")
		}
		if first {
			digest = m.GetDigest()
		}
		b.Write(m.GetData())
	}
	if sum := sha256.Sum256(b.Bytes()); !bytes.Equal(sum[:], digest) {
		return status.Error(codes.InvalidArgument, "digest")
	}
	g.mu.Lock()
	g.blobs[string(digest)] = b.String()
	g.mu.Unlock()
	return s.SendAndClose(&workspacev1.UploadBlobResponse{Size: int64(b.Len())})
}

func (g *gateway) UploadBlobs(_ context.Context, r *workspacev1.UploadBlobsRequest) (*workspacev1.UploadBlobsResponse, error) {
	if r.GetParent() == "" || len(r.GetBlobs()) > batchFiles {
		return nil, status.Error(codes.InvalidArgument, "a parent, and not too many")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.batches++
	for _, b := range r.GetBlobs() {
		if sum := sha256.Sum256(b.GetData()); !bytes.Equal(sum[:], b.GetDigest()) {
			return nil, status.Error(codes.InvalidArgument, "digest")
		}
		g.blobs[string(b.GetDigest())] = string(b.GetData())
	}
	return &workspacev1.UploadBlobsResponse{}, nil
}

func (g *gateway) CreateSnapshot(_ context.Context, r *workspacev1.CreateSnapshotRequest) (*workspacev1.Snapshot, error) {
	g.entries = r.GetEntries()
	return &workspacev1.Snapshot{Name: r.GetParent() + "/snapshots/s1"}, nil
}

// root makes an authority and a server's certificate for loopback.
func root(t *testing.T) (ca []byte, cert tls.Certificate) {
	t.Helper()
	a, err := svid.NewAuthority(spiffeid.RequireTrustDomainFromString("test.local"), time.Now(), time.Hour)
	must(t, err)
	key, err := authn.GenerateKey()
	must(t, err)
	chain, err := a.SignServer(key.Public(), []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour, time.Now())
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Root().Raw}), tls.Certificate{Certificate: chain, PrivateKey: key}
}

func serve(t *testing.T) (*gateway, Context) {
	t.Helper()
	g := &gateway{calls: make(map[string]int), blobs: make(map[string]string)}
	ca, cert := root(t)
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})))
	computev1.RegisterRunServiceServer(s, g)
	workspacev1.RegisterSnapshotServiceServer(s, g)
	telemetryv1.RegisterMetricServiceServer(s, g)
	identityv1.RegisterTokenServiceServer(s, g)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return g, Context{Server: "https://" + l.Addr().String(), CAPEM: ca}
}

func dial(t *testing.T, c Context, token string) *Client {
	t.Helper()
	cl, err := Dial(c, redact.FromString(token))
	must(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

func TestOnlyReadsAreRepeated(t *testing.T) {
	cases := []struct {
		name  string
		call  func(ctx context.Context, c *Client) error
		calls int
		ok    bool
	}{
		{"get", func(ctx context.Context, c *Client) error {
			_, err := c.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: "x"})
			return err
		}, 2, true},
		{"cancel", func(ctx context.Context, c *Client) error {
			_, err := c.Runs().CancelRun(ctx, &computev1.CancelRunRequest{Name: "x"})
			return err
		}, 1, false},
		{"submit", func(ctx context.Context, c *Client) error {
			_, err := c.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: "x"})
			return err
		}, 1, false},
		{"submit", func(ctx context.Context, c *Client) error {
			_, err := c.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: "x", RequestId: "7f2c"})
			return err
		}, 2, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			g, to := serve(t)
			g.fail = 1
			err := tc.call(t.Context(), dial(t, to, "secret-token"))
			if (err == nil) != tc.ok || g.calls[tc.name] != tc.calls {
				t.Errorf("%d calls, %v", g.calls[tc.name], err)
			}
			if g.tokens[0] != "Bearer secret-token" {
				t.Errorf("token %q", g.tokens[0])
			}
		})
	}
}

func TestAnotherRootIsNotBelieved(t *testing.T) {
	g, to := serve(t)
	to.CAPEM, _ = root(t)
	_, err := dial(t, to, "secret-token").Runs().GetRun(t.Context(), &computev1.GetRunRequest{Name: "x"})
	if status.Code(err) != codes.Unavailable || g.calls["get"] != 0 {
		t.Errorf("%v after %d calls", err, g.calls["get"])
	}
	if p := Describe(err); !p.Remote || !strings.Contains(p.Next, "redoubt doctor") {
		t.Errorf("got %+v", p)
	}
}

func TestDialRefuses(t *testing.T) {
	for _, server := range []string{"", "127.0.0.1:1", "http://127.0.0.1:1", "https://", "https://user:pw@h", "https://h/path", "https://h?x=1", "ftp://h"} {
		if _, err := Dial(Context{Server: server}, redact.Secret{}); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%q: %v", server, err)
		}
	}
	if _, err := Dial(Context{Server: "https://h", CAPEM: []byte("no PEM")}, redact.Secret{}); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("a root that is none: %v", err)
	}
	if _, err := Dial(Context{Server: "https://h", CAFile: "/nowhere"}, redact.Secret{}); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("a root's file that is not there: %v", err)
	}
}

func TestFollowingGoesOnOverRestarts(t *testing.T) {
	g, to := serve(t)
	g.states = []computev1.Run_State{computev1.Run_STATE_QUEUED, computev1.Run_STATE_RUNNING, computev1.Run_STATE_COMPLETED}
	g.log = "epoch 1\nepoch 2\nepoch 3\n"
	for i := range 4 {
		g.history = append(g.history, &telemetryv1.Metric{Key: "loss", Step: int64(i), Value: 1 / float64(i+1)})
	}
	c := dial(t, to, "t")
	var log strings.Builder
	n, err := c.FollowLogs(t.Context(), "r", 0, true, &log)
	if err != nil || log.String() != g.log || n != int64(len(g.log)) {
		t.Errorf("log %q to %d, %v", log.String(), n, err)
	}
	var states []string
	r, err := c.WaitRun(t.Context(), "r", func(r *computev1.Run) { states = append(states, r.GetState().String()) })
	if err != nil || !Ended(r) || len(states) != 3 {
		t.Errorf("%v, %v, %v", r, states, err)
	}
	g.states = []computev1.Run_State{computev1.Run_STATE_RUNNING, computev1.Run_STATE_COMPLETED}
	var steps []int64
	err = c.FollowMetrics(t.Context(), "r", func(ms []*telemetryv1.Metric) error {
		for _, m := range ms {
			steps = append(steps, m.GetStep())
		}
		return nil
	})
	if err != nil || fmt.Sprint(steps) != "[0 1 2 3]" {
		t.Errorf("steps %v, %v", steps, err)
	}
	full := fmt.Errorf("the disk is full")
	g.states = []computev1.Run_State{computev1.Run_STATE_RUNNING}
	if err := c.FollowMetrics(t.Context(), "r", func([]*telemetryv1.Metric) error { return full }); err != full { //nolint:errorlint // it comes back as it is
		t.Errorf("got %v", err)
	}
}

func TestUploadSendsEachContentOnce(t *testing.T) {
	g, to := serve(t)
	dir := t.TempDir()
	big := strings.Repeat("0123456789abcdef", chunk/16) + "!"
	write(t, dir, "a", "same")
	write(t, dir, "b/c", "same")
	write(t, dir, "big", big)
	write(t, dir, "exact", big[:chunk])
	write(t, dir, "empty", "")
	there := sha256.Sum256([]byte("there"))
	g.blobs[string(there[:])] = "there"
	write(t, dir, "known", "there")
	var last Progress
	s, err := dial(t, to, "t").UploadSnapshot(t.Context(), "w", dir, func(p Progress) { last = p })
	if err != nil || s.GetName() != "w/snapshots/s1" {
		t.Fatal(s, err)
	}
	if last.Files != 6 || last.MissingFiles != 4 || last.SentFiles != 4 || last.SentBytes != last.MissingBytes {
		t.Errorf("progress %+v", last)
	}
	if len(g.entries) != 6 || len(g.blobs) != 5 {
		t.Errorf("%d entries, %d blobs", len(g.entries), len(g.blobs))
	}
	for _, e := range g.entries {
		b, err := os.ReadFile(dir + "/" + e.GetPath())
		if err != nil || g.blobs[string(e.GetDigest())] != string(b) {
			t.Errorf("%s is not what was sent", e.GetPath())
		}
	}
}

func TestDescribe(t *testing.T) {
	wire := func(e error) error { return fault.ToStatus(e, "redoubt.test", "req-7").Err() }
	cases := []struct {
		name string
		err  error
		want []string
		not  string
	}{
		{"denied", wire(fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING, "you may not").With("action", "compute/runs/submit").With("scope", "subscriptions/s")), []string{
			"you may not", "PERMISSION_DENIED AUTHZ_ACTION_MISSING", "request req-7", "redoubt role explain --scope subscriptions/s compute/runs/submit",
		}, ""},
		{"expired", wire(fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "over")), []string{"redoubt login"}, ""},
		{"fields", wire(fault.InvalidArgument("bad").Field("name", "is empty")), []string{"\n  name: is empty"}, ""},
		{"rate", wire(fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "too fast").Retry(2 * time.Second)), []string{"repeat it in 2s"}, ""},
		{"local", fault.FailedPrecondition("no folder"), []string{"no folder"}, "PRECONDITION"},
		{"wrapped", fmt.Errorf("identity does not start: %w", fault.FailedPrecondition("port in use")), []string{"identity does not start:", "port in use"}, "PRECONDITION_FAILED"},
		{"plain", fmt.Errorf("disk"), []string{"disk"}, "INTERNAL"},
		{"time", context.DeadlineExceeded, []string{"--timeout"}, ""},
		{"about something", fmt.Errorf("f.yaml, line 3: %w", wire(fault.NotFound("no such endpoint"))), []string{"f.yaml, line 3: no such endpoint\n", "NOT_FOUND", "req-7"}, "rpc error"},
		{"interrupted", status.FromContextError(context.Canceled).Err(), []string{"interrupted"}, "CANCELLED"},
		{"hostile", status.Error(codes.NotFound, "a\x1b[2Jb\nc"), []string{"a·[2Jb c"}, "\x1b"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := Describe(c.err).String()
			for _, w := range c.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q lacks %q", got, w)
				}
			}
			if c.not != "" && strings.Contains(got, c.not) {
				t.Errorf("%q has %q", got, c.not)
			}
		})
	}
}
