package rpc

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// limiters keeps a token bucket for each key, bounded in number: when a shard is full, the buckets that are full again go.
type limiters struct {
	each   float64
	seed   maphash.Seed
	shards [16]limiterShard
}

type limiterShard struct {
	mu sync.Mutex
	m  map[string]*rate.Limiter
}

// limiterShardSize bounds the keys of one shard; with 16 shards that is 64 Ki addresses or principals.
const limiterShardSize = 4096

func newLimiters(each float64, _ func() time.Time) *limiters {
	l := &limiters{each: each, seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].m = make(map[string]*rate.Limiter)
	}
	return l
}

// allow takes one call of key at the default rate; it returns how long to wait, or 0.
func (l *limiters) allow(key string, now time.Time) time.Duration {
	return l.allowRate(key, l.each, now)
}

func (l *limiters) allowRate(key string, each float64, now time.Time) time.Duration {
	s := &l.shards[maphash.String(l.seed, key)%uint64(len(l.shards))]
	s.mu.Lock()
	b, ok := s.m[key]
	if !ok {
		if len(s.m) >= limiterShardSize {
			s.sweep(now)
		}
		b = rate.NewLimiter(rate.Limit(each), max(1, int(2*each)))
		s.m[key] = b
	}
	s.mu.Unlock()
	if b.AllowN(now, 1) {
		return 0
	}
	return time.Duration(float64(time.Second) / each)
}

// network is what one client can choose his addresses in: of IPv4 the address, of IPv6 the /64.
func network(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.Unmap().Is4() {
		return address
	}
	p, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return address
	}
	return p.String()
}

// sweep forgets the buckets that have filled up again; if none has, all of them: a flood of keys costs their rates, not memory.
func (s *limiterShard) sweep(now time.Time) {
	for k, b := range s.m {
		if b.TokensAt(now) >= float64(b.Burst()) {
			delete(s.m, k)
		}
	}
	if len(s.m) >= limiterShardSize {
		clear(s.m)
	}
}

// counter picks one of n.
type counter struct{ n atomic.Uint64 }

func (c *counter) every(n uint64) bool { return c.n.Add(1)%n == 0 }
