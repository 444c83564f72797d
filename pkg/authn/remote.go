package authn

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// KeySet finds the public keys of the issuer.
type KeySet interface {
	// Key returns the key with this id. An id that is not there is ErrUnknownKey; any other error means that the keys
	// could not be reached, which says nothing about the token.
	Key(ctx context.Context, kid string) (*ecdsa.PublicKey, error)
	// Generation changes whenever a key was added, withdrawn or replaced. It takes no lock and no time.
	Generation() uint64
}

// ErrUnknownKey says that the issuer has no key with that id.
const ErrUnknownKey = cause("the signing key is not known")

// StaticKeys is a KeySet that never changes.
type StaticKeys map[string]*ecdsa.PublicKey

// Key implements KeySet.
func (s StaticKeys) Key(_ context.Context, kid string) (*ecdsa.PublicKey, error) {
	if k, ok := s[kid]; ok && k != nil {
		return k, nil
	}
	return nil, ErrUnknownKey
}

// Generation implements KeySet.
func (StaticKeys) Generation() uint64 { return 0 }

// RemoteKeysConfig says where keys come from. Fetch is required.
type RemoteKeysConfig struct {
	// Fetch returns the issuer's key set as ParseJWKS reads it. It gets a context with Timeout.
	Fetch func(ctx context.Context) ([]byte, error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// MinInterval is the least time between two fetches, whoever asks for them. 0 means 5 s.
	MinInterval time.Duration
	// MaxAge is the age at which keys are fetched again although they are known, so that a withdrawn one is noticed.
	// 0 means 5 min. While that fails the old keys are kept: identity may be away without stopping the rest.
	MaxAge time.Duration
	// Timeout bounds one fetch. 0 means 5 s.
	Timeout time.Duration
	// Epoch, if set, is another number after each change of the issuer's keys that this process has heard of: what was fetched before is
	// old, and the next fetch does not wait for MinInterval. It takes no lock and no time.
	Epoch func() uint64
}

// RemoteKeys is a KeySet that keeps the issuer's published keys. It holds no goroutine while it is not asked.
type RemoteKeys struct {
	cfg   RemoteKeysConfig
	state atomic.Pointer[keyState]

	mu      sync.Mutex
	flight  chan struct{} // closed when the fetch under way has ended; nil if there is none
	started time.Time     // of the last fetch
	at      uint64        // Epoch before the last fetch
	failed  error         // why the last fetch failed, or nil
}

type keyState struct {
	keys       map[string]*ecdsa.PublicKey
	fetched    time.Time
	epoch      uint64 // Config.Epoch before they were fetched
	generation uint64
}

// NewRemoteKeys makes a key set that is empty until it is asked.
func NewRemoteKeys(cfg RemoteKeysConfig) (*RemoteKeys, error) {
	if cfg.Fetch == nil {
		return nil, fmt.Errorf("authn: remote keys need a Fetch")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	for d, standard := range map[*time.Duration]time.Duration{
		&cfg.MinInterval: 5 * time.Second, &cfg.MaxAge: 5 * time.Minute, &cfg.Timeout: 5 * time.Second,
	} {
		if *d < 0 {
			return nil, fmt.Errorf("authn: remote keys: a duration is negative")
		}
		if *d == 0 {
			*d = standard
		}
	}
	if cfg.Epoch == nil {
		cfg.Epoch = func() uint64 { return 0 }
	}
	r := &RemoteKeys{cfg: cfg}
	r.state.Store(&keyState{})
	return r, nil
}

// Generation implements KeySet.
func (r *RemoteKeys) Generation() uint64 { return r.state.Load().generation }

// Key implements KeySet. An id that is not known is worth one fetch, at most every MinInterval for all callers.
func (r *RemoteKeys) Key(ctx context.Context, kid string) (*ecdsa.PublicKey, error) {
	if !validKeyID(kid) {
		return nil, ErrUnknownKey
	}
	for again := false; ; again = true {
		s := r.state.Load()
		pub, known := s.keys[kid]
		epoch := r.cfg.Epoch()
		old := r.cfg.Now().Sub(s.fetched) >= r.cfg.MaxAge || s.epoch != epoch
		if known && !old {
			return pub, nil
		}
		done, failed := r.refresh(ctx)
		if known && (done == nil || failed != nil) {
			return pub, nil //nolint:nilerr // too early to ask again, or the issuer is away: what is known still counts
		}
		if done != nil {
			select {
			case <-done:
			case <-ctx.Done():
				if known {
					return pub, nil
				}
				return nil, ctx.Err()
			}
			r.mu.Lock()
			failed = r.failed
			r.mu.Unlock()
		}
		s = r.state.Load()
		if pub, ok := s.keys[kid]; ok {
			return pub, nil
		}
		if failed != nil {
			return nil, failed
		}
		// A fetch that had begun before the keys changed knows nothing of the change.
		if again || s.epoch == epoch {
			return nil, ErrUnknownKey
		}
	}
}

// refresh joins the fetch under way or starts one, and says how the one before ended. The channel is nil if it is too
// early for another.
func (r *RemoteKeys) refresh(ctx context.Context) (<-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flight != nil {
		return r.flight, r.failed
	}
	now, epoch := r.cfg.Now(), r.cfg.Epoch()
	if since := now.Sub(r.started); !r.started.IsZero() && since >= 0 && since < r.cfg.MinInterval && epoch == r.at {
		return nil, r.failed
	}
	done := make(chan struct{})
	r.flight, r.started, r.at = done, now, epoch
	// The fetch serves all who wait, so it does not end with the call that began it.
	go r.fetch(context.WithoutCancel(ctx), now, epoch, done)
	return done, r.failed
}

func (r *RemoteKeys) fetch(ctx context.Context, now time.Time, epoch uint64, done chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	var keys map[string]*ecdsa.PublicKey
	data, err := r.cfg.Fetch(ctx)
	if err == nil {
		keys, err = ParseJWKS(data)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed = err; err == nil {
		old := r.state.Load()
		next := &keyState{keys: keys, fetched: now, epoch: epoch, generation: old.generation}
		if !maps.EqualFunc(keys, old.keys, func(a, b *ecdsa.PublicKey) bool { return a.Equal(b) }) {
			next.generation++
		}
		r.state.Store(next)
	} else {
		r.failed = fmt.Errorf("fetch signing keys: %w", err)
	}
	r.flight = nil
	close(done)
}
