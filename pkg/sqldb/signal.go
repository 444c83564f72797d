package sqldb

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	mathrand "math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// maxTopics bounds the topics of one transaction, and of each member of a group.
	maxTopics = 16
	// listenLook is after how long of silence the listener asks its server whether the connection still stands, and listenPatience
	// how long that may take.
	listenLook, listenPatience = 10 * time.Second, 5 * time.Second
	// The waits before the listener connects again double from the first to the last.
	firstListen, lastListen = 50 * time.Millisecond, 2 * time.Second
)

// topicForm is what a topic looks like: "authorization", "runs/run_0123".
var topicForm = regexp.MustCompile(`^[a-z][a-z0-9._/-]{0,99}$`)

// Signal tells whoever waits on Signals(topic), in this process and in all others that have the same schema open, that there is something
// new to read, once the transaction is committed. It carries nothing but the topic: what is new stands in the database. A
// transaction signals a topic once, however often it is asked to, and 16 topics at most; in a group that counts for each member.
//
// A topic is 1 to 100 characters of a-z, 0-9, '.', '_', '/' and '-', and begins with a letter.
func (t *Tx) Signal(ctx context.Context, topic string) error {
	switch {
	case t.db == nil:
		return fault.Internal(nil, "a signal in a transaction that only reads")
	case !topicForm.MatchString(topic):
		return fault.Internal(nil, "a signal's topic is not one")
	case t.topics[topic]:
		return nil
	case t.signalled == maxTopics:
		return fault.Internal(nil, "a transaction signals more than %d topics", maxTopics)
	}
	if t.db.dialect == Postgres {
		if _, err := t.tx.ExecContext(ctx, "SELECT pg_notify($1, $2)", t.db.signals.channel, t.db.signals.own+" "+topic); err != nil {
			return err
		}
	}
	if t.topics == nil {
		t.topics = make(map[string]bool, 1)
	}
	t.topics[topic] = true
	t.signalled++
	return nil
}

// Signals gives a channel that receives after a commit that signalled topic, in this process or in another one. Signals that come
// while nobody receives become one. It also receives when something may have been missed: after the connection that listens was
// made, or made again. So who reads the database after Signals has returned, and then after each receive, misses nothing that
// is committed; and he must be ready to find nothing new. A database that cannot be reached delays what other processes
// signalled until it can: who must not wait for that looks at the database by a clock besides.
//
// stop ends the subscription; the channel is never closed.
func (db *DB) Signals(topic string) (wake <-chan struct{}, stop func()) {
	s := &db.signals
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[topic] == nil {
		s.waiting[topic] = make(map[chan struct{}]bool)
	}
	s.waiting[topic][c] = true
	if db.dialect == Postgres && s.done == nil {
		select {
		case <-db.closed:
		default:
			s.done = make(chan struct{})
			var ctx context.Context
			ctx, s.cancel = context.WithCancel(context.Background())
			go db.listen(ctx)
		}
	}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waiting[topic], c)
		if len(s.waiting[topic]) == 0 {
			delete(s.waiting, topic)
		}
	}
}

// signals is who waits for what, and the connection that hears of other processes.
type signals struct {
	channel string // of PostgreSQL, the schema's own
	own     string // begins what this process signals: it is told of its own commits without the server
	config  *pgx.ConnConfig

	mu      sync.Mutex
	waiting map[string]map[chan struct{}]bool
	cancel  context.CancelFunc
	done    chan struct{} // closed when the listener has ended; nil where none was started
}

// prepare is for PostgreSQL. Channels belong to a whole database, so each schema has one of its own. Whoever may connect to the database
// can send on it: that costs those who wait a look at the database.
func (s *signals) prepare(config *pgx.ConnConfig, schema string) {
	sum := sha256.Sum256([]byte("redoubt sqldb signals " + schema))
	s.channel = "redoubt_" + hex.EncodeToString(sum[:16])
	s.own = strings.ToLower(rand.Text())
	s.config = config
}

// signalled wakes who waits for the topics of a transaction.
func (db *DB) signalled(topics map[string]bool) {
	if len(topics) == 0 {
		return
	}
	db.signals.mu.Lock()
	defer db.signals.mu.Unlock()
	for topic := range topics {
		wakeAll(db.signals.waiting[topic])
	}
}

func wakeAll(waiting map[chan struct{}]bool) {
	for c := range waiting {
		select {
		case c <- struct{}{}:
		default: // it has one that was not received yet
		}
	}
}

// stop ends the listener and waits for it.
func (s *signals) stop() {
	s.mu.Lock()
	cancel, done := s.cancel, s.done
	s.mu.Unlock()
	if done != nil {
		cancel()
		<-done
	}
}

// listen hears what other processes signal until ctx ends. After each connection that it makes, all are woken: what was signalled
// before that is not told again.
func (db *DB) listen(ctx context.Context) {
	defer close(db.signals.done)
	for wait := firstListen; ctx.Err() == nil; {
		began := db.now()
		err := db.hear(ctx)
		if ctx.Err() != nil {
			return
		}
		if db.now().Sub(began) > lastListen {
			wait = firstListen
		}
		db.log.WarnContext(ctx, "what other instances change is not heard of for a moment: the connection that listens was lost", "error", err, "retry", wait)
		t := time.NewTimer(wait/2 + mathrand.N(wait/2+1))
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		wait = min(2*wait, lastListen)
	}
}

// hear listens on a connection of its own until it breaks.
func (db *DB) hear(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(bounded, db.signals.config)
	if err != nil {
		return Fault(err)
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(bye)
	}()
	if _, err := conn.Exec(bounded, "LISTEN "+pgx.Identifier{db.signals.channel}.Sanitize()); err != nil {
		return Fault(err)
	}
	db.wakeEverybody()
	for {
		quiet, cancel := context.WithTimeout(ctx, listenLook)
		n, err := conn.WaitForNotification(quiet)
		silent := quiet.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case n != nil:
			own, topic, ok := strings.Cut(n.Payload, " ")
			if ok && own != db.signals.own && topicForm.MatchString(topic) {
				db.signalled(map[string]bool{topic: true})
			}
		case err != nil && !silent || conn.IsClosed():
			return Fault(err)
		default: // a connection that only looks open would be silent for ever
			ask, cancel := context.WithTimeout(ctx, listenPatience)
			err := conn.Ping(ask)
			cancel()
			if err != nil {
				return Fault(err)
			}
		}
	}
}

func (db *DB) wakeEverybody() {
	db.signals.mu.Lock()
	defer db.signals.mu.Unlock()
	for _, waiting := range db.signals.waiting {
		wakeAll(waiting)
	}
}
