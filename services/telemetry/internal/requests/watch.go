package requests

import (
	"context"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/requests/internal/store/db"
)

const (
	// watchBehind is how many chunks a watch may be behind.
	watchBehind = 200
	// watchPoll is how often a watch looks without being woken, for what another instance has stored.
	watchPoll = 2 * time.Second
)

// Watch follows the requests to an endpoint that are stored after it began. It is not safe for concurrent use.
type Watch struct {
	s    *Store
	e    Endpoint
	wake <-chan struct{}
	end  func()
	rev  int64 // everything up to here was given
}

// Watch begins. It must be closed.
func (s *Store) Watch(ctx context.Context, e Endpoint) (*Watch, error) {
	w := &Watch{s: s, e: e}
	w.wake, w.end = s.subscribe(e.UID)
	head, err := db.New(s.cfg.DB.Reader()).GetHead(ctx)
	if err != nil {
		w.end()
		return nil, sqldb.Fault(err)
	}
	w.rev = head.Rev
	return w, nil
}

// Close ends the watch.
func (w *Watch) Close() { w.end() }

// Next gives the requests that were stored since the last call, at least one. It waits until there are some, or ctx ends, or stop is closed.
//
// Errors: LIMIT_EXCEEDED for a watch that is too far behind.
func (w *Watch) Next(ctx context.Context, stop <-chan struct{}) ([]*Request, error) {
	for {
		requests, err := w.collect(ctx)
		if err != nil || len(requests) > 0 {
			return requests, err
		}
		timer := time.NewTimer(watchPoll)
		select {
		case <-w.wake:
		case <-timer.C:
		case <-ctx.Done():
			err = ctx.Err()
		case <-stop:
			err = fault.Unavailable("the service is being stopped; watch again")
		}
		timer.Stop()
		if err != nil {
			return nil, err
		}
	}
}

// collect reads what was not given yet.
func (w *Watch) collect(ctx context.Context) (out []*Request, err error) {
	// The key is asked for each time, so that a key that was disabled is not used from here.
	key, err := w.s.cfg.Keys.Key(ctx, w.e.WorkspaceUID)
	if err != nil {
		return nil, err
	}
	head := w.rev
	err = w.s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		now, err := q.GetHead(ctx)
		if err != nil {
			return err
		}
		head = now.Rev
		rows, err := q.ChangedChunks(ctx, db.ChangedChunksParams{EndpointUID: w.e.UID, WorkspaceUID: w.e.WorkspaceUID, AfterRev: w.rev, Most: watchBehind + 1})
		if err != nil {
			return err
		}
		if len(rows) > watchBehind {
			return fault.ResourceExhausted("requests came faster than they were read, so the watch was ended; list what was missed, and watch again")
		}
		for _, row := range rows {
			c := &chunk{Endpoint: w.e, minute: row.Minute, number: row.Number, rev: row.Rev, requests: row.Requests, classes: row.Classes, sealed: row.Sealed}
			plain, err := c.open(key)
			if err != nil {
				return err
			}
			entries, err := c.entries(plain)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if e.rev <= w.rev {
					continue
				}
				r, err := c.decode(e)
				if err != nil {
					return err
				}
				out = append(out, r)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	w.rev = head
	return out, nil
}

// subscribe gives a channel that has a token after each commit that touched the endpoint.
func (s *Store) subscribe(endpointUID string) (wake <-chan struct{}, end func()) {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers[endpointUID] == nil {
		s.watchers[endpointUID] = make(map[chan struct{}]struct{})
	}
	s.watchers[endpointUID][ch] = struct{}{}
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers[endpointUID], ch)
		if len(s.watchers[endpointUID]) == 0 {
			delete(s.watchers, endpointUID)
		}
	}
}

// changed wakes who watches the endpoint.
func (s *Store) changed(endpointUID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.watchers[endpointUID] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
