package leader

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

//go:embed migrations/*.sql
var files embed.FS

// Migrations brings the table of terms into a service's database.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "leader", FS: files, Dir: "migrations"}
}

// Election elects one of the instances that campaign for a role.
type Election interface {
	// Campaign waits until this instance is elected, or ctx ends, or it cannot stand any more.
	Campaign(ctx context.Context, role string) (Seat, error)
}

// Seat is an election that was won.
type Seat interface {
	// Origin says which etcd elected, and at which of its revisions.
	Origin() (cluster uint64, revision int64)
	// Held returns nil if the seat is held at some moment after it was called: it asks a quorum.
	Held(ctx context.Context) error
	// Lost is closed when the seat is lost, as far as this process knows.
	Lost() <-chan struct{}
	// Resign gives the seat up, so that another one is elected at once. It does not wait for long.
	Resign()
}

// Config of a Leader. DB and Holder are required, and Election on PostgreSQL.
type Config struct {
	// DB has the table of Migrations.
	DB *sqldb.DB
	// Election decides between instances. Nil only on SQLite, where one process has the database.
	Election Election
	// Holder is this instance's name, "identity-a".
	Holder string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger takes what an operator should know; nil discards.
	Logger *slog.Logger
}

const (
	// askTimeout bounds one question to etcd, and writeTimeout one claim.
	askTimeout, writeTimeout = 5 * time.Second, 30 * time.Second
	// claims is how often a claim that was overtaken is tried again before the role is campaigned for anew.
	claims = 5
	// Waits between campaigns double from the first to the last.
	firstPause, lastPause = 100 * time.Millisecond, 5 * time.Second
)

// ErrOver is the cause of the fault that refuses what a leader of yesterday writes: ask with errors.Is.
var ErrOver = errors.New("leader: the term is over")

var roleForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,39}$`)

// Leader is safe for concurrent use.
type Leader struct {
	cfg Config

	mu    sync.Mutex
	roles map[string]bool // that Lead runs for: true while this instance leads
}

// New makes a Leader for the roles of one service.
func New(cfg Config) (*Leader, error) {
	switch {
	case cfg.DB == nil || cfg.Holder == "":
		return nil, errors.New("leader: DB and Holder are required")
	case cfg.Election == nil && cfg.DB.Dialect() != sqldb.SQLite:
		return nil, errors.New("leader: instances that share a database need an Election")
	case cfg.DB.Dialect() == sqldb.SQLite:
		cfg.Election = alone{} // the file's lock has decided
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Leader{cfg: cfg, roles: make(map[string]bool)}, nil
}

// Lead runs fn whenever this instance leads in role, until ctx ends; it returns ctx's error then. fn's context ends with the leadership,
// and fn must return soon after that; what it writes it writes by its term. When fn returns before, with or without an error, the
// role is given up and campaigned for again after a pause.
//
// A role is 1 to 40 characters of a-z, 0-9 and '-'. A process leads in a role once at a time.
func (l *Leader) Lead(ctx context.Context, role string, fn func(ctx context.Context, term *Term) error) error {
	if !roleForm.MatchString(role) {
		return fault.Internal(nil, "%q is no role", role)
	}
	l.mu.Lock()
	_, twice := l.roles[role]
	if !twice {
		l.roles[role] = false
	}
	l.mu.Unlock()
	if twice {
		return fault.Internal(nil, "the role %s is led twice in one process", role)
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.roles, role)
	}()
	for pause := firstPause; ; {
		began := l.cfg.Now()
		err := l.once(ctx, role, fn)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if l.cfg.Now().Sub(began) > 2*lastPause {
			pause = firstPause
		}
		if err != nil {
			l.cfg.Logger.WarnContext(ctx, "the role is not led by this instance for now", "role", role, "error", err, "retry", pause)
		}
		t := time.NewTimer(pause/2 + mathrand.N(pause/2))
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		pause = min(2*pause, lastPause)
	}
}

// Leading are the roles in which this instance leads now, as far as it knows, in order.
func (l *Leader) Leading() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for role, leads := range l.roles {
		if leads {
			out = append(out, role)
		}
	}
	slices.Sort(out)
	return out
}

func (l *Leader) leads(role string, yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roles[role] = yes
}

// once is one leadership.
func (l *Leader) once(ctx context.Context, role string, fn func(ctx context.Context, term *Term) error) error {
	seat, err := l.cfg.Election.Campaign(ctx, role)
	if err != nil {
		return err
	}
	defer seat.Resign()
	life, end := context.WithCancel(ctx)
	defer end()
	term, err := l.claim(life, role, seat)
	if err != nil {
		return err
	}
	term.end = end
	go func() {
		select {
		case <-seat.Lost():
			end()
		case <-life.Done():
		}
	}()
	l.cfg.Logger.InfoContext(ctx, "this instance leads", "role", role, "term", term.number)
	l.leads(role, true)
	defer l.leads(role, false)
	err = fn(life, term)
	if life.Err() != nil && ctx.Err() == nil {
		return ended(nil)
	}
	return err
}

// claim raises the role's term. See the package comment for why the question stands between the read and the write.
func (l *Leader) claim(ctx context.Context, role string, seat Seat) (*Term, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	cluster, revision := seat.Origin()
	term := &Term{db: l.cfg.DB, role: role, claim: rand.Text()}
	for range claims {
		before, err := current(ctx, l.cfg.DB.Reader(), role)
		if err != nil {
			return nil, sqldb.Fault(err)
		}
		if err := held(ctx, seat); err != nil {
			return nil, err
		}
		overtaken := false
		err = l.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			now, err := current(ctx, tx, role)
			if err != nil {
				return err
			}
			if overtaken = now != before; overtaken {
				return ended(nil)
			}
			term.number = before.term + 1
			_, err = tx.ExecContext(ctx, `INSERT INTO leader (role, term, claim, holder, cluster, revision, claim_time) VALUES ($1, $2, $3, $4, $5, $6, $7)
				ON CONFLICT (role) DO UPDATE SET term = excluded.term, claim = excluded.claim, holder = excluded.holder,
				cluster = excluded.cluster, revision = excluded.revision, claim_time = excluded.claim_time`,
				role, term.number, term.claim, l.cfg.Holder, strconv.FormatUint(cluster, 16), revision, l.cfg.Now().UnixMicro())
			return err
		})
		if err == nil {
			return term, nil
		}
		if !overtaken {
			return nil, err
		}
	}
	return nil, fault.Aborted("the role %s is claimed by others again and again: do two etcd clusters elect for one database?", role)
}

func held(ctx context.Context, seat Seat) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return seat.Held(ctx)
}

// claimed is what stands in the table.
type claimed struct {
	term  int64
	claim string
}

// current reads who claimed the role; the zero value where nobody has yet.
func current(ctx context.Context, q sqldb.DBTX, role string) (c claimed, err error) {
	err = q.QueryRowContext(ctx, "SELECT term, claim FROM leader WHERE role = $1", role).Scan(&c.term, &c.claim)
	if errors.Is(err, sql.ErrNoRows) {
		return claimed{}, nil
	}
	return c, err
}

func ended(cause error) error {
	return fault.Wrap(errors.Join(ErrOver, cause), codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "another instance leads now, and nothing was changed; repeat the call")
}

// Term is one leadership. The zero value and nil may write nothing.
type Term struct {
	db     *sqldb.DB
	role   string
	number int64
	claim  string
	end    context.CancelFunc
}

// Number is the term's number: higher than that of every earlier leader in the role.
func (t *Term) Number() int64 { return t.number }

// Check returns nil if the term is still the role's last, and stays so until tx ends. Else it ends the leadership, and its error, of
// which the cause is ErrOver, must be returned from the transaction. It must be the first statement of what a leader writes.
func (t *Term) Check(ctx context.Context, tx *sqldb.Tx) error {
	if t == nil || t.claim == "" {
		return ended(nil)
	}
	now, err := current(ctx, tx, t.role)
	if err != nil {
		return err
	}
	if now != (claimed{t.number, t.claim}) {
		if t.end != nil {
			t.end()
		}
		return ended(nil)
	}
	return nil
}

// Write is sqldb's Write for a leader: fn runs after Check, in its transaction.
func (t *Term) Write(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error {
	if t == nil || t.db == nil {
		return ended(nil)
	}
	return t.db.Write(ctx, t.checked(fn))
}

// WriteGrouped is sqldb's WriteGrouped for a leader.
func (t *Term) WriteGrouped(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error {
	if t == nil || t.db == nil {
		return ended(nil)
	}
	return t.db.WriteGrouped(ctx, t.checked(fn))
}

func (t *Term) checked(fn func(ctx context.Context, tx *sqldb.Tx) error) func(ctx context.Context, tx *sqldb.Tx) error {
	return func(ctx context.Context, tx *sqldb.Tx) error {
		if err := t.Check(ctx, tx); err != nil {
			return err
		}
		return fn(ctx, tx)
	}
}

// alone elects the only process there is.
type alone struct{}

// Campaign implements Election.
func (alone) Campaign(ctx context.Context, _ string) (Seat, error) { return only{}, ctx.Err() }

type only struct{}

// Origin implements Seat.
func (only) Origin() (uint64, int64) { return 0, 0 }

// Held implements Seat.
func (only) Held(ctx context.Context) error { return ctx.Err() }

// Lost implements Seat.
func (only) Lost() <-chan struct{} { return nil }

// Resign implements Seat.
func (only) Resign() {}
