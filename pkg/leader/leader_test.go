package leader_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func sets() []sqldb.MigrationSet { return []sqldb.MigrationSet{leader.Migrations()} }

// vote is an election of which the test decides everything.
type vote struct {
	mu       sync.Mutex
	holder   string            // who is elected
	changed  chan struct{}     // closed and replaced with holder
	lose     bool              // whether those who are voted out are told
	asked    func(name string) // called before Held answers
	revision int64
}

func newVote() *vote { return &vote{changed: make(chan struct{})} }

func (v *vote) elect(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.holder = name
	v.revision++
	close(v.changed)
	v.changed = make(chan struct{})
}

// candidate is one instance's side of a vote.
type candidate struct {
	v    *vote
	name string
}

func (c candidate) Campaign(ctx context.Context, _ string) (leader.Seat, error) {
	for {
		c.v.mu.Lock()
		won, changed, revision := c.v.holder == c.name, c.v.changed, c.v.revision
		c.v.mu.Unlock()
		if won {
			return &seat{candidate: c, revision: revision, changed: changed}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type seat struct {
	candidate
	revision int64
	changed  chan struct{}
}

func (s *seat) Origin() (uint64, int64) { return 7, s.revision }

func (s *seat) Held(ctx context.Context) error {
	s.v.mu.Lock()
	asked := s.v.asked
	held := s.v.holder == s.name && s.v.revision == s.revision
	s.v.mu.Unlock()
	if asked != nil {
		asked(s.name)
	}
	if !held {
		return fault.Unavailable("not elected")
	}
	return ctx.Err()
}

func (s *seat) Lost() <-chan struct{} {
	if s.v.lose {
		return s.changed
	}
	return nil
}

func (s *seat) Resign() {}

func open(t *testing.T, db *sqldb.DB, e leader.Election, name string) *leader.Leader {
	t.Helper()
	l, err := leader.New(leader.Config{DB: db, Election: e, Holder: name})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// led is a leadership that the test steers.
type led struct {
	ctx  context.Context
	term *leader.Term
	end  func() // lets the function return
}

// lead runs a Leader in the background and gives each of its leaderships.
func lead(t *testing.T, l *leader.Leader, role string) <-chan led {
	t.Helper()
	out := make(chan led)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Lead(ctx, role, func(life context.Context, term *leader.Term) error {
			over, end := context.WithCancel(ctx)
			defer end()
			select {
			case out <- led{life, term, end}:
			case <-ctx.Done():
				return nil
			}
			<-over.Done()
			return nil
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return out
}

func get(t *testing.T, from <-chan led) led {
	t.Helper()
	select {
	case l := <-from:
		return l
	case <-time.After(10 * time.Second):
		t.Fatal("nobody leads")
		return led{}
	}
}

func nothing(context.Context, *sqldb.Tx) error { return nil }

// A leader of yesterday, whose own context still lives, writes nothing: whoever claimed last writes.
func TestALeaderOfYesterdayWritesNothing(t *testing.T) {
	c := sqldbtest.Postgres(t, sets()...)
	da, db := sqldbtest.OpenConfig(t, c), sqldbtest.OpenConfig(t, c)
	v := newVote()
	first := lead(t, open(t, da, candidate{v, "a"}, "a"), "relay")
	second := lead(t, open(t, db, candidate{v, "b"}, "b"), "relay")

	v.elect("a")
	a := get(t, first)
	if err := a.term.Write(t.Context(), nothing); err != nil {
		t.Fatalf("the leader's write: %v", err)
	}
	v.elect("b") // a hears nothing of it: it is paused, say
	b := get(t, second)
	if b.term.Number() <= a.term.Number() {
		t.Errorf("term %d after %d", b.term.Number(), a.term.Number())
	}
	if a.ctx.Err() != nil {
		t.Fatal("the test is of a leader who does not know")
	}
	if err := b.term.Write(t.Context(), nothing); err != nil {
		t.Fatalf("the new leader's write: %v", err)
	}
	ran := false
	for name, write := range map[string]func(context.Context, func(context.Context, *sqldb.Tx) error) error{"Write": a.term.Write, "WriteGrouped": a.term.WriteGrouped} {
		err := write(t.Context(), func(context.Context, *sqldb.Tx) error { ran = true; return nil })
		if !errors.Is(err, leader.ErrOver) || fault.Code(err) != codes.Unavailable || ran {
			t.Errorf("%s: %v, function run: %v", name, err, ran)
		}
	}
	if a.ctx.Err() == nil {
		t.Error("the refusal did not end the leadership")
	}
	if err := b.term.Write(t.Context(), nothing); err != nil {
		t.Errorf("the new leader's write: %v", err)
	}
	// The old one may lead again, with a new term, and the other one's ends.
	v.elect("a")
	a.end()
	again := get(t, first)
	if err := again.term.Write(t.Context(), nothing); err != nil {
		t.Errorf("elected again: %v", err)
	}
	if err := b.term.Write(t.Context(), nothing); !errors.Is(err, leader.ErrOver) {
		t.Errorf("got %v", err)
	}
	if err := a.term.Write(t.Context(), nothing); !errors.Is(err, leader.ErrOver) {
		t.Errorf("a's first term is over for ever: %v", err)
	}
}

// Whoever was elected, and pauses between the election and its claim, claims nothing when it comes back.
func TestAStaleWinnerCannotKeepTheLeaderOut(t *testing.T) {
	c := sqldbtest.Postgres(t, sets()...)
	da, db := sqldbtest.OpenConfig(t, c), sqldbtest.OpenConfig(t, c)
	v := newVote()
	paused, on := make(chan struct{}), make(chan struct{})
	var once sync.Once
	v.asked = func(name string) {
		if name == "a" { // after etcd's answer, before the claim
			once.Do(func() { close(paused); <-on })
		}
	}
	first := lead(t, open(t, da, candidate{v, "a"}, "a"), "relay")
	second := lead(t, open(t, db, candidate{v, "b"}, "b"), "relay")
	v.elect("a")
	<-paused
	v.elect("b")
	b := get(t, second)
	close(on)
	// a's claim was overtaken: it is refused, a asks again, and is not elected.
	select {
	case <-first:
		t.Fatal("the stale winner leads")
	case <-time.After(500 * time.Millisecond):
	}
	if err := b.term.Write(t.Context(), nothing); err != nil {
		t.Errorf("the true leader's write: %v", err)
	}
}

// The other order: the stale winner's claim comes between the true leader's question and its claim. The true leader claims again.
func TestAClaimThatIsOvertakenIsMadeAgain(t *testing.T) {
	c := sqldbtest.Postgres(t, sets()...)
	da, db := sqldbtest.OpenConfig(t, c), sqldbtest.OpenConfig(t, c)
	v := newVote()
	hold := map[string]chan struct{}{"a": make(chan struct{}), "b": make(chan struct{})}
	at := map[string]chan struct{}{"a": make(chan struct{}), "b": make(chan struct{})}
	once := map[string]*sync.Once{"a": {}, "b": {}}
	v.asked = func(name string) { once[name].Do(func() { close(at[name]); <-hold[name] }) }
	first := lead(t, open(t, da, candidate{v, "a"}, "a"), "relay")
	second := lead(t, open(t, db, candidate{v, "b"}, "b"), "relay")
	v.elect("a")
	<-at["a"]
	v.elect("b")
	<-at["b"]
	close(hold["a"])
	a := get(t, first) // it was elected when it asked
	close(hold["b"])
	b := get(t, second)
	if err := b.term.Write(t.Context(), nothing); err != nil {
		t.Errorf("the true leader's write: %v", err)
	}
	if err := a.term.Write(t.Context(), nothing); !errors.Is(err, leader.ErrOver) {
		t.Errorf("the stale winner's write: %v", err)
	}
}

func TestALostSeatEndsTheWork(t *testing.T) {
	c := sqldbtest.Postgres(t, sets()...)
	v := newVote()
	v.lose = true
	all := lead(t, open(t, sqldbtest.OpenConfig(t, c), candidate{v, "a"}, "a"), "relay")
	v.elect("a")
	a := get(t, all)
	v.elect("nobody")
	select {
	case <-a.ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the work goes on without its seat")
	}
}

// On SQLite the process that has the file leads, without an election, and a restart's terms go on.
func TestOneProcessAlwaysLeads(t *testing.T) {
	c := sqldbtest.SQLite(t, sets()...)
	var before int64
	for range 2 {
		db, err := sqldb.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		l := open(t, db, nil, "a")
		ctx, cancel := context.WithCancel(t.Context())
		err = l.Lead(ctx, "relay", func(life context.Context, term *leader.Term) error {
			defer cancel()
			if term.Number() != before+1 {
				t.Errorf("term %d after %d", term.Number(), before)
			}
			before = term.Number()
			if err := l.Lead(life, "relay", nil); err == nil {
				t.Error("one role twice in one process")
			}
			return term.Write(life, nothing)
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNobodyLeadsByTheZeroValue(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	var none *leader.Term
	for _, term := range []*leader.Term{none, {}} {
		if err := term.Write(t.Context(), nothing); !errors.Is(err, leader.ErrOver) {
			t.Errorf("Write: %v", err)
		}
		if err := term.WriteGrouped(t.Context(), nothing); !errors.Is(err, leader.ErrOver) {
			t.Errorf("WriteGrouped: %v", err)
		}
		err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return term.Check(ctx, tx) })
		if !errors.Is(err, leader.ErrOver) {
			t.Errorf("Check: %v", err)
		}
	}
	if _, err := leader.New(leader.Config{DB: db}); err == nil {
		t.Error("a leader without a name")
	}
	if err := open(t, db, nil, "a").Lead(t.Context(), "A role", nil); fault.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	c := sqldbtest.Postgres(t, sets()...)
	if _, err := leader.New(leader.Config{DB: sqldbtest.OpenConfig(t, c), Holder: "a"}); err == nil {
		t.Error("instances that share a database, and no election")
	}
}

func TestInstancesWaitForEachOther(t *testing.T) {
	c := sqldbtest.Postgres(t, sets()...)
	instance := func(name string) *leader.Progress {
		return open(t, sqldbtest.OpenConfig(t, c), candidate{newVote(), name}, name).Progress("feed")
	}
	a, b := instance("a"), instance("b")
	run := func(p *leader.Progress) (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); p.Run(ctx) }()
		return func() { cancel(); <-done }
	}
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if err := a.Await(soon(), 7); err != nil {
		t.Errorf("alone: %v", err)
	}
	defer run(a)()
	b.Reached(6)
	stopB := run(b)
	for { // until a knows of b
		if err := a.Await(soon(), 7); fault.Code(err) == codes.Unavailable {
			break
		}
	}
	waited := make(chan error, 1)
	go func() { waited <- a.Await(t.Context(), 7) }()
	b.Reached(8)
	b.Reached(3)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := a.Await(soon(), 9); fault.Code(err) != codes.Unavailable {
		t.Errorf("b is not at 9: %v", err)
	}
	stopB()
	if err := a.Await(soon(), 9); err != nil {
		t.Errorf("b has left: %v", err)
	}
}
