package audit

import (
	"context"
	"crypto/sha256"
	"hash"
	"maps"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// joinFor is how long further calls of one kind are joined into one event, after one that was recorded by itself.
	joinFor = time.Minute
	// maxJoined is how many kinds are joined at a time. Calls of further ones are recorded one by one.
	maxJoined = 4096
)

// same is what calls have in common that are joined.
// Names are not enough, since one may be given again; uids neither, since what lies below a workspace has the workspace's.
type same struct{ method, principal, run, scope string }

// joined counts the calls since the one that was recorded.
type joined struct {
	until       time.Time
	n           int64
	first       *Event // the first of them
	begin, last time.Time
	digest      hash.Hash // over their digests, in the order in which they ended
}

func (j *joined) event() *Event {
	ev := proto.CloneOf(j.first)
	ev.Uid, ev.Count, ev.Digest, ev.Time = "", j.n, j.digest.Sum(nil), timestamppb.New(j.begin)
	if ev.Details = maps.Clone(ev.GetDetails()); ev.Details == nil {
		ev.Details = make(map[string]string)
	}
	ev.Details["calls"], ev.Details["last_time"] = "joined", j.last.UTC().Format(time.RFC3339Nano)
	return ev
}

// joins are the calls that wait for their event.
type joins struct {
	mu   sync.Mutex
	open map[same]*joined
	over []*joined // what could not be written, or whose time was over before it was
}

// Summarize records a call that comes very often: the first of a principal with one method on one resource is durable when it returns;
// further ones within a minute are counted and digested, and become one event after it. A process that is killed loses the count of those,
// and not that there was one.
//
// Errors: AUDIT_UNAVAILABLE, as Record.
func (o *Outbox) Summarize(ctx context.Context, ev *Event) error {
	key := same{ev.GetMethod(), ev.GetPrincipal(), ev.GetRunUid(), ev.GetScopeUid() + " " + ev.GetScope()}
	if o.joins.add(key, ev, o.cfg.Now()) {
		return nil
	}
	if err := o.Record(ctx, ev); err != nil {
		return err
	}
	o.joins.begin(key, o.cfg.Now())
	return nil
}

// add joins a call to those of its kind, if one was recorded lately.
func (j *joins) add(key same, ev *Event, now time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	o := j.open[key]
	if o == nil {
		return false
	}
	if !now.Before(o.until) || now.Before(o.until.Add(-joinFor)) {
		delete(j.open, key)
		if o.n > 0 {
			j.over = append(j.over, o)
		}
		return false
	}
	if o.n == 0 {
		o.first, o.begin, o.digest = ev, now, sha256.New()
	}
	o.n++
	o.last = now
	o.digest.Write(ev.GetDigest())
	return true
}

// begin has further calls joined.
func (j *joins) begin(key same, now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open == nil {
		j.open = make(map[same]*joined)
	}
	if _, ok := j.open[key]; ok || len(j.open) >= maxJoined {
		return
	}
	j.open[key] = &joined{until: now.Add(joinFor)}
}

// take gives those whose time is over, or all.
func (j *joins) take(now time.Time, all bool) []*joined {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := j.over
	j.over = nil
	for key, o := range j.open {
		if !all && now.Before(o.until) && !now.Before(o.until.Add(-joinFor)) {
			continue
		}
		delete(j.open, key)
		if o.n > 0 {
			out = append(out, o)
		}
	}
	return out
}

// back keeps what could not be written.
func (j *joins) back(list []*joined) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.over = append(j.over, list...)
}
