package history

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history/internal/store"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history/internal/store/db"
)

// Migrations brings the tables of run history into a database.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "history", FS: store.Migrations, Dir: "migrations"}
}

// Config of Stores. Shared and Keys are required.
type Config struct {
	// Shared is the database, with Migrations, of every workspace that has none of its own.
	Shared *sqldb.DB
	// Keys has the workspaces' data keys.
	Keys *envelope.Keyring
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger takes what an operator should know; nil discards.
	Logger *slog.Logger
}

// Stores gives each workspace the store of its history.
type Stores struct{ shared *Store }

// Open starts the stores. They must be closed before their databases.
func Open(cfg Config) (*Stores, error) {
	if cfg.Shared == nil || cfg.Keys == nil {
		return nil, errors.New("history: Shared and Keys are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Stores{shared: newStore(cfg)}, nil
}

// Store is where the history of a workspace is kept.
func (s *Stores) Store(string) *Store { return s.shared }

// Each calls fn with every store that is open, until it fails.
func (s *Stores) Each(fn func(*Store) error) error { return fn(s.shared) }

// Close ends the stores; batches that are not in a transaction yet are refused. It may be called more than once.
func (s *Stores) Close() { s.shared.close() }

// Run names a run by what never changes.
type Run struct{ UID, WorkspaceUID string }

// Store keeps the history of runs in one database. It is safe for concurrent use.
type Store struct {
	cfg   Config
	db    *sqldb.DB
	queue chan *pending
	stop  chan struct{}
	once  sync.Once
	ended chan struct{}

	mu       sync.Mutex
	watchers map[string]map[chan struct{}]struct{} // by run uid
}

func newStore(cfg Config) *Store {
	s := &Store{
		cfg: cfg, db: cfg.Shared, queue: make(chan *pending, queueLength), stop: make(chan struct{}), ended: make(chan struct{}),
		watchers: make(map[string]map[chan struct{}]struct{}),
	}
	go s.commitLoop()
	return s
}

func (s *Store) close() {
	s.once.Do(func() { close(s.stop) })
	<-s.ended
}

func (s *Store) key(ctx context.Context, run Run) (*box, error) {
	return newBox(ctx, s.cfg.Keys, run)
}

// Ready reports why the database cannot be used, or nil.
func (s *Store) Ready(ctx context.Context) error {
	_, err := db.New(s.db.Reader()).CountPurged(ctx, "")
	return sqldb.Fault(err)
}

// subscribe gives a channel that has a token after each commit that touched the run.
func (s *Store) subscribe(runUID string) (wake <-chan struct{}, end func()) {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers[runUID] == nil {
		s.watchers[runUID] = make(map[chan struct{}]struct{})
	}
	s.watchers[runUID][ch] = struct{}{}
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers[runUID], ch)
		if len(s.watchers[runUID]) == 0 {
			delete(s.watchers, runUID)
		}
	}
}

// changed wakes who watches the run.
func (s *Store) changed(runUID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.watchers[runUID] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// DeleteTag removes a tag. record is called in the transaction and may be nil.
//
// Errors: RESOURCE_NOT_FOUND for a tag that is not there; those of the workspace's key, of the database, and of record.
func (s *Store) DeleteTag(ctx context.Context, run Run, name string, record func(ctx context.Context, tx *sqldb.Tx) error) error {
	box, err := s.key(ctx, run)
	if err != nil {
		return err
	}
	return s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		w := newWork(db.New(tx), s.cfg.Now())
		work, err := w.run(ctx, &pending{run: run, box: box})
		var own *refusal
		if errors.As(err, &own) {
			return own.error
		}
		if err != nil {
			return err
		}
		id := textID{kindTag, box.textMAC(kindTag, name)}
		// The tag is opened to know what it counts for in the run's limit. One that is damaged can be removed all the same.
		tag, err := w.text(ctx, work, id)
		switch {
		case errors.As(err, &own) && fault.Is(own.error, codes.DataLoss):
			tag = &textWork{}
		case errors.As(err, &own):
			return own.error
		case err != nil:
			return err
		case !tag.known:
			return fault.NotFound("the run has no such tag")
		}
		if err := w.q.DeleteText(ctx, db.DeleteTextParams{RunUID: run.UID, Kind: int64(id.kind), KeyMac: id.mac[:]}); err != nil {
			return err
		}
		work.row.Texts--
		work.row.TextBytes -= tag.size()
		work.dirty = true
		if err := w.flush(ctx); err != nil {
			return err
		}
		if record == nil {
			return nil
		}
		return record(ctx, tx)
	})
}

// purgeRuns is how many runs one transaction of Purge removes.
const purgeRuns = 8

// Purge removes everything of a workspace, and takes nothing of it any more. Repeating it is fine.
func (s *Store) Purge(ctx context.Context, workspaceUID string) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return db.New(tx).PutPurged(ctx, db.PutPurgedParams{WorkspaceUID: workspaceUID, PurgeTime: s.cfg.Now().UnixMicro()})
	})
	for more := true; err == nil && more; {
		err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			q := db.New(tx)
			runs, err := q.RunsOfWorkspace(ctx, db.RunsOfWorkspaceParams{WorkspaceUID: workspaceUID, Most: purgeRuns})
			if err != nil {
				return err
			}
			more = len(runs) == purgeRuns
			for _, run := range runs {
				if err := removeRun(ctx, q, run); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return err
	}
	return s.db.Scrub(ctx)
}

func removeRun(ctx context.Context, q *db.Queries, run string) error {
	for _, remove := range []func(context.Context, string) error{q.DeleteChunks, q.DeleteLatest, q.DeleteTexts, q.DeleteBatches, q.DeleteRun} {
		if err := remove(ctx, run); err != nil {
			return err
		}
	}
	return nil
}

// Forget removes the ids of batches that are older than BatchMemory, some thousands at once.
func (s *Store) Forget(ctx context.Context, write sqldb.WriteFunc) error {
	const most = 5000
	for {
		var gone int64
		err := write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			var err error
			gone, err = db.New(tx).ForgetBatches(ctx, db.ForgetBatchesParams{Before: s.cfg.Now().Add(-BatchMemory).UnixMicro(), Most: most})
			return err
		})
		if err != nil || gone < most {
			return err
		}
	}
}

func errNoRun() error {
	return fault.NotFound("there is no such run, or it has been deleted")
}

func errFull(what string, most int) error {
	return fault.New(codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED, "the run has %d %s, which is the most that is kept; nothing of the batch was stored", most, what)
}

func errDamaged(what string) error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "%s is damaged: it is not what was stored", what)
}
