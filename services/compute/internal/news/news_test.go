package news

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// topics are signals of this process alone, with room for one that was not received yet.
type topics struct {
	mu sync.Mutex
	m  map[string]map[chan struct{}]bool
}

func (s *topics) Signals(topic string) (<-chan struct{}, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := make(chan struct{}, 1)
	if s.m[topic] == nil {
		s.m[topic] = make(map[chan struct{}]bool)
	}
	s.m[topic][c] = true
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.m[topic], c)
	}
}

func (s *topics) changed(topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.m[topic] {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Who waits looks again after every change that comes after he began to look, and has gone when he is done.
func TestEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &topics{m: make(map[string]map[chan struct{}]bool)}
		looks := 0
		ended := make(chan error, 2)
		go func() {
			ended <- Each(t.Context(), s, "run", func() (bool, error) {
				looks++
				if looks == 1 {
					s.changed("run") // between the look and the wait
				}
				return looks == 3, nil
			})
		}()
		synctest.Wait()
		if looks != 2 {
			t.Errorf("%d looks after one change", looks)
		}
		s.changed("another")
		s.changed("run")
		if err := <-ended; err != nil || looks != 3 {
			t.Errorf("%v after %d looks", err, looks)
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range 2 {
			go func() { ended <- Each(ctx, s, "run", func() (bool, error) { return false, nil }) }()
		}
		synctest.Wait()
		cancel()
		for range 2 {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("given up with %v", err)
			}
		}
		if len(s.m["run"]) != 0 {
			t.Errorf("%d still wait", len(s.m["run"]))
		}
	})
}
