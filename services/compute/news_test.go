package compute

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// Who waits hears of every change that comes after he began to look, and nothing is kept of him when he has gone.
func TestNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNews()
		looks := 0
		ended := make(chan error, 2)
		go func() {
			ended <- n.each(t.Context(), "run", func() (bool, error) {
				looks++
				if looks == 1 {
					n.changed("run") // between the look and the wait
				}
				return looks == 3, nil
			})
		}()
		synctest.Wait()
		if looks != 2 {
			t.Errorf("%d looks after one change", looks)
		}
		n.changed("another")
		n.changed("run")
		if err := <-ended; err != nil || looks != 3 {
			t.Errorf("%v after %d looks", err, looks)
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range 2 {
			go func() { ended <- n.each(ctx, "run", func() (bool, error) { return false, nil }) }()
		}
		synctest.Wait()
		cancel()
		for range 2 {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("given up with %v", err)
			}
		}
		if len(n.m) != 0 {
			t.Errorf("%d entries are kept", len(n.m))
		}
	})
}
