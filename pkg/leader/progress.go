package leader

import (
	"context"
	"sync"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

const (
	// beatEvery is how often an instance says that it is there, and absentAfter the silence after which nobody waits for it. Clocks of
	// instances may differ by the rest.
	beatEvery, absentAfter = 5 * time.Second, 15 * time.Second
	// awaitLook is how often Await looks without being woken.
	awaitLook = 250 * time.Millisecond
)

// Progress tells the instances of a service how far each of them is in a feed of numbered changes, so that one that made a change can
// wait for the others. On SQLite there are no others, and it does nothing. It is safe for concurrent use.
type Progress struct {
	l    *Leader
	feed string

	mu   sync.Mutex
	seq  uint64 // how far this instance is
	kick chan struct{}
}

// Progress makes the progress of a feed: 1 to 40 characters of a-z, 0-9 and '-'. Run must run for others to wait for this instance.
func (l *Leader) Progress(feed string) *Progress {
	return &Progress{l: l, feed: feed, kick: make(chan struct{}, 1)}
}

func (p *Progress) shared() bool { return p.l != nil && p.l.cfg.DB.Dialect() != sqldb.SQLite }

// Reached says that this instance, and whoever listens to it, has come to seq. It does not wait; a lower number than before is nothing.
func (p *Progress) Reached(seq uint64) {
	p.mu.Lock()
	further := seq > p.seq
	p.seq = max(p.seq, seq)
	p.mu.Unlock()
	if further {
		select {
		case p.kick <- struct{}{}:
		default:
		}
	}
}

// Run tells the others, until ctx ends; then nobody waits for this instance any more.
func (p *Progress) Run(ctx context.Context) {
	if !p.shared() || !roleForm.MatchString(p.feed) {
		<-ctx.Done()
		return
	}
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	defer p.leave(context.WithoutCancel(ctx))
	var told uint64
	for {
		p.mu.Lock()
		seq := p.seq
		p.mu.Unlock()
		if seq > 0 {
			if err := p.tell(ctx, seq, seq > told); err == nil {
				told = seq
			} else if ctx.Err() == nil {
				p.l.cfg.Logger.WarnContext(ctx, "the other instances could not be told how far this one is", "feed", p.feed, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
		case <-beat.C:
		}
	}
}

func (p *Progress) tell(ctx context.Context, seq uint64, further bool) error {
	ctx, cancel := context.WithTimeout(ctx, beatEvery)
	defer cancel()
	return p.l.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO progress (feed, instance, seq, beat_time) VALUES ($1, $2, $3, $4)
			ON CONFLICT (feed, instance) DO UPDATE SET seq = excluded.seq, beat_time = excluded.beat_time`,
			p.feed, p.l.cfg.Holder, int64(seq), p.l.cfg.Now().UnixMicro()); err != nil {
			return err
		}
		if !further {
			return nil
		}
		return tx.Signal(ctx, p.topic())
	})
}

func (p *Progress) topic() string { return "progress/" + p.feed }

func (p *Progress) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := p.l.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM progress WHERE feed = $1 AND instance = $2", p.feed, p.l.cfg.Holder); err != nil {
			return err
		}
		return tx.Signal(ctx, p.topic())
	})
	if err != nil {
		p.l.cfg.Logger.WarnContext(ctx, "the other instances wait for this one for a while: it could not say that it leaves", "feed", p.feed, "error", err)
	}
}

// Await waits until every other instance has come to seq, and returns nil then. An instance that was not heard of for 15 s is not
// waited for. It is no fence: an instance that is cut off goes on with what it knew until its own state is stale.
//
// Errors: UNAVAILABLE when ctx ends first; those of the database.
func (p *Progress) Await(ctx context.Context, seq uint64) error {
	if !p.shared() {
		return nil
	}
	wake, stop := p.l.cfg.DB.Signals(p.topic())
	defer stop()
	look := time.NewTicker(awaitLook)
	defer look.Stop()
	for {
		behind, err := p.behind(ctx, seq)
		if err == nil && behind == 0 {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-wake:
		case <-look.C:
		case <-ctx.Done():
			return fault.Unavailable("%d other instances were not heard of in time", behind)
		}
	}
}

// behind counts the others that are not at seq.
func (p *Progress) behind(ctx context.Context, seq uint64) (n int, err error) {
	now := p.l.cfg.Now()
	err = p.l.cfg.DB.Reader().QueryRowContext(ctx, "SELECT COUNT(*) FROM progress WHERE feed = $1 AND instance <> $2 AND seq < $3 AND beat_time > $4",
		p.feed, p.l.cfg.Holder, int64(seq), now.Add(-absentAfter).UnixMicro()).Scan(&n)
	return n, sqldb.Fault(err)
}
