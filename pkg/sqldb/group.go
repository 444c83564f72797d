package sqldb

import (
	"context"
	"time"
)

const (
	// groupSize is how many members one transaction of WriteGrouped takes at most.
	groupSize = 64
	// groupTimeout bounds the work of one such transaction before its commit.
	groupTimeout = 10 * time.Second
)

// member is one call of WriteGrouped.
type member struct {
	ctx   context.Context
	fn    func(ctx context.Context, tx *Tx) error
	done  chan struct{} // closed when err is final
	err   error
	panic any
	taken bool // guarded by queueMu: it stands in a transaction, or was given up
}

// WriteGrouped is Write for many small independent changes at a time, such as records of refusals: callers that wait for the writer
// share one transaction and one fsync, each behind a savepoint of its own, so that the error of one undoes only what that one
// did. It returns nil only after the commit.
//
// Finish is passed once for the group, with a context that holds nothing of any caller: the change must be right whoever asks.
// fn gets the values of its caller's context, and not its end; a caller whose context ends while it still waits is taken out.
func (db *DB) WriteGrouped(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if ctx.Value(inWrite{db}) != nil {
		return db.enter(ctx) // its error
	}
	m := &member{ctx: ctx, fn: fn, done: make(chan struct{})}
	db.queueMu.Lock()
	db.queue = append(db.queue, m)
	db.queueMu.Unlock()

	select {
	case <-m.done:
	case <-ctx.Done():
		if db.giveUp(m) {
			return ctx.Err()
		}
		<-m.done // it is in a transaction, which does not take long
	case <-db.closed:
		if db.giveUp(m) {
			return errClosed()
		}
		<-m.done
	case db.gate <- struct{}{}: // the writer is ours: run what waits, for all
		db.lead(m)
	}
	if m.panic != nil {
		panic(m.panic) // in the goroutine of whoever brought the function
	}
	return m.err
}

// lead runs groups until m is done. The caller holds the gate, and lead gives it back.
func (db *DB) lead(m *member) {
	defer db.leave()
	for {
		select {
		case <-m.done:
			return
		default:
		}
		group := db.take()
		err := errBroken()
		if !db.broken.Load() {
			err = db.runGroup(group)
		}
		for _, m := range group {
			if m.err == nil {
				m.err = err
			}
			close(m.done)
		}
	}
}

// take gets the next group out of the queue.
func (db *DB) take() []*member {
	db.queueMu.Lock()
	defer db.queueMu.Unlock()
	n := min(groupSize, len(db.queue))
	group := make([]*member, n)
	copy(group, db.queue)
	db.queue = append(db.queue[:0:0], db.queue[n:]...)
	for _, m := range group {
		m.taken = true
	}
	return group
}

// giveUp takes m out of the queue, or reports that it is too late.
func (db *DB) giveUp(m *member) bool {
	db.queueMu.Lock()
	defer db.queueMu.Unlock()
	if m.taken {
		return false
	}
	m.taken = true
	for i, waiting := range db.queue {
		if waiting == m {
			db.queue = append(db.queue[:i], db.queue[i+1:]...)
			break
		}
	}
	return true
}

// runGroup runs the members in one transaction. A member's own error stands in the member; what it returns holds for all the others.
func (db *DB) runGroup(group []*member) error {
	ctx, cancel := context.WithTimeout(context.Background(), groupTimeout)
	defer cancel()
	return db.transact(ctx, func(ctx context.Context, tx *Tx) error {
		for _, m := range group {
			if _, err := tx.ExecContext(ctx, "SAVEPOINT member"); err != nil {
				return err
			}
			if m.err = db.runMember(ctx, tx, m); m.err != nil || m.panic != nil {
				if _, err := tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT member"); err != nil {
					return err // the engine gave up the whole transaction, for instance on a full disk
				}
			}
			if _, err := tx.ExecContext(ctx, "RELEASE SAVEPOINT member"); err != nil {
				return err
			}
		}
		return nil
	})
}

func (db *DB) runMember(ctx context.Context, tx *Tx, m *member) error {
	defer func() { m.panic = recover() }()
	tx.signalled = 0
	own := context.WithValue(context.WithoutCancel(m.ctx), inWrite{db}, true)
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		own, cancel = context.WithDeadline(own, deadline)
		defer cancel()
	}
	if err := m.fn(own, tx); err != nil {
		return db.observe(err, false)
	}
	return nil
}
