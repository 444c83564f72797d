package audit

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

const (
	// most is how many records one transaction takes at most, and rowsAtOnce how many rows one statement inserts.
	most, rowsAtOnce = 512, 32
	// batchTimeout bounds one such transaction, the wait for the writer included. Whoever waits for it gives up before, after Deadline.
	batchTimeout = 10 * time.Second
	// gatherings is how often whoever writes lets others go first, and gatherFor after what time no more.
	gatherings, gatherFor = 16, 2 * time.Millisecond
)

// Basis is a state in the service's database that records can rest on. It has a number, and whatever changes the state raises it in the same
// transaction.
type Basis struct {
	number func(ctx context.Context, tx *sqldb.Tx) (uint64, error)
}

// NewBasis makes one whose number is read by number. It is read once for all records of a transaction.
func NewBasis(number func(ctx context.Context, tx *sqldb.Tx) (uint64, error)) *Basis {
	return &Basis{number}
}

// Ground is what a record rests on: something that was decided on the state at a number.
type Ground struct {
	On     *Basis
	Number uint64
	// Still decides again where the state has another number by now, in the transaction of the record. Its error comes back, as Withdrawn.
	Still func(ctx context.Context, tx *sqldb.Tx) error
}

// Withdrawn says that what a record was to rest on is so no more: nothing was recorded.
type Withdrawn struct{ Err error }

// Error implements error.
func (w *Withdrawn) Error() string { return w.Err.Error() }

// Unwrap gives why.
func (w *Withdrawn) Unwrap() error { return w.Err }

// waiting is a record that waits for its transaction.
type waiting struct {
	ev     *Event // own, but for its number
	ground Ground
	joins  bool // a burst, with those that are alike
	alike  alike
	done   chan error // of room one

	mu    sync.Mutex
	state waitState
}

type waitState int

const (
	queued waitState = iota
	taken            // it stands in a transaction
	left             // whoever waited has given up before that
)

// to moves on from queued, or reports that somebody else did.
func (w *waiting) to(s waitState) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state != queued {
		return false
	}
	w.state = s
	return true
}

// queue are the records that wait. One goroutine writes them, as long as there are any.
type queue struct {
	mu      sync.Mutex
	waiting []*waiting
	led     bool
}

// take gives the next ones.
func (q *queue) take() []*waiting {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(most, len(q.waiting))
	batch := make([]*waiting, 0, n)
	for _, w := range q.waiting[:n] {
		if w.to(taken) {
			batch = append(batch, w)
		}
	}
	q.waiting = append(q.waiting[:0:0], q.waiting[n:]...)
	return batch
}

// gather lets whoever can run go first, as long as that brings further records: a transaction costs as much as ten of them. Where nobody else
// has anything to do it takes no time.
func (q *queue) gather() {
	begun := time.Now()
	for n, tries := q.length(), 0; tries < gatherings && n < most && time.Since(begun) < gatherFor; tries++ {
		runtime.Gosched()
		more := q.length()
		if more == n {
			return
		}
		n = more
	}
}

func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// over reports that nothing waits; then nobody leads.
func (q *queue) over() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.led = len(q.waiting) > 0
	return !q.led
}

// Record writes ev in a transaction of its own, shared with others that are recorded at the same time, and returns when it is
// durable. It does not end with ctx: what happened is recorded although its caller is gone.
//
// Errors: AUDIT_UNAVAILABLE, at the latest after Deadline; then what is recorded must not have an effect or an answer.
func (o *Outbox) Record(ctx context.Context, ev *Event) error {
	return o.RecordOn(ctx, ev, Ground{})
}

// RecordOn is Record of something that rests on a state: it is recorded only if that is so in the transaction of the record. Whatever changes
// the state is committed before it, and then Still has seen it, or after it.
//
// Errors: those of Record, and *Withdrawn.
func (o *Outbox) RecordOn(_ context.Context, ev *Event, g Ground) error {
	if ev == nil {
		return fault.Internal(nil, "a record without an event")
	}
	w := &waiting{ev: o.whole(ev), ground: g, done: make(chan error, 1)}
	if _, err := encode(w.ev); err != nil { // before anybody waits for it
		return unavailable(err)
	}
	return o.record(w)
}

// record has an event written, and waits for it.
func (o *Outbox) record(w *waiting) error {
	if w.ground.On != nil && w.ground.Still == nil {
		return fault.Internal(nil, "a record rests on a state that nobody asks about")
	}
	o.queue.mu.Lock()
	o.queue.waiting = append(o.queue.waiting, w)
	lead := !o.queue.led
	o.queue.led = true
	o.queue.mu.Unlock()
	if lead {
		go o.lead() // it writes for all who wait, not for this call
	}
	late := time.NewTimer(Deadline)
	defer late.Stop()
	var err error
	select {
	case err = <-w.done:
	case <-late.C:
		if w.to(left) {
			return unavailable(context.DeadlineExceeded)
		}
		select {
		case err = <-w.done:
		default:
			return unavailable(context.DeadlineExceeded) // it may still become durable
		}
	}
	var gone *Withdrawn
	switch {
	case errors.As(err, &gone):
		return err
	case err != nil:
		return unavailable(err)
	}
	return nil
}

// lead writes what waits until nothing does.
func (o *Outbox) lead() {
	for !o.queue.over() {
		o.queue.gather()
		var batch []*waiting
		given := o.given.Load()
		o.bursts.mu.Lock()
		ctx, cancel := context.WithTimeout(context.Background(), batchTimeout)
		err := o.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			batch = o.queue.take() // those too that came while the writer was busy
			return o.batch(ctx, tx, batch)
		})
		cancel()
		o.bursts.settle(err == nil)
		o.bursts.mu.Unlock()
		if err != nil && batch == nil {
			batch = o.queue.take() // there was no transaction
		}
		if err == nil && o.given.Load() != given {
			o.notify()
		}
		for _, w := range batch {
			select {
			case w.done <- err:
			default: // it has its own error
			}
		}
	}
}

// batch records what stands on its ground: in a burst, or under numbers in a row. Each event is sealed by itself, bound to its own number and uid.
func (o *Outbox) batch(ctx context.Context, tx *sqldb.Tx, batch []*waiting) error {
	batch, err := grounded(ctx, tx, batch)
	if err != nil {
		return err
	}
	sound := o.bursts.stage(batch, o.cfg.Now())
	again, err := o.bursts.write(ctx, tx, o.box)
	if err != nil {
		return err
	}
	if sound = append(sound, again...); len(sound) == 0 {
		return nil
	}
	var last int64
	if err := tx.QueryRowContext(ctx, "UPDATE outbox_head SET seq = seq + $1 WHERE id = 1 RETURNING seq", len(sound)).Scan(&last); err != nil {
		return err
	}
	first, now := last-int64(len(sound))+1, o.cfg.Now().UnixMicro()
	args := make([]any, 0, 4*rowsAtOnce)
	for i, w := range sound {
		w.ev.Seq = first + int64(i)
		plain, err := encode(w.ev)
		if err != nil {
			return err
		}
		sealed, err := o.box.seal(ctx, o.box.aad(w.ev.GetSeq(), w.ev.GetUid()), plain)
		if err != nil {
			return err
		}
		if args = append(args, w.ev.GetSeq(), w.ev.GetUid(), sealed, now); len(args) < 4*rowsAtOnce && i+1 < len(sound) {
			continue
		}
		if _, err := tx.ExecContext(ctx, inserts[len(args)/4], args...); err != nil {
			return err
		}
		args = args[:0]
	}
	o.gave(last)
	return nil
}

// grounded gives those whose ground is still so, and tells the others. The number of a state is read once for all.
func grounded(ctx context.Context, tx *sqldb.Tx, batch []*waiting) ([]*waiting, error) {
	numbers := make(map[*Basis]uint64, 1)
	sound := batch[:0:0]
	for _, w := range batch {
		if w.ground.On != nil {
			now, ok := numbers[w.ground.On]
			if !ok {
				var err error
				if now, err = w.ground.On.number(ctx, tx); err != nil {
					return nil, err
				}
				numbers[w.ground.On] = now
			}
			if now != w.ground.Number {
				if err := still(ctx, tx, w.ground); err != nil {
					w.done <- &Withdrawn{err}
					continue
				}
			}
		}
		sound = append(sound, w)
	}
	return sound, nil
}

// still asks, and takes a panic for a no: it is about one record of many.
func still(ctx context.Context, tx *sqldb.Tx, g Ground) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Internal(fmt.Errorf("panic: %v", p), "what the record rests on could not be decided again")
		}
	}()
	return g.Still(ctx, tx)
}

// inserts are the statements for so many rows.
var inserts = func() (out [rowsAtOnce + 1]string) {
	for n := 1; n <= rowsAtOnce; n++ {
		rows := make([]string, n)
		for i := range rows {
			p := 4 * i
			rows[i] = "($" + strconv.Itoa(p+1) + ", $" + strconv.Itoa(p+2) + ", $" + strconv.Itoa(p+3) + ", $" + strconv.Itoa(p+4) + ")"
		}
		out[n] = "INSERT INTO outbox (seq, event_uid, sealed, create_time) VALUES " + strings.Join(rows, ", ")
	}
	return out
}()

// whole is a copy of an event with all but its number.
func (o *Outbox) whole(ev *Event) *Event {
	out := proto.CloneOf(ev)
	o.complete(out)
	return out
}

func (o *Outbox) complete(ev *Event) {
	ev.Service = o.cfg.Service
	if ev.GetUid() == "" {
		ev.Uid = resource.NewUID("evt")
	}
	if ev.GetTime() == nil {
		ev.Time = timestamppb.New(o.cfg.Now())
	}
	if ev.GetCount() < 1 {
		ev.Count = 1
	}
}

// gave notes that numbers up to last were handed out.
func (o *Outbox) gave(last int64) {
	for {
		given := o.given.Load()
		if last <= given || o.given.CompareAndSwap(given, last) {
			return
		}
	}
}
