// Package canary looks for what tenants wrote where it must not stand in clear: every file of the installation's state, the logs of
// all services and agents, their metrics, their processes (D1, D2, E1, F1, G2; goal 31).
//
// It owns a walk through the public API in which every text that a tenant can give is a canary: random, and used once. None may be
// found, in any of the forms that package's searcher knows. What stands in clear on purpose is listed in docs/data.md.
//
// With the build tag redoubt_break_encryption, go test -tags redoubt_break_encryption ./test/e2e/canary, what is stored has to be
// found: TestCanaries/secret_name, /metric_name, /script_line and some fifty others are red then. Green in both are passwords, which
// are hashed, and what is never stored: tokens, what vault keys encrypt, most of what is refused.
package canary

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

var mesh *testmesh.Mesh

func TestMain(m *testing.M) {
	testmesh.Child()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		srv := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
		collector.RegisterTraceServiceServer(srv, traces)
		go func() { _ = srv.Serve(l) }()
		mesh, err = testmesh.Start(func(c *node.UpConfig) {
			c.Log.Level, c.TraceEndpoint, c.TraceRatio = "debug", l.Addr().String(), 1
			c.Options.Limits = rpc.Limits{PerAddress: 1e6, PerPrincipal: 1e6, LogReads: 1} // whatever is sent is looked at, and logged
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}

// spans is an OTLP collector that keeps what it is sent.
type spans struct {
	collector.UnsafeTraceServiceServer
	buffer
	n atomic.Int64
}

var traces = &spans{}

// Export implements the collector's contract.
func (s *spans) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	b, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	for _, r := range req.GetResourceSpans() {
		for _, sc := range r.GetScopeSpans() {
			s.n.Add(int64(len(sc.GetSpans())))
		}
	}
	_, err = s.Write(b)
	return &collector.ExportTraceServiceResponse{}, err
}

// buffer keeps a log.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}
