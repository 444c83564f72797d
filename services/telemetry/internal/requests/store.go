package requests

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/requests/internal/store"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/requests/internal/store/db"
)

// Migrations brings the tables of the request log into a database.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "requests", FS: store.Migrations, Dir: "migrations"}
}

const (
	// DefaultRetention is how long requests are kept.
	DefaultRetention = 30 * 24 * time.Hour
	// sourceMemory is how long a source that sends nothing is remembered. One that comes back later is taken for a new one.
	sourceMemory = 90 * 24 * time.Hour
	// deleteChunks is how many chunks one transaction removes.
	deleteChunks = 200
)

// Config of a Store. DB and Keys are required.
type Config struct {
	// DB has the tables of Migrations.
	DB *sqldb.DB
	// Keys has the workspaces' data keys.
	Keys *envelope.Keyring
	// Retention is how long requests are kept; 0 means DefaultRetention.
	Retention time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger takes what an operator should know; nil discards.
	Logger *slog.Logger
}

// Store is safe for concurrent use.
type Store struct {
	cfg Config

	mu       sync.Mutex
	watchers map[string]map[chan struct{}]struct{} // by uid of the endpoint
}

// New makes the Store.
func New(cfg Config) (*Store, error) {
	if cfg.DB == nil || cfg.Keys == nil {
		return nil, errors.New("requests: DB and Keys are required")
	}
	if cfg.Retention <= 0 {
		cfg.Retention = DefaultRetention
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Store{cfg: cfg, watchers: make(map[string]map[chan struct{}]struct{})}, nil
}

// Ready reports why the database cannot be used, or nil.
func (s *Store) Ready(ctx context.Context) error {
	_, err := db.New(s.cfg.DB.Reader()).GetHead(ctx)
	return sqldb.Fault(err)
}

// Dropped is how many requests were not kept, of all sources.
func (s *Store) Dropped(ctx context.Context) (n int64, err error) {
	err = s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		head, err := q.GetHead(ctx)
		if err != nil {
			return err
		}
		sum, err := q.SumDropped(ctx)
		n = head.Dropped + sum
		return err
	})
	return n, err
}

// Sweep removes requests that are older than they are kept, and sources that have long been silent.
func (s *Store) Sweep(ctx context.Context, write sqldb.WriteFunc) error {
	now := s.cfg.Now()
	before := minuteOf(now.Add(-s.cfg.Retention).UnixMicro())
	err := s.removeAll(ctx, write, func(ctx context.Context, q *db.Queries) (int64, error) {
		return q.DeleteOldChunks(ctx, db.DeleteOldChunksParams{Before: before, Most: deleteChunks})
	})
	if err != nil {
		return err
	}
	silent := now.Add(-max(sourceMemory, s.cfg.Retention)).UnixMicro()
	return write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		lost, err := q.SumOldDropped(ctx, silent)
		if err != nil {
			return err
		}
		if lost > 0 {
			if err := q.AddDropped(ctx, lost); err != nil {
				return err
			}
		}
		return q.DeleteOldSources(ctx, silent)
	})
}

// Purge removes everything of a workspace, and takes nothing of it any more. Repeating it is fine.
func (s *Store) Purge(ctx context.Context, workspaceUID string) error {
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return db.New(tx).PutPurged(ctx, db.PutPurgedParams{WorkspaceUID: workspaceUID, PurgeTime: s.cfg.Now().UnixMicro()})
	})
	if err != nil {
		return err
	}
	return s.removeAll(ctx, s.cfg.DB.Write, func(ctx context.Context, q *db.Queries) (int64, error) {
		return q.DeleteChunksOfWorkspace(ctx, db.DeleteChunksOfWorkspaceParams{WorkspaceUID: workspaceUID, Most: deleteChunks})
	})
}

// removeAll repeats a removal of at most deleteChunks chunks, each in a transaction of its own, until nothing is left.
func (s *Store) removeAll(ctx context.Context, write sqldb.WriteFunc, remove func(ctx context.Context, q *db.Queries) (int64, error)) error {
	for {
		var gone int64
		err := write(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
			gone, err = remove(ctx, db.New(tx))
			return err
		})
		if err != nil || gone < deleteChunks {
			return err
		}
	}
}
