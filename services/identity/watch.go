package identity

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
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

	slow     time.Duration    // slowSubscriber
	progress *leader.Progress // how far the instances are, where there is no fence
	owner    *fence.Owner     // nil where there is no fence
}

func newFeed(s *Service) *feed {
	f := &feed{s: s, woken: make(chan struct{}), closed: make(chan struct{}), slow: slowSubscriber, progress: s.cfg.Leader.Progress("security")}
	if s.cfg.Fence != nil {
		f.owner = fence.NewOwner(s.cfg.Fence, authz.Identity)
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
		// Before it says how far it is: the keys are part of what it honours.
		if slices.ContainsFunc(batch, func(m *identityv1.WatchSecurityResponse) bool { return m.GetKeysChanged() || m.GetReset_() }) {
			if err := f.s.openKeys(ctx); err != nil {
				f.primed = false // once more, from the full state
				return err
			}
		}
		f.progress.Reached(f.seq)
		if fresh {
			return nil
		}
	}
}

// heardWithin is how long a change waits for the other instances.
const heardWithin = 2 * time.Second

// at is the number up to which this instance has applied.
func (f *feed) at() uint64 {
	f.applying.Lock()
	defer f.applying.Unlock()
	return f.seq
}

// everywhere waits until what this instance honours is in force everywhere; the error is CHANGE_PENDING. Without a fence it waits for the
// other instances for heardWithin and promises nothing.
func (f *feed) everywhere(ctx context.Context) error {
	seq := f.at()
	if f.owner != nil {
		return f.owner.Everywhere(ctx, seq)
	}
	short, cancel := context.WithTimeout(ctx, heardWithin)
	defer cancel()
	if err := f.progress.Await(short, seq); err != nil {
		f.s.cfg.Logger.WarnContext(ctx, "a change of the security state stands, and not every instance is known to honour it yet", "error", err)
	}
	return nil
}

// settle brings the fence's log and the database together at the start.
func (f *feed) settle(ctx context.Context) {
	if f.owner == nil {
		return
	}
	err := f.owner.Settle(ctx, f.at, func(ctx context.Context, to uint64) error {
		f.s.cfg.Logger.WarnContext(ctx, "the database is older than what the installation knows: its changes are counted on from there", "number", to)
		return f.s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			if _, err := tx.ExecContext(ctx, "UPDATE installation SET security_seq = $1 WHERE id = 1 AND security_seq < $1", int64(to)); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "DELETE FROM security_changes"); err != nil {
				return err
			}
			return tx.Signal(ctx, store.Changed)
		})
	})
	if err != nil && ctx.Err() == nil {
		f.s.cfg.Logger.ErrorContext(ctx, "the fence does not know how far the security state is", "error", err)
	}
}

// give applies messages in order.
func (f *feed) give(batch []*identityv1.WatchSecurityResponse) error {
	for _, m := range batch {
		if err := f.s.cfg.Engine.ApplySecurity(m); err != nil {
			return err
		}
		f.s.clients.Apply(m)
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
