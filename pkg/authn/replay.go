package authn

import (
	"crypto/sha256"
	"sync"
)

const replayShards = 32

// replayCache remembers the proofs that were used for as long as they could be used again. It keeps two generations:
// when the elder cannot hold anything that still matters it is dropped whole, so nothing is ever scanned.
type replayCache struct {
	perShard int
	leeway   int64 // s; a proof is good from iat-leeway
	span     int64 // s; for this long, so that one used now cannot be used after now+span
	shards   [replayShards]replayShard
}

type replayShard struct {
	mu     sync.Mutex
	turned int64 // s; when young became the one that is written
	young  map[replayKey]struct{}
	elder  map[replayKey]struct{}
	floor  int64 // s; proofs issued up to here may have been forgotten. Only a clock that jumped back brings them
}

// replayKey is a hash of key and jti, so that no caller can use up the ids of another.
type replayKey [16]byte

type replayResult int

const (
	replayForgotten replayResult = iota
	replayFirst
	replayAgain
	replayNoRoom
)

func newReplayCache(entries int, window, leeway, now int64) *replayCache {
	c := &replayCache{perShard: max(1, entries/replayShards), leeway: leeway, span: window + leeway}
	for i := range c.shards {
		c.shards[i].turned = now
		c.shards[i].young = make(map[replayKey]struct{})
	}
	return c
}

// use records a proof. Keys are spread over the shards by their thumbprint: one that floods fills its own shard only.
func (c *replayCache) use(jkt, id string, iat, now int64) replayResult {
	sum := sha256.Sum256([]byte(jkt + "\x00" + id)) // a thumbprint holds no NUL
	key := replayKey(sum[:16])
	home := sha256.Sum256([]byte(jkt))
	s := &c.shards[home[0]%replayShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if now-s.turned > c.span {
		// All of elder was used up to s.turned, more than a span ago: those proofs are too old to pass the window.
		s.floor = s.turned + c.leeway
		if now-s.turned > 2*c.span { // and so are those in young, used up to s.turned+c.span
			s.floor += c.span
			s.young = nil
		}
		s.elder, s.young, s.turned = s.young, make(map[replayKey]struct{}), now
	}
	if iat <= s.floor {
		return replayForgotten
	}
	if _, ok := s.young[key]; ok {
		return replayAgain
	}
	if _, ok := s.elder[key]; ok {
		return replayAgain
	}
	if len(s.young)+len(s.elder) >= c.perShard {
		return replayNoRoom
	}
	s.young[key] = struct{}{}
	return replayFirst
}
