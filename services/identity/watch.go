package identity

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// slowSubscriber is how long one message may take to leave. Who is slower than this is cut, and starts over with the full state: a
// subscriber that does not read must not be taken for one that knows.
const slowSubscriber = 5 * time.Second

const slowMessage = "a subscriber of the security stream does not read, and is cut"

// feed tells of changes of the security state: identity's own engine at once, the open streams by waking them. What is told is always
// read from the database, so the order is that of the commits, and a change that another replica made is told too.
type feed struct {
	s *Service

	applying sync.Mutex // one apply at a time
	primed   bool       // the engine has a full state up to seq; guarded by applying
	seq      uint64

	mu     sync.Mutex
	woken  chan struct{} // closed and replaced by wake
	closed chan struct{}
	once   sync.Once

	slow time.Duration // slowSubscriber
}

func newFeed(s *Service) *feed {
	return &feed{s: s, woken: make(chan struct{}), closed: make(chan struct{}), slow: slowSubscriber}
}

func (f *feed) close() { f.once.Do(func() { close(f.closed) }) }

// wake sends the open streams to the database.
func (f *feed) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.woken)
	f.woken = make(chan struct{})
}

func (f *feed) next() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.woken
}

// read gives what follows on seq: changes, or the full state where primed is false or the changes are gone. Nothing to tell is an
// empty answer.
func (f *feed) read(ctx context.Context, primed bool, seq uint64) (out []*identityv1.WatchSecurityResponse, err error) {
	err = f.s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		ok := false
		if primed {
			if out, ok, err = f.s.store.Changes(ctx, tx, seq); err != nil {
				return err
			}
		}
		if !ok {
			out, err = f.s.store.FullState(ctx, tx, f.s.cfg.Now())
		}
		return err
	})
	return out, err
}

// apply brings identity's own engine to what is committed, and tells it that the state is fresh.
func (f *feed) apply(ctx context.Context) error {
	f.applying.Lock()
	defer f.applying.Unlock()
	for started := false; ; {
		batch, err := f.read(ctx, f.primed, f.seq)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			batch = []*identityv1.WatchSecurityResponse{{Seq: f.seq, Heartbeat: true}}
		}
		fresh := batch[0].GetReset_() || batch[0].GetHeartbeat()
		err = f.give(batch)
		if f.primed = err == nil; err != nil {
			if started {
				return fault.Internal(err, "a change of the security state could not be applied")
			}
			started = true // once over, from the full state
			continue
		}
		if fresh {
			return nil
		}
	}
}

// give applies messages in order.
func (f *feed) give(batch []*identityv1.WatchSecurityResponse) error {
	for _, m := range batch {
		if err := f.s.cfg.Engine.ApplySecurity(m); err != nil {
			return err
		}
		f.seq = m.GetSeq()
	}
	return nil
}

// WatchSecurity implements TokenService.
func (s *Service) WatchSecurity(_ *identityv1.WatchSecurityRequest, stream grpc.ServerStreamingServer[identityv1.WatchSecurityResponse]) error {
	ctx := stream.Context()
	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	var seq uint64
	for primed, silent := false, false; ; {
		woken := s.feed.next() // before reading: a commit after the read wakes us
		batch, err := s.feed.read(ctx, primed, seq)
		if err != nil {
			return err
		}
		if len(batch) == 0 && silent {
			batch = []*identityv1.WatchSecurityResponse{{Seq: seq, Heartbeat: true}}
		}
		for _, m := range batch {
			if err := s.feed.send(ctx, stream, m); err != nil {
				return err
			}
			seq = m.GetSeq()
		}
		primed, silent = true, false
		if len(batch) > 0 && !batch[0].GetReset_() && !batch[0].GetHeartbeat() {
			continue // there may be more
		}
		select {
		case <-woken:
		case <-beat.C:
			silent = true
		case <-ctx.Done():
			return ctx.Err()
		case <-s.feed.closed:
			return fault.Unavailable("identity is stopping; watch again")
		}
	}
}

// send gives up on a subscriber that does not read. The message that hangs ends with the stream.
func (f *feed) send(ctx context.Context, stream grpc.ServerStreamingServer[identityv1.WatchSecurityResponse], m *identityv1.WatchSecurityResponse) error {
	sent := make(chan error, 1)
	go func() { sent <- stream.Send(m) }()
	slow := time.NewTimer(f.slow)
	defer slow.Stop()
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-slow.C:
		f.s.cfg.Logger.WarnContext(ctx, slowMessage, "peer", rpc.From(ctx).Peer)
		return fault.New(codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED, "the security stream was not read for %v; watch again from the start", f.slow)
	}
}
