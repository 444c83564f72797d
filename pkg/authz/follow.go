package authz

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// pace is the wait before a stream is started again: first, doubled with each failure, last at most.
type pace struct{ first, last time.Duration }

// acknowledgeWithin bounds how long the sender of a stream is told that its message is applied.
const acknowledgeWithin = time.Second

var errStreamSilent = errors.New("authz: nothing was heard for too long")

// Follow keeps the engine's two streams up until ctx ends, and returns then. A stream that ends, fails, falls silent for
// MaxStale or sends what the engine refuses is started over after a wait with jitter. A nil client is not followed: the
// service whose own state it is applies that itself.
func Follow(ctx context.Context, e *Engine, workspace workspacev1.AuthorizationStateServiceClient, identity identityv1.TokenServiceClient, log *slog.Logger) {
	follow(ctx, e, workspace, identity, log, pace{50 * time.Millisecond, 2 * time.Second})
}

func follow(ctx context.Context, e *Engine, workspace workspacev1.AuthorizationStateServiceClient, identity identityv1.TokenServiceClient, log *slog.Logger, p pace) {
	var wg sync.WaitGroup
	if workspace != nil {
		wg.Go(func() {
			keep(ctx, e, p, log.With("stream", "authorization"), acknowledging(ctx, e, workspace),
				func(ctx context.Context) (grpc.ServerStreamingClient[workspacev1.WatchAuthorizationResponse], error) {
					return workspace.WatchAuthorization(ctx, &workspacev1.WatchAuthorizationRequest{})
				})
		})
	}
	if identity != nil {
		wg.Go(func() {
			keep(ctx, e, p, log.With("stream", "security"), e.ApplySecurity,
				func(ctx context.Context) (grpc.ServerStreamingClient[identityv1.WatchSecurityResponse], error) {
					return identity.WatchSecurity(ctx, &identityv1.WatchSecurityRequest{})
				})
		})
	}
	wg.Wait()
}

// acknowledgeTries is how often a message is acknowledged at most. Calls go to the instances of workspace in turn, and only the one that
// sent the message knows the stream: the others answer NOT_FOUND.
const acknowledgeTries = 8

// acknowledging applies a message and tells the sender so, who may be waiting with a change. A sender that does not hear it waits
// for a while and goes on.
func acknowledging(ctx context.Context, e *Engine, workspace workspacev1.AuthorizationStateServiceClient) func(*workspacev1.WatchAuthorizationResponse) error {
	return func(m *workspacev1.WatchAuthorizationResponse) error {
		if err := e.ApplyAuthorization(m); err != nil || m.GetHeartbeat() || m.GetStream() == "" {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, acknowledgeWithin)
		defer cancel()
		for range acknowledgeTries {
			_, err := workspace.AcknowledgeAuthorization(ctx, &workspacev1.AcknowledgeAuthorizationRequest{Stream: m.GetStream(), Seq: m.GetSeq()})
			if fault.Code(err) != codes.NotFound {
				break
			}
		}
		return nil
	}
}

// keep runs one stream over and over. A stream that lasted for longer than the longest wait makes the next wait short again.
func keep[M any](ctx context.Context, e *Engine, p pace, log *slog.Logger, apply func(*M) error, open func(context.Context) (grpc.ServerStreamingClient[M], error)) {
	apply = slowly(apply)
	for failures := 0; ; failures++ {
		began := e.cfg.Now()
		err := once(ctx, e.cfg.MaxStale, apply, open)
		if ctx.Err() != nil {
			return
		}
		if e.cfg.Now().Sub(began) > p.last {
			failures = 0
		}
		if failures == 0 || failures%30 == 0 { // not one line a second while a peer is away
			log.WarnContext(ctx, "the state stream broke and is started over", "error", err, "failures", failures+1)
		}
		wait := min(p.first<<min(failures, 16), p.last)
		wait = wait/2 + rand.N(wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// once runs a stream until it breaks.
func once[M any](ctx context.Context, silence time.Duration, apply func(*M) error, open func(context.Context) (grpc.ServerStreamingClient[M], error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(errStreamSilent) })
	defer watchdog.Stop()
	s, err := open(ctx)
	if err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		watchdog.Reset(silence)
		if err := apply(m); err != nil {
			return err
		}
	}
}
