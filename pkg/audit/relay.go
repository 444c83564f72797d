package audit

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

const (
	// MaxBatch is how many events Relay delivers at once.
	MaxBatch = 500
	// MaxBatchBytes bounds their size, sealed.
	MaxBatchBytes = 2 << 20

	deliverTimeout = 30 * time.Second
	// idle is how long Relay sleeps when nothing wakes it; shared is the same where other instances on the same database may have
	// stored events.
	idle, shared = 2 * time.Second, 500 * time.Millisecond
	// linger is how long Relay lets events gather before it takes them, so that a stream of single ones costs few commits.
	linger = 20 * time.Millisecond
	// Waits double from the first to the last: for a transaction that has a number and is not committed yet, and for a
	// receiver that fails.
	firstLook, firstRetry, lastRetry = 2 * time.Millisecond, 50 * time.Millisecond, 10 * time.Second
)

// StoredSeq is the key under which a receiver that refuses a gap says, in the metadata of its FAILED_PRECONDITION, what it has.
const StoredSeq = "stored_seq"

// Deliver hands events to their receiver, in the order of their numbers, and returns the number up to which it has stored
// everything. Events that it had before count as stored. A lower number than was sent is fine: the rest is sent again.
type Deliver func(ctx context.Context, events []*Event) (storedSeq int64, err error)

// Ingester is the part of telemetry's client that To needs.
type Ingester interface {
	Ingest(ctx context.Context, in *telemetryv1.IngestRequest, opts ...grpc.CallOption) (*telemetryv1.IngestResponse, error)
}

// To delivers to telemetry.
func To(client Ingester) Deliver {
	return func(ctx context.Context, events []*Event) (int64, error) {
		res, err := client.Ingest(ctx, &telemetryv1.IngestRequest{Events: events})
		if err == nil {
			return res.GetStoredSeq(), nil
		}
		err = fault.FromStatus(err)
		var refused *fault.Error
		if errors.As(err, &refused) {
			if stored, e := strconv.ParseInt(refused.Metadata()[StoredSeq], 10, 64); e == nil {
				return stored, err
			}
		}
		return 0, err
	}
}

// Role is what the one instance that relays is elected for.
const Role = "outbox"

// Relay delivers events until ctx ends, while this instance leads; and writes the counts of Aggregate every FlushEvery and at the end, in
// any case. A leader that does not know yet that it is one no more may deliver what another one delivers: the receiver removes
// doubles. It removes nothing from the outbox. Relay returns ctx's error.
func (o *Outbox) Relay(ctx context.Context, deliver Deliver) error {
	flushed := make(chan struct{})
	go func() {
		defer close(flushed)
		o.flushLoop(ctx)
	}()
	defer func() { <-flushed }()

	switch {
	case o.cfg.Leader != nil:
		return o.cfg.Leader.Lead(ctx, Role, func(ctx context.Context, term *leader.Term) error {
			return o.relay(ctx, deliver, term.WriteGrouped)
		})
	case o.cfg.DB.Dialect() == sqldb.SQLite:
		return o.relay(ctx, deliver, o.cfg.DB.WriteGrouped)
	default:
		return fault.Internal(nil, "audit: instances that share a database need a Leader to relay")
	}
}

func (o *Outbox) relay(ctx context.Context, deliver Deliver, write sqldb.WriteFunc) error {
	var seen int64 // the highest number that was read
	look, retry, rest := firstLook, firstRetry, idle
	if o.cfg.DB.Dialect() != sqldb.SQLite {
		rest = shared
	}
	for {
		given := o.given.Load()
		last, full, err := o.relayBatch(ctx, deliver, write)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		seen = max(seen, last)
		switch {
		case err != nil:
			o.cfg.Logger.WarnContext(ctx, "the activity of this service could not be delivered; it waits in the outbox", "error", err, "retry", retry)
			wait(ctx, nil, retry/2+rand.N(retry/2))
			retry = min(2*retry, lastRetry)
		case last > 0:
			look, retry = firstLook, firstRetry
			if !full {
				wait(ctx, nil, linger)
			}
		case seen < given && look < idle:
			wait(ctx, nil, look)
			look *= 2
		default: // nothing is there, or what was announced was rolled back
			wait(ctx, o.wake, rest)
			wait(ctx, nil, linger)
			look = firstLook
		}
	}
}

// wait waits for a wake, for d or for the end of ctx.
func wait(ctx context.Context, wake <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-t.C:
	}
}

// relayBatch delivers the oldest events and removes those that are stored. It returns the last number that was read, 0 for none, and
// whether there are likely more.
func (o *Outbox) relayBatch(ctx context.Context, deliver Deliver, write sqldb.WriteFunc) (last int64, full bool, err error) {
	// A damaged event holds up only what comes after it.
	events, full, damaged := o.oldest(ctx)
	if len(events) == 0 {
		return 0, false, damaged
	}
	first, last := events[0].GetSeq(), events[len(events)-1].GetSeq()
	short, cancel := context.WithTimeout(ctx, deliverTimeout)
	defer cancel()
	stored, err := deliver(short, events)
	if stored = min(stored, last); stored >= first { // what was not sent is not stored, whatever the receiver says
		if e := remove(ctx, write, stored); e != nil {
			return last, full, e
		}
	} else if err == nil {
		err = fault.Internal(nil, "the receiver answered, and has stored nothing of what it was sent")
	}
	if err != nil {
		return last, full, err
	}
	return last, full || stored < last, damaged
}

// oldest reads the events that are next; full says that they are all that goes into one delivery. With an error it returns those before
// the one that cannot be delivered.
func (o *Outbox) oldest(ctx context.Context) (events []*Event, full bool, err error) {
	err = o.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT seq, event_uid, sealed FROM outbox ORDER BY seq LIMIT $1", MaxBatch)
		if err != nil {
			return err
		}
		defer rows.Close()
		size := 0
		for rows.Next() {
			var seq int64
			var uid string
			var sealed []byte
			if err := rows.Scan(&seq, &uid, &sealed); err != nil {
				return err
			}
			if size += len(sealed); size > MaxBatchBytes && len(events) > 0 {
				full = true
				return nil
			}
			if n := len(events); n > 0 && events[n-1].GetSeq()+1 != seq {
				return fault.Internal(nil, "event %d is missing from the outbox", events[n-1].GetSeq()+1)
			}
			ev, err := o.open(ctx, seq, uid, sealed)
			if err != nil {
				return err
			}
			events = append(events, ev)
		}
		return rows.Err()
	})
	return events, full || len(events) == MaxBatch, err
}

func (o *Outbox) open(ctx context.Context, seq int64, uid string, sealed []byte) (*Event, error) {
	plain, err := o.box.open(ctx, o.box.aad(seq, uid), sealed)
	if err != nil {
		return nil, err
	}
	ev := new(Event)
	if err := proto.Unmarshal(plain, ev); err != nil {
		return nil, fault.Internal(err, "event %d of the outbox cannot be decoded", seq)
	}
	return ev, nil
}

// flushLoop writes the counts now and then, and once more at the end.
func (o *Outbox) flushLoop(ctx context.Context) {
	for last := false; !last; {
		wait(ctx, nil, o.cfg.FlushEvery)
		last = ctx.Err() != nil
		if err := o.flushCounts(ctx); err != nil {
			o.cfg.Logger.WarnContext(ctx, "the counts of anonymous refusals could not be stored; they are counted on", "error", err)
		}
		if err := o.endBursts(ctx, last); err != nil {
			o.cfg.Logger.WarnContext(ctx, "calls of a burst are recorded, and the event that they share could not be made; it is tried again", "error", err)
		}
	}
}
