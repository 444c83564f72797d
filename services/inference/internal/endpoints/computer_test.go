package endpoints

import (
	"context"
	"crypto/sha256"
	"crypto/tls"

	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

// computer is compute as a peer on a real port: it keeps replicas by their ids, and those that run have workers that connect to the
// replica listener with the certificate of their run. What it does is what the test sets.
type computer struct {
	computev1.UnimplementedReplicaServiceServer
	l    *lab
	addr string

	mu       sync.Mutex
	changed  chan struct{} // closed at each change
	replicas map[string]*made
	order    []string
	listener string // of replicas
	starts   int
	// fail is what StartReplica and StopReplica answer, hold keeps new replicas from running, die says which message a new replica ends
	// with instead of running.
	fail, stopFail error
	hold           bool
	mute           bool // workers do not connect
	die            func(req *computev1.StartReplicaRequest) string
	// before is called at the begin of each StartReplica and StopReplica, after at the end, when it has had its effect.
	before, after func()
	// answer is what the workers of a replica answer.
	answer func(req *computev1.StartReplicaRequest) (int, string)
	jobs   sync.WaitGroup
}

// made is a replica that was started.
type made struct {
	req    *computev1.StartReplicaRequest
	status *computev1.ReplicaStatus
	stop   context.CancelFunc
}

func newComputer(l *lab) *computer {
	c := &computer{l: l, changed: make(chan struct{}), replicas: make(map[string]*made)}
	c.answer = func(req *computev1.StartReplicaRequest) (int, string) { return 200, req.GetReplicaId() }
	listener := listen(l.t)
	c.addr = listener.Addr().String()
	server := grpc.NewServer(grpc.Creds(l.newSource("compute").ServerCredentials()))
	computev1.RegisterReplicaServiceServer(server, c)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	l.t.Cleanup(func() {
		c.mu.Lock()
		for _, m := range c.replicas {
			m.stop()
		}
		c.mu.Unlock()
		c.jobs.Wait()
		server.Stop()
		<-done
	})
	return c
}

func (c *computer) at(listener string) {
	c.set(func() { c.listener = listener })
}

// set changes what it does.
func (c *computer) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *computer) StartReplica(_ context.Context, req *computev1.StartReplicaRequest) (*computev1.ReplicaStatus, error) {
	defer c.hooked()()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starts++
	if c.fail != nil {
		return nil, wire(c.fail)
	}
	if m := c.replicas[req.GetReplicaId()]; m != nil {
		if !proto.Equal(m.req, req) {
			return nil, wire(fault.AlreadyExists("the replica_id was used for another replica"))
		}
		return proto.CloneOf(m.status), nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &made{req: req, stop: cancel, status: &computev1.ReplicaStatus{
		ReplicaId: req.GetReplicaId(), RunUid: resource.NewUID("run"), State: computev1.Run_STATE_QUEUED, CreateTime: timestamppb.Now(),
	}}
	c.replicas[req.GetReplicaId()] = m
	c.order = append(c.order, req.GetReplicaId())
	c.jobs.Go(func() { c.carry(ctx, m) })
	return proto.CloneOf(m.status), nil
}

// carry is the life of a replica.
func (c *computer) carry(ctx context.Context, m *made) {
	for {
		c.mu.Lock()
		changed, hold := c.changed, c.hold
		c.mu.Unlock()
		if !hold {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.end(m, computev1.Run_STATE_CANCELED, "cancelled")
			return
		}
	}
	c.mu.Lock()
	die := c.die
	c.mu.Unlock()
	if die != nil {
		if message := die(m.req); message != "" {
			c.end(m, computev1.Run_STATE_FAILED, message)
			return
		}
	}
	c.set(func() { m.status.State = computev1.Run_STATE_RUNNING })
	var workers sync.WaitGroup
	for n := range int(m.req.GetServe().GetWorkers()) {
		workers.Go(func() { c.work(ctx, m, n) })
	}
	workers.Wait()
	c.end(m, computev1.Run_STATE_CANCELED, "cancelled")
}

func (c *computer) end(m *made, state computev1.Run_State, message string) {
	c.set(func() {
		if m.status.GetState() < computev1.Run_STATE_COMPLETED {
			m.status.State, m.status.Message = state, message
		}
	})
}

// work keeps one worker connected.
func (c *computer) work(ctx context.Context, m *made, n int) {
	id, err := svid.RunID(c.l.td, m.req.GetWorkspaceUid(), m.status.GetRunUid())
	if err != nil {
		panic(err)
	}
	key, err := svid.NewKey()
	if err != nil {
		panic(err)
	}
	chain, err := c.l.ca.Sign(key.Public(), id, time.Hour, time.Now())
	if err != nil {
		panic(err)
	}
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{pool.Protocol}, Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}},
		InsecureSkipVerify: true, // whom the agent believes is tested where the agent is
	}}
	for ctx.Err() == nil {
		c.mu.Lock()
		at := c.listener
		if c.mute {
			at = "127.0.0.1:1"
		}
		c.mu.Unlock()
		conn, err := d.DialContext(ctx, "tcp", at)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			worker(conn, n, func() (int, string) {
				c.mu.Lock()
				answer := c.answer
				c.mu.Unlock()
				return answer(m.req)
			})
			stop()
			_ = conn.Close()
		}
		t := time.NewTimer(5 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// hooked calls before, and gives what calls after.
func (c *computer) hooked() (done func()) {
	c.mu.Lock()
	before, after := c.before, c.after
	c.mu.Unlock()
	if before != nil {
		before()
	}
	return func() {
		if after != nil {
			after()
		}
	}
}

func (c *computer) StopReplica(_ context.Context, req *computev1.StopReplicaRequest) (*emptypb.Empty, error) {
	defer c.hooked()()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopFail != nil {
		return nil, wire(c.stopFail)
	}
	if m := c.replicas[req.GetReplicaId()]; m != nil {
		m.stop()
	}
	return &emptypb.Empty{}, nil
}

// kill ends a replica as if its machine had gone.
func (c *computer) kill(run, message string) {
	c.mu.Lock()
	var m *made
	for _, x := range c.replicas {
		if x.status.GetRunUid() == run {
			m = x
		}
	}
	c.mu.Unlock()
	if m == nil {
		c.l.t.Fatalf("no replica has the run %s", run)
	}
	c.end(m, computev1.Run_STATE_LOST, message)
	m.stop()
}

func (c *computer) WatchReplicas(req *computev1.WatchReplicasRequest, stream grpc.ServerStreamingServer[computev1.ReplicaStatus]) error {
	sent := make(map[string]*computev1.ReplicaStatus)
	for {
		c.mu.Lock()
		changed := c.changed
		var news []*computev1.ReplicaStatus
		live := false
		for _, id := range req.GetReplicaIds() {
			s := &computev1.ReplicaStatus{ReplicaId: id}
			if m := c.replicas[id]; m != nil && m.req.GetWorkspaceUid() == req.GetWorkspaceUid() {
				s = proto.CloneOf(m.status)
				live = live || s.GetState() < computev1.Run_STATE_COMPLETED
			}
			if !proto.Equal(s, sent[id]) {
				sent[id] = s
				news = append(news, s)
			}
		}
		c.mu.Unlock()
		for _, s := range news {
			if err := stream.Send(s); err != nil {
				return err
			}
		}
		if !live {
			return nil
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (c *computer) ReadReplicaLogs(req *computev1.ReadReplicaLogsRequest, stream grpc.ServerStreamingServer[computev1.LogChunk]) error {
	c.mu.Lock()
	m := c.replicas[req.GetReplicaId()]
	c.mu.Unlock()
	if m == nil {
		return wire(fault.New(codes.NotFound, 0, "no such replica"))
	}
	text := []byte("log of " + m.status.GetRunUid() + "\n")
	return stream.Send(&computev1.LogChunk{Offset: req.GetOffset(), Data: text[req.GetOffset():]})
}

// running are the replicas that have not ended, in the order of their start.
func (c *computer) running() (out []*computev1.StartReplicaRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range c.order {
		if m := c.replicas[id]; m.status.GetState() < computev1.Run_STATE_COMPLETED {
			out = append(out, m.req)
		}
	}
	return out
}

// started are all that were ever started.
func (c *computer) started() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.order)
}
