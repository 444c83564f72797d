package workspace

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

const (
	// slowSubscriber is how long one message may take to leave. Who is slower is cut, and starts over with the full state.
	slowSubscriber = 5 * time.Second
	// sentWithin is how long a change waits for the connected streams to have been sent it.
	sentWithin = 2 * time.Second
)

// feed tells of changes of the authorization state: the service's own engine at once, the open streams by waking them. What is told
// is read from the database, so the order is that of the commits, and a change that another replica made is told too.
type feed struct {
	s *Service

	applying sync.Mutex // one apply at a time
	primed   bool       // the engine has a full state up to seq; guarded by applying
	seq      uint64

	mu      sync.Mutex
	woken   chan struct{}          // closed and replaced by wake
	moved   chan struct{}          // closed and replaced when a stream was sent something, or ended
	sent    map[string]*subscriber // the open streams, by name
	applied uint64                 // up to where the service's own engine is
	closed  chan struct{}
	once    sync.Once

	progress *leader.Progress // how far the instances and the streams that are connected to them are, where there is no fence
	owner    *fence.Owner     // nil where there is no fence
}

// subscriber is an open stream. seq is up to where it was sent changes and, once it has acknowledged any, up to where it has applied
// them. Guarded by feed.mu.
type subscriber struct {
	name, peer   string
	seq          uint64
	acknowledges bool
}

func newFeed(s *Service) *feed {
	f := &feed{s: s, woken: make(chan struct{}), moved: make(chan struct{}), sent: make(map[string]*subscriber), closed: make(chan struct{}), progress: s.cfg.Leader.Progress("authorization")}
	if s.cfg.Fence != nil {
		f.owner = fence.NewOwner(s.cfg.Fence, authz.Workspace)
	}
	return f
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

// note remembers how far a stream is; ended takes it out.
func (f *feed) note(sub *subscriber, seq uint64, ended bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ended {
		delete(f.sent, sub.name)
	} else if f.sent[sub.name] = sub; !sub.acknowledges {
		sub.seq = seq
	}
	f.move()
}

// acknowledged remembers what the receiver of a stream says that it has applied. Only the peer at the other end of it is believed.
func (f *feed) acknowledged(name, peer string, seq uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	sub, ok := f.sent[name]
	if !ok || sub.peer != peer {
		return fault.NotFound("there is no such stream of yours; watch again")
	}
	if !sub.acknowledges {
		sub.acknowledges, sub.seq = true, 0
	}
	sub.seq = max(sub.seq, seq)
	f.move()
	return nil
}

// move tells who waits that a stream got further; the caller holds mu.
func (f *feed) move() {
	close(f.moved)
	f.moved = make(chan struct{})
	f.reached()
}

// reached tells the other instances how far this one is: its own engine, and every stream that is connected to it; the caller holds mu.
func (f *feed) reached() {
	least := f.applied
	for _, sub := range f.sent {
		least = min(least, sub.seq)
	}
	f.progress.Reached(least)
}

// told waits until the change is in force everywhere, or sentWithin has passed: after that a call may still be decided with the state
// before. Without a fence it waits for the streams that are connected, to this instance or to another one that is alive.
func (f *feed) told(ctx context.Context, seq uint64) {
	if f.owner != nil {
		if err := f.owner.Soon(ctx, seq, sentWithin); err != nil {
			f.s.cfg.Logger.WarnContext(ctx, "a change of the tree stands, and not every instance is known to decide with it yet", "error", err)
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sentWithin)
	defer cancel()
	f.toldHere(ctx, seq)
	if err := f.progress.Await(ctx, seq); err != nil {
		f.s.cfg.Logger.WarnContext(ctx, "a change of permissions stands, and not every instance is known to decide with it yet", "error", err)
	}
}

// toldHere is told for the streams of this instance.
func (f *feed) toldHere(ctx context.Context, seq uint64) {
	f.mu.Lock()
	waiting := make([]*subscriber, 0, len(f.sent))
	for _, sub := range f.sent {
		waiting = append(waiting, sub)
	}
	f.mu.Unlock()
	for {
		f.mu.Lock()
		behind := false
		for _, sub := range waiting {
			if open := f.sent[sub.name] == sub; open && sub.seq < seq {
				behind = true
			}
		}
		moved := f.moved
		f.mu.Unlock()
		if !behind {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// read gives what follows on seq: changes, or the full state where primed is false or the changes are gone. Nothing to tell is an
// empty answer.
func (f *feed) read(ctx context.Context, primed bool, seq uint64) (out []*workspacev1.WatchAuthorizationResponse, err error) {
	err = f.s.store.Read(ctx, func(ctx context.Context, t *store.Tx) error {
		ok := false
		if primed {
			if out, ok, err = t.Changes(ctx, seq); err != nil {
				return err
			}
		}
		if !ok {
			out, err = t.FullState(ctx, authz.BuiltinRoles())
		}
		return err
	})
	return out, err
}

// apply brings the service's own engine to what is committed, and tells it that the state is fresh.
func (f *feed) apply(ctx context.Context) error {
	f.applying.Lock()
	defer f.applying.Unlock()
	for {
		batch, err := f.read(ctx, f.primed, f.seq)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			batch = []*workspacev1.WatchAuthorizationResponse{{Seq: f.seq, Heartbeat: true}}
		}
		last := batch[0].GetReset_() || batch[0].GetHeartbeat()
		for _, m := range batch {
			if err := f.s.cfg.Engine.ApplyAuthorization(m); err != nil {
				f.primed = false
				return fault.Internal(err, "a change of the authorization state could not be applied")
			}
			f.seq = m.GetSeq()
		}
		f.primed = true
		f.mu.Lock()
		f.applied = f.seq
		f.reached()
		f.mu.Unlock()
		if last {
			return nil
		}
	}
}

// change runs a change of the tree. When it returns nil, this service decides with it, and every other one does too or two seconds have
// passed.
func (s *Service) change(ctx context.Context, fn func(ctx context.Context, t *store.Tx) error) error {
	seq, err := s.quietly(ctx, fn)
	if err != nil || seq == 0 {
		return err
	}
	s.feed.told(ctx, seq)
	return nil
}

// quietly is change for what nobody waits for.
func (s *Service) quietly(ctx context.Context, fn func(ctx context.Context, t *store.Tx) error) (seq uint64, err error) {
	seq, err = s.store.Change(ctx, fn)
	// Also after an error: of a commit whose result was lost, the database knows better.
	s.feed.wake()
	if err != nil || seq == 0 {
		return 0, err
	}
	// The change stands; whoever asked may be gone.
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return seq, s.feed.apply(short)
}

// grant is change for what a role assignment gives or takes: when it returns nil, nothing takes effect any more, in any service, that was
// decided before it. CHANGE_PENDING says that the change stands and that this is not known.
func (s *Service) grant(ctx context.Context, fn func(ctx context.Context, t *store.Tx) error) error {
	seq, err := s.quietly(ctx, fn)
	switch code := fault.Code(err); {
	case err == nil && s.feed.owner == nil:
		if seq > 0 {
			s.feed.told(ctx, seq)
		}
		return nil
	case s.feed.owner == nil || err != nil && code != codes.NotFound && code != codes.AlreadyExists && code != codes.FailedPrecondition:
		return err
	}
	// What is found to be done may be pending still: who repeats it waits too.
	if e := s.feed.owner.Everywhere(ctx, s.feed.at()); e != nil {
		return e
	}
	return err
}

// at is the number up to which this instance has applied.
func (f *feed) at() uint64 {
	f.applying.Lock()
	defer f.applying.Unlock()
	return f.seq
}

// settle brings the fence's log and the database together at the start.
func (f *feed) settle(ctx context.Context) {
	if f.owner == nil {
		return
	}
	err := f.owner.Settle(ctx, f.at, func(ctx context.Context, to uint64) error {
		f.s.cfg.Logger.WarnContext(ctx, "the database is older than what the installation knows: its changes are counted on from there", "number", to)
		return f.s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			if _, err := tx.ExecContext(ctx, "UPDATE authorization_head SET seq = $1 WHERE id = 1 AND seq < $1", int64(to)); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "DELETE FROM authorization_changes"); err != nil {
				return err
			}
			return tx.Signal(ctx, store.Changed)
		})
	})
	if err != nil && ctx.Err() == nil {
		f.s.cfg.Logger.ErrorContext(ctx, "the fence does not know how far the authorization state is", "error", err)
	}
}

// WatchAuthorization implements AuthorizationStateService.
func (s *Service) WatchAuthorization(_ *workspacev1.WatchAuthorizationRequest, stream grpc.ServerStreamingServer[workspacev1.WatchAuthorizationResponse]) error {
	ctx := stream.Context()
	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	sub := &subscriber{name: resource.NewUID("str"), peer: rpc.From(ctx).Peer}
	s.feed.note(sub, 0, false)
	defer s.feed.note(sub, 0, true)
	var seq uint64
	for primed, silent := false, false; ; {
		woken := s.feed.next() // before reading: a commit after the read wakes us
		batch, err := s.feed.read(ctx, primed, seq)
		if err != nil {
			return err
		}
		if len(batch) == 0 && silent {
			batch = []*workspacev1.WatchAuthorizationResponse{{Seq: seq, Heartbeat: true}}
		}
		for _, m := range batch {
			m.Stream = sub.name
			if err := send(ctx, stream, m); err != nil {
				return err
			}
			seq = m.GetSeq()
		}
		if len(batch) > 0 {
			s.feed.note(sub, seq, false)
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
			return fault.Unavailable("workspace is stopping; watch again")
		}
	}
}

// AcknowledgeAuthorization implements AuthorizationStateService.
func (s *Service) AcknowledgeAuthorization(ctx context.Context, req *workspacev1.AcknowledgeAuthorizationRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.feed.acknowledged(req.GetStream(), rpc.From(ctx).Peer, req.GetSeq())
}

// send gives up on a subscriber that does not read. The message that hangs ends with the stream.
func send(ctx context.Context, stream grpc.ServerStreamingServer[workspacev1.WatchAuthorizationResponse], m *workspacev1.WatchAuthorizationResponse) error {
	sent := make(chan error, 1)
	go func() { sent <- stream.Send(m) }()
	slow := time.NewTimer(slowSubscriber)
	defer slow.Stop()
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-slow.C:
		return fault.New(codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED, "the authorization stream was not read for %v; watch again from the start", slowSubscriber)
	}
}
