package requestlog_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/inference/internal/requestlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// spool is a folder with its key, and the telemetry that it is delivered to.
type spool struct {
	t   testing.TB
	dir string
	own *envelope.Keyring
	to  *telemetry
	cfg requestlog.Config
}

func newSpool(t testing.TB, change func(*requestlog.Config)) *spool {
	t.Helper()
	s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	own, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, "inference"), DB: sqldbtest.OpenConfig(t, sqldbtest.SQLite(t, []sqldb.MigrationSet{envelope.Migrations()}...))})
	must(t, err)
	p := &spool{t: t, dir: filepath.Join(t.TempDir(), "requests"), own: own, to: &telemetry{sources: make(map[string]*source)}}
	p.cfg = requestlog.Config{Dir: p.dir, Own: own, Client: p.to, Instance: "a"}
	if change != nil {
		change(&p.cfg)
	}
	return p
}

// open opens the spool as a process that has just started would. It is closed with the test.
func (p *spool) open() *requestlog.Log {
	p.t.Helper()
	l, err := requestlog.Open(context.Background(), p.cfg)
	must(p.t, err)
	p.t.Cleanup(func() { must(p.t, l.Close()) })
	return l
}

// relay delivers until telemetry has n requests.
func (p *spool) relay(l *requestlog.Log, n int) {
	p.t.Helper()
	p.relayUntil(l, func() bool { return len(p.to.requests()) >= n })
}

func (p *spool) relayUntil(l *requestlog.Log, done func() bool) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = l.Relay(ctx)
	}()
	for !done() {
		p.to.wait(ctx)
		if ctx.Err() != nil {
			p.t.Errorf("after a minute telemetry has %d requests", len(p.to.requests()))
			break
		}
	}
	cancel()
	<-ended
}

func (p *spool) segments() []string {
	p.t.Helper()
	found, err := filepath.Glob(filepath.Join(p.dir, "*.requests"))
	must(p.t, err)
	slices.Sort(found)
	return found
}

func (p *spool) edit(path string, change func([]byte) []byte) {
	p.t.Helper()
	b, err := os.ReadFile(path)
	must(p.t, err)
	must(p.t, os.WriteFile(path, change(b), 0o600))
}

// telemetry takes batches as the service does: each number of a source once.
type telemetry struct {
	mu      sync.Mutex
	sources map[string]*source
	all     []string // request ids
	calls   int
	away    error
	refuse  string // a request id that is not taken
	changed chan struct{}
}

type source struct{ seq, dropped int64 }

// IngestRequests implements requestlog.Client.
func (c *telemetry) IngestRequests(_ context.Context, in *telemetryv1.IngestRequestsRequest, _ ...grpc.CallOption) (*telemetryv1.IngestRequestsResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		if c.changed != nil {
			close(c.changed)
			c.changed = nil
		}
	}()
	c.calls++
	if c.away != nil {
		return nil, c.away
	}
	for _, r := range in.GetRequests() {
		if c.refuse != "" && r.GetRequest().GetRequestId() == c.refuse {
			return nil, fault.ToStatus(fault.InvalidArgument("not this one"), "redoubt.test", "").Err()
		}
	}
	s := c.sources[in.GetSource()]
	if s == nil {
		s = new(source)
		c.sources[in.GetSource()] = s
	}
	for _, r := range in.GetRequests() {
		if r.GetSeq() > s.seq {
			s.seq = r.GetSeq()
			c.all = append(c.all, r.GetRequest().GetRequestId())
		}
	}
	s.dropped = max(s.dropped, in.GetDropped())
	return &telemetryv1.IngestRequestsResponse{StoredSeq: s.seq, Dropped: s.dropped}, nil
}

func (c *telemetry) requests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all)
}

func (c *telemetry) lost() (n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sources {
		n += s.dropped
	}
	return n
}

// wait returns after a call, or soon for what follows a call, or when ctx ends.
func (c *telemetry) wait(ctx context.Context) {
	c.mu.Lock()
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	changed := c.changed
	c.mu.Unlock()
	select {
	case <-changed:
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
	}
}

func id(n int) string { return fmt.Sprintf("request-%06d", n) }

func record(n int) *telemetryv1.ScoringRequest {
	return &telemetryv1.ScoringRequest{
		HttpMethod: "POST", UserAgent: "python-requests/2.32 canary-agent", ComputeType: "local", RequestUrl: "/endpoints/ep_abcdefghijklmnopqrstuvwxyz/score",
		StatusCode: 200, RequestId: id(n), Duration: durationpb.New(3 * time.Millisecond), ModelStatusCode: 200, Time: timestamppb.New(time.Unix(1_700_000_000, 0)),
		WorkspaceUid: "ws_1", EndpointUid: "ep_1", Deployment: "blue", ReplicaUid: "run_1", Auth: "key-primary", Address: "192.0.2.7", RequestBytes: 120, ResponseBytes: 48,
		TraceId: "4bf92f3577b34da6a3ce929d0e0e4736", Protocol: "http", Queued: durationpb.New(time.Millisecond),
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
