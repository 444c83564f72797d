package telemetry

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store"
)

const (
	// feedBuffer is how many events wait for one reader before he is cut off.
	feedBuffer = 512
	// feedBatch is how many events are read at once.
	feedBatch = 200
	// feedPoll is how often the log is looked at without being woken.
	feedPoll = time.Second
)

// feed hands new events to the watches. One goroutine reads the log, once for all of them.
type feed struct {
	store *store.Store
	log   *slog.Logger
	wake  chan struct{}

	mu   sync.Mutex
	subs map[*subscriber]struct{}
	last int64 // position up to which events were handed out; kept only while there are watches
}

// subscriber is one watch. events is closed when it could not keep up.
type subscriber struct {
	scope  store.Scope
	after  int64
	events chan *store.Event
}

func newFeed(s *store.Store, log *slog.Logger) *feed {
	return &feed{store: s, log: log, wake: make(chan struct{}, 1), subs: make(map[*subscriber]struct{})}
}

// notify says that events were stored.
func (f *feed) notify() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// subscribe begins a watch of what is stored from now on.
func (f *feed) subscribe(ctx context.Context, scope store.Scope) (*subscriber, error) {
	newest, err := f.store.Newest(ctx)
	if err != nil {
		return nil, err
	}
	sub := &subscriber{scope: scope, after: newest, events: make(chan *store.Event, feedBuffer)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.subs) == 0 {
		f.last = max(f.last, newest)
	}
	f.subs[sub] = struct{}{}
	return sub, nil
}

func (f *feed) unsubscribe(sub *subscriber) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.subs, sub)
}

// run hands out until ctx ends.
func (f *feed) run(ctx context.Context) {
	tick := time.NewTicker(feedPoll)
	defer tick.Stop()
	stored, stop := f.store.Signals()
	defer stop()
	for {
		for f.step(ctx) && ctx.Err() == nil {
		}
		select {
		case <-f.wake:
		case <-stored:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// step hands out one batch, and reports whether there may be more.
func (f *feed) step(ctx context.Context) bool {
	f.mu.Lock()
	last, watched := f.last, len(f.subs) > 0
	f.mu.Unlock()
	if !watched {
		return false
	}
	arrived, err := f.store.After(ctx, last, feedBatch)
	if err != nil {
		if ctx.Err() == nil {
			f.log.WarnContext(ctx, "the activity log could not be read for those who watch it; it is tried again", "error", err)
		}
		return false
	}
	if len(arrived) == 0 {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range arrived {
		if a.Err != nil {
			f.log.ErrorContext(ctx, "an event of the activity log does not open; those who watch do not get it", "error", a.Err, "position", a.Position)
			continue
		}
		for sub := range f.subs {
			f.offer(sub, a)
		}
	}
	f.last = max(f.last, arrived[len(arrived)-1].Position)
	return true
}

// offer gives an event to one watch, if it belongs there, and cuts it off if it is full. The caller holds mu.
func (f *feed) offer(sub *subscriber, a store.Arrived) {
	if a.Position <= sub.after || !sub.scope.Holds(a.Event) {
		return
	}
	select {
	case sub.events <- a.Event:
	default:
		delete(f.subs, sub)
		close(sub.events)
	}
}
