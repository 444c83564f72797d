package edge

import (
	"hash/maphash"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rates keeps a token bucket for each key, bounded in number: when a shard is full, the buckets that are full again go. It is safe for
// concurrent use.
type Rates struct {
	each   float64
	seed   maphash.Seed
	shards [16]shard
}

type shard struct {
	mu sync.Mutex
	m  map[string]*rate.Limiter
}

// shardSize bounds the keys of one shard; with 16 shards that is 64 Ki addresses or principals.
const shardSize = 4096

// NewRates makes buckets of each a second, with twice that in a burst.
func NewRates(each float64) *Rates {
	r := &Rates{each: each, seed: maphash.MakeSeed()}
	for i := range r.shards {
		r.shards[i].m = make(map[string]*rate.Limiter)
	}
	return r
}

// Allow takes one of key's bucket; it returns how long to wait, or 0.
func (r *Rates) Allow(key string, now time.Time) time.Duration {
	return r.AllowAt(key, r.each, now)
}

// Charge takes n of key's bucket, as far as they are there.
func (r *Rates) Charge(key string, n int, now time.Time) {
	for range n {
		if r.Allow(key, now) > 0 {
			return
		}
	}
}

// Take takes n of key's bucket, if so many are there.
func (r *Rates) Take(key string, n int, now time.Time) bool {
	return r.bucket(key, r.each, now).AllowN(now, n)
}

// AllowAt is Allow for a key that has a rate of its own.
func (r *Rates) AllowAt(key string, each float64, now time.Time) time.Duration {
	if r.bucket(key, each, now).AllowN(now, 1) {
		return 0
	}
	return time.Duration(float64(time.Second) / each)
}

func (r *Rates) bucket(key string, each float64, now time.Time) *rate.Limiter {
	s := &r.shards[maphash.String(r.seed, key)%uint64(len(r.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.m[key]
	if !ok {
		if len(s.m) >= shardSize {
			s.sweep(now)
		}
		b = rate.NewLimiter(rate.Limit(each), max(1, int(2*each)))
		s.m[key] = b
	}
	return b
}

// sweep forgets the buckets that have filled up again; if none has, all of them: a flood of keys costs their rates, not memory.
func (s *shard) sweep(now time.Time) {
	for k, b := range s.m {
		if b.TokensAt(now) >= float64(b.Burst()) {
			delete(s.m, k)
		}
	}
	if len(s.m) >= shardSize {
		clear(s.m)
	}
}
