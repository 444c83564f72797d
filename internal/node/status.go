package node

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// askWithin bounds each question that a status asks of the store or of etcd.
const askWithin = 2 * time.Second

// statusService says how this instance is.
type statusService struct {
	maintenancev1.UnsafeStatusServiceServer
	n  *Node
	st *state
	m  *mesh
	up time.Time // with its monotonic part
}

var _ maintenancev1.StatusServiceServer = (*statusService)(nil)

// serveStatus tells operators how the node is.
func (n *Node) serveStatus(r grpc.ServiceRegistrar, st *state, m *mesh) {
	maintenancev1.RegisterStatusServiceServer(r, &statusService{n: n, st: st, m: m, up: time.Now()})
}

// GetStatus implements maintenancev1.StatusServiceServer.
func (s *statusService) GetStatus(ctx context.Context, _ *maintenancev1.GetStatusRequest) (*maintenancev1.InstanceStatus, error) {
	if rpc.From(ctx).PeerService != "" {
		return nil, fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "a status is for an operator himself, with his certificate, and not for a service for him")
	}
	version, revision, _ := observe.Build()
	uptime := time.Since(s.up)
	now := s.n.opts.Now()
	out := &maintenancev1.InstanceStatus{
		Service: s.n.name, Instance: s.n.cfg.Service.Instance, Version: version, Revision: revision, Now: timestamppb.New(now),
		StartTime: timestamppb.New(now.Add(-uptime)), Uptime: durationpb.New(uptime), Leads: s.st.leader.Leading(),
		MemoryBytes: residentBytes(), Goroutines: int64(runtime.NumGoroutine()), Store: s.store(ctx),
	}
	if id, err := s.m.own.Current(); err == nil {
		out.CertificateEndTime = timestamppb.New(id.Chain[0].NotAfter)
	}
	if err := s.st.engine.Fresh(now); err != nil {
		out.StateStale = fault.Describe(err).Message()
	}
	short, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	if err := s.m.registry.Check(short); err != nil {
		out.EtcdError = fault.Describe(err).Message()
	}
	depth, oldest, err := s.st.outbox.Waiting(short)
	if err == nil {
		out.OutboxDepth = depth
		if depth > 0 {
			out.OutboxOldestTime = timestamppb.New(oldest)
		}
	} else if out.Store.Error == "" {
		out.Store.Error = fault.Describe(err).Message()
	}
	for name, state := range s.m.peers() {
		out.Peers = append(out.Peers, &maintenancev1.PeerStatus{Service: name, State: state})
	}
	slices.SortFunc(out.GetPeers(), func(a, b *maintenancev1.PeerStatus) int { return strings.Compare(a.GetService(), b.GetService()) })
	return out, nil
}

// store asks the database and the file system.
func (s *statusService) store(ctx context.Context) *maintenancev1.InstanceStatus_Store {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	out := &maintenancev1.InstanceStatus_Store{Engine: "sqlite"}
	if s.st.db.Dialect() == sqldb.Postgres {
		out.Engine = "postgres"
	}
	versions, err := s.st.db.Versions(ctx)
	if err != nil {
		out.Error = fault.Describe(err).Message()
	}
	out.Schema = versions
	var fs unix.Statfs_t
	if unix.Statfs(s.n.cfg.Service.Dir, &fs) == nil {
		out.FreeBytes = int64(fs.Bavail) * fs.Bsize
	}
	return out
}

// residentBytes is the memory of this process that is in use, 0 where the system does not say.
func residentBytes() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	fields := bytes.Fields(b)
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
