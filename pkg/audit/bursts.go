package audit

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

const (
	// joinFor is how long a burst lasts.
	joinFor = time.Minute
	// maxBursts is how many bursts may be under way at a time, and maxFrom how many addresses are known of them together. What goes beyond is
	// recorded call by call.
	maxBursts, maxFrom = 4096, 16384
	// fewAhead and mostAhead are how far ahead of its calls a burst is counted: as many as it has had, within these bounds.
	fewAhead, mostAhead = 32, 4096
	// endedAtOnce is how many bursts become events in one transaction.
	endedAtOnce = 128
)

// alike is what calls of one burst have in common: a digest over all of their event but what is each call's own.
type alike [sha256.Size]byte

// alikeOf is of an event that nobody else uses; ok says that it can be encoded, whatever stands beside it.
func alikeOf(ev *Event) (of alike, ok bool) {
	uid, at, request, trace, from, digest := ev.GetUid(), ev.GetTime(), ev.GetRequestId(), ev.GetTraceId(), ev.GetAddress(), ev.GetDigest()
	ev.Uid, ev.Time, ev.RequestId, ev.TraceId, ev.Address, ev.Digest = "", nil, "", "", "", nil
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(ev)
	ev.Uid, ev.Time, ev.RequestId, ev.TraceId, ev.Address, ev.Digest = uid, at, request, trace, from, digest
	size := len(b) + len(uid) + len(request) + len(trace) + len(from) + len(digest)
	return sha256.Sum256(b), err == nil && size <= MaxEventBytes/2 && utf8.ValidString(uid) && utf8.ValidString(request) && utf8.ValidString(trace) && utf8.ValidString(from)
}

// burst is what one process knows of the calls that are alike, since the one with which the burst began.
type burst struct {
	until time.Time
	from  map[string]struct{} // addresses of which one call has an event of its own

	// Of the calls that share an event; zero while there is none.
	ev     *Event // of the first of them, by whose uid the row is found
	calls  int64
	ahead  int64 // calls in the row
	digest [sha256.Size]byte
	last   time.Time

	// Of the transaction under way.
	fresh   []string // addresses
	members []*waiting
	lost    bool // somebody else has ended it
}

// during reports whether the burst is under way; a clock that was set back ends it.
func (b *burst) during(now time.Time) bool {
	return now.Before(b.until) && !now.Before(b.until.Add(-joinFor))
}

func (b *burst) knows(address string) bool {
	_, ok := b.from[address]
	return ok || slices.Contains(b.fresh, address)
}

// add counts one more call.
func (b *burst) add(ev *Event) {
	if b.calls == 0 {
		b.ev = ev
	}
	b.calls++
	b.digest = sha256.Sum256(append(b.digest[:], ev.GetDigest()...))
	if at := ev.GetTime().AsTime(); at.After(b.last) {
		b.last = at
	}
}

// event is that of all calls that share it. One that is made ahead says how many calls there are at most, and at least.
func (b *burst) event(ahead bool) *Event {
	ev := proto.CloneOf(b.ev)
	ev.Count, ev.Digest = b.calls, slices.Clone(b.digest[:])
	if ev.Details = maps.Clone(ev.GetDetails()); ev.Details == nil {
		ev.Details = make(map[string]string)
	}
	ev.Details["calls"], ev.Details["last_time"] = "joined", b.last.UTC().Format(time.RFC3339Nano)
	if ahead {
		ev.Count, ev.Details["calls_at_least"] = b.ahead, strconv.FormatInt(b.calls, 10)
	}
	return ev
}

// bursts are those of this process.
type bursts struct {
	mu     sync.Mutex // held over the transactions of those who record and of those who end bursts
	open   map[alike]*burst
	from   int              // addresses in open
	over   []*burst         // that have a row, and no event yet
	staged map[alike]*burst // copies, of the transaction under way
}

// RecordBurst is RecordOn of a call that may come a thousand times a second and each time says the same. The first of a burst has an event of its
// own, and so has the first from each further address. The others within a minute share one, with their number, when the last of them came, and
// a digest: that of n calls is SHA-256 over that of n-1 (32 zeros before the first) and the digest of the call's event. It has the uid and the
// request id of the first of them.
//
// Every call is counted durably when RecordBurst returns, ahead of time: the event of a burst whose process was killed says how many calls there
// were at most, and in its details at least; its digest and the time are of the least.
//
// It takes ev over. Errors: those of RecordOn.
func (o *Outbox) RecordBurst(ctx context.Context, ev *Event, g Ground) error {
	if ev == nil {
		return fault.Internal(nil, "a record without an event")
	}
	o.complete(ev)
	key, ok := alikeOf(ev)
	if !ok {
		return o.RecordOn(ctx, ev, g)
	}
	return o.record(&waiting{ev: ev, ground: g, joins: true, alike: key, done: make(chan error, 1)})
}

// stage sorts the records of a transaction into those that join a burst and those that have an event of their own.
func (s *bursts) stage(batch []*waiting, now time.Time) (own []*waiting) {
	s.staged = make(map[alike]*burst, 1)
	if len(s.open) >= maxBursts || s.from >= maxFrom {
		s.close(now, false)
	}
	begun, fresh := 0, 0
	for _, w := range batch {
		if !w.joins {
			own = append(own, w)
			continue
		}
		b, known := s.staged[w.alike], s.open[w.alike]
		if b == nil && known != nil && known.during(now) {
			next := *known
			b = &next
			s.staged[w.alike] = b
		}
		address := host(w.ev.GetAddress())
		if b != nil && b.knows(address) {
			b.members = append(b.members, w)
			continue
		}
		own = append(own, w)
		switch room := s.from+fresh < maxFrom; {
		case b != nil && room:
			b.fresh = append(b.fresh, address)
			fresh++
		case b == nil && room && (known != nil || len(s.open)+begun < maxBursts):
			s.staged[w.alike] = &burst{until: now.Add(joinFor), fresh: []string{address}}
			begun++
			fresh++
		}
	}
	return own
}

// write counts the members of each burst, in its row where that does not count so far yet, and gives those back whose burst was ended by somebody
// else.
func (s *bursts) write(ctx context.Context, tx *sqldb.Tx, box *box) (own []*waiting, err error) {
	for _, b := range s.staged {
		for _, w := range b.members {
			b.add(w.ev)
		}
		if b.calls <= b.ahead {
			continue
		}
		before := b.ahead
		b.ahead = b.calls + min(max(b.calls, fewAhead), mostAhead)
		plain, err := encode(b.event(true))
		if err != nil {
			return nil, err
		}
		sealed, err := box.seal(ctx, box.burstAAD(b.ev.GetUid(), b.ahead), plain)
		if err != nil {
			return nil, err
		}
		if before == 0 {
			if _, err := tx.ExecContext(ctx, "INSERT INTO outbox_bursts (event_uid, calls, until, sealed) VALUES ($1, $2, $3, $4)",
				b.ev.GetUid(), b.ahead, b.until.UnixMicro(), sealed); err != nil {
				return nil, err
			}
			continue
		}
		n, err := changed(tx.ExecContext(ctx, "UPDATE outbox_bursts SET calls = $1, sealed = $2 WHERE event_uid = $3", b.ahead, sealed, b.ev.GetUid()))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			own, b.lost = append(own, b.members...), true
		}
	}
	return own, nil
}

// settle takes over what was staged, if it was committed. Else what is known stays: a row may count further ahead than it says.
func (s *bursts) settle(committed bool) {
	staged := s.staged
	s.staged = nil
	if !committed {
		return
	}
	for key, b := range staged {
		switch {
		case b.lost: // with all that was counted in it
			s.forget(key)
			continue
		case b.from == nil: // it has just begun, perhaps after one that is over
			s.retire(key)
			b.from = make(map[string]struct{}, len(b.fresh))
		}
		for _, f := range b.fresh {
			b.from[f] = struct{}{}
		}
		s.from += len(b.fresh)
		b.fresh, b.members = nil, nil
		if s.open == nil {
			s.open = make(map[alike]*burst)
		}
		s.open[key] = b
	}
}

func (s *bursts) forget(key alike) {
	if b := s.open[key]; b != nil {
		s.from -= len(b.from)
		delete(s.open, key)
	}
}

// retire forgets a burst but for the event that it has to become.
func (s *bursts) retire(key alike) {
	if b := s.open[key]; b != nil && b.ahead > 0 {
		s.over = append(s.over, b)
	}
	s.forget(key)
}

// close retires the bursts that are over, or all.
func (s *bursts) close(now time.Time, all bool) {
	for key, b := range s.open {
		if all || !b.during(now) {
			s.retire(key)
		}
	}
}

// endBursts makes events of this process's bursts that are over, or of all of its own; and of those whose process was killed.
func (o *Outbox) endBursts(ctx context.Context, all bool) error {
	o.bursts.mu.Lock()
	defer o.bursts.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), batchTimeout)
	defer cancel()
	s, now := &o.bursts, o.cfg.Now()
	s.close(now, all)
	for len(s.over) > 0 {
		next := s.over[:min(endedAtOnce, len(s.over))]
		if err := o.write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			for _, b := range next {
				if err := o.end(ctx, tx, b.event(false), math.MaxInt64); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		s.over = append(s.over[:0:0], s.over[len(next):]...)
	}
	return o.endLeft(ctx, now)
}

// end makes an event of a burst's row, if nobody else has, and the row counts no more than so many calls.
func (o *Outbox) end(ctx context.Context, tx *sqldb.Tx, ev *Event, most int64) error {
	n, err := changed(tx.ExecContext(ctx, "DELETE FROM outbox_bursts WHERE event_uid = $1 AND calls <= $2", ev.GetUid(), most))
	if err != nil || n == 0 {
		return err
	}
	return o.insert(ctx, tx, ev)
}

// changed is how many rows a statement has changed.
func changed(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// endLeft ends what processes have left that were killed; of this one nothing is over any more. One whose row does not open stays, and is told of
// each time.
func (o *Outbox) endLeft(ctx context.Context, now time.Time) error {
	if o.cfg.DB.Dialect() != sqldb.SQLite { // another one may live, and end its own itself
		now = now.Add(-joinFor)
	}
	left, damaged, err := o.leftBursts(ctx, now)
	if err != nil {
		return err
	}
	return errors.Join(o.endRead(ctx, left), damaged)
}

// endRead ends bursts whose rows were read. One that counts further by now is left for the next time: what was read conceals calls.
func (o *Outbox) endRead(ctx context.Context, left []*Event) error {
	for list := range slices.Chunk(left, endedAtOnce) {
		if err := o.write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			for _, ev := range list {
				if err := o.end(ctx, tx, ev, ev.GetCount()); err != nil { // as many as its row has, by which it is bound
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// leftBursts reads the events of rows that were over by then.
func (o *Outbox) leftBursts(ctx context.Context, by time.Time) (left []*Event, damaged, err error) {
	rows, err := o.cfg.DB.Reader().QueryContext(ctx, "SELECT event_uid, calls, sealed FROM outbox_bursts WHERE until <= $1 ORDER BY until", by.UnixMicro())
	if err != nil {
		return nil, nil, sqldb.Fault(err)
	}
	defer rows.Close()
	for rows.Next() {
		var uid string
		var calls int64
		var sealed []byte
		if err := rows.Scan(&uid, &calls, &sealed); err != nil {
			return nil, nil, sqldb.Fault(err)
		}
		ev := new(Event)
		plain, err := o.box.open(ctx, o.box.burstAAD(uid, calls), sealed)
		if err == nil {
			err = proto.Unmarshal(plain, ev)
		}
		if err != nil {
			damaged = errors.Join(damaged, fmt.Errorf("the burst %s cannot be read: %w", uid, err))
			continue
		}
		left = append(left, ev)
	}
	return left, damaged, sqldb.Fault(rows.Err())
}
