package authn

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"sync"
	"sync/atomic"
)

const cacheShards = 32

type digest = [sha256.Size]byte

// entry is a token whose signature and form were found good. Whether it may be used now is asked each time.
type entry struct {
	verified  *Verified
	notBefore int64 // s; of iat and nbf the later
	expiry    int64 // s
	kid       string
	key       *ecdsa.PublicKey
	// stamp tells under which state the entry was last found unrevoked and its key present; nil if never.
	stamp atomic.Pointer[stamp]
}

type stamp struct{ epoch, generation uint64 }

// cache is a bounded map. Only tokens that the issuer signed get in, so strangers cannot fill it.
type cache struct {
	perShard int
	shards   [cacheShards]struct {
		mu sync.RWMutex
		m  map[digest]*entry
		_  [32]byte // keep neighbours off one cache line
	}
}

func newCache(size int) *cache {
	c := &cache{perShard: max(1, size/cacheShards)}
	for i := range c.shards {
		c.shards[i].m = make(map[digest]*entry)
	}
	return c
}

func (c *cache) get(d *digest) *entry {
	s := &c.shards[d[0]%cacheShards]
	s.mu.RLock()
	e := s.m[*d]
	s.mu.RUnlock()
	return e
}

// put adds an entry, in place of the one among a few that expires first if the shard is full.
func (c *cache) put(d *digest, e *entry) {
	s := &c.shards[d[0]%cacheShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, have := s.m[*d]; !have && len(s.m) >= c.perShard {
		var victim digest
		var first int64
		n := 0
		for k, v := range s.m {
			if n == 0 || v.expiry < first {
				victim, first = k, v.expiry
			}
			if n++; n == 8 {
				break
			}
		}
		delete(s.m, victim)
	}
	s.m[*d] = e
}

func (c *cache) drop(d *digest) {
	s := &c.shards[d[0]%cacheShards]
	s.mu.Lock()
	delete(s.m, *d)
	s.mu.Unlock()
}

func (c *cache) len() (n int) {
	for i := range c.shards {
		c.shards[i].mu.RLock()
		n += len(c.shards[i].m)
		c.shards[i].mu.RUnlock()
	}
	return n
}
