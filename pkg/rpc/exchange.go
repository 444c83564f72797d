package rpc

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// ExchangeFunc asks identity for a token for the next service (RFC 8693).
type ExchangeFunc func(ctx context.Context, subjectToken, audience string) (token string, expiry time.Time, err error)

// Exchanges keeps exchanged tokens until shortly before they end. A kept token needs no revocation of its own here: it descends
// from the caller's, so the service that it is shown to refuses it as soon as that one is revoked. Safe for concurrent use.
type Exchanges struct {
	ask    ExchangeFunc
	now    func() time.Time
	flight singleflight.Group
	mu     sync.Mutex
	kept   map[exchangeKey]exchanged
}

type exchangeKey struct {
	subject  [sha256.Size]byte
	audience string
}

type exchanged struct {
	token string
	until time.Time
}

const (
	exchangesKept  = 16384
	exchangeMargin = 30 * time.Second
)

// NewExchanges makes the cache of a service.
func NewExchanges(ask ExchangeFunc, now func() time.Time) *Exchanges {
	if now == nil {
		now = time.Now
	}
	return &Exchanges{ask: ask, now: now, kept: make(map[exchangeKey]exchanged)}
}

// Token gives a token for the audience that speaks for the bearer of subject.
func (x *Exchanges) Token(ctx context.Context, subject, audience string) (string, error) {
	key := exchangeKey{sha256.Sum256([]byte(subject)), audience}
	now := x.now()
	x.mu.Lock()
	e, ok := x.kept[key]
	x.mu.Unlock()
	if ok && now.Before(e.until) {
		return e.token, nil
	}
	// One question for many callers; each waits no longer than his own deadline.
	done := x.flight.DoChan(string(key.subject[:])+audience, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		token, expiry, err := x.ask(ctx, subject, audience)
		if err != nil {
			return nil, err
		}
		x.keep(key, exchanged{token, expiry.Add(-min(exchangeMargin, expiry.Sub(x.now())/4))})
		return token, nil
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return "", r.Err
		}
		return r.Val.(string), nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (x *Exchanges) keep(key exchangeKey, e exchanged) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.kept) >= exchangesKept {
		now := x.now()
		for k, e := range x.kept {
			if !now.Before(e.until) {
				delete(x.kept, k)
			}
		}
		if len(x.kept) >= exchangesKept {
			clear(x.kept)
		}
	}
	x.kept[key] = e
}
