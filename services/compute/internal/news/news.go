// Package news looks again whenever something that was committed, by this instance or another one, may have changed what it sees.
//
// It owns nothing: who is woken reads what is committed.
package news

import "context"

// Signals tells of changes by topic, as store.Store does.
type Signals interface {
	Signals(topic string) (wake <-chan struct{}, stop func())
}

// Each calls look now and after each change of a topic, until it is done or fails, or ctx ends.
func Each(ctx context.Context, s Signals, topic string, look func() (done bool, err error)) error {
	wake, stop := s.Signals(topic) // before the first look, so that no change is missed
	defer stop()
	for {
		if done, err := look(); done || err != nil {
			return err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
