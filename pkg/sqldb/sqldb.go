package sqldb

import (
	"context"
	"database/sql"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// Dialect says which engine keeps the data. The zero value is refused.
type Dialect int

const (
	// SQLite keeps the data in one file, opened by one process.
	SQLite Dialect = iota + 1
	// Postgres keeps the data in one schema of a PostgreSQL database.
	Postgres
)

// String is the name of the engine, as it stands in configuration.
func (d Dialect) String() string {
	switch d {
	case SQLite:
		return "sqlite"
	case Postgres:
		return "postgres"
	default:
		return "unknown"
	}
}

// MigrationSet is a folder of goose migrations (NNNNN_name.sql, one SQL text for both engines). Each set keeps its own version
// table, goose_<Name>, so that a library (the outbox, the data keys) brings its tables into a service's database.
type MigrationSet struct {
	// Name is [a-z][a-z0-9_]*, at most 40 characters, and never changes once it was used.
	Name string
	// FS holds the files, Dir the folder in it; an empty Dir is the top.
	FS  fs.FS
	Dir string
}

// Config says what to open. Driver, Finish, and Path or DSN are required.
type Config struct {
	Driver Dialect
	// Path is the SQLite file. Its folder must exist and be writable.
	Path string
	// DSN is the PostgreSQL connection string or URL.
	DSN redact.Secret
	// Schema is the PostgreSQL schema to live in, made if it is missing; empty means the role's default. [a-z][a-z0-9_]*.
	Schema string
	// Migrations are applied in this order.
	Migrations []MigrationSet
	// Finish is passed by every commit: it calls commit exactly once, or not at all and returns why. Errors of commit are faults.
	Finish func(ctx context.Context, commit func() error) error
	// Logger takes what an operator should know; nil discards.
	Logger *slog.Logger
	// Now is the clock that measures how long the writer is held; nil means time.Now.
	Now func() time.Time

	restore *restoring // set by Restore
}

const (
	// busyTimeout is how long SQLite waits for a lock; only checkpoints and readers of the same process can hold one.
	busyTimeout = 5 * time.Second
	// commitTimeout is how long a COMMIT may take once it was sent; it does not end with the caller's context.
	commitTimeout = 30 * time.Second
	// openTimeout bounds each step of Open that waits for the server.
	openTimeout = 10 * time.Second
	// idleInTransaction is after how long PostgreSQL ends a transaction whose process does not go on, and frees the writer. The fence
	// counts on it: what a paused process was about to commit is over by then.
	idleInTransaction = IdleInTransaction
	// slowWrite is from when on a held writer is worth a line in the log.
	slowWrite = time.Second
)

// IdleInTransaction is how long PostgreSQL lets a transaction stand whose process is silent. A server or pooler that does not is refused.
const IdleInTransaction = 2 * time.Second

var identifier = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// DB is an open database. It is safe for concurrent use.
type DB struct {
	dialect Dialect
	finish  func(ctx context.Context, commit func() error) error
	log     *slog.Logger
	now     func() time.Time

	writer *sql.DB // one connection
	reader *sql.DB // read-only by the engine
	// What is kept prepared of both, nil on PostgreSQL.
	written, read *statements

	lock   *os.File
	advise int64 // PostgreSQL: the advisory lock of the schema's writer
	lives  *Lives

	gate   chan struct{} // holds one token while a write transaction runs; channels are first come, first served
	closed chan struct{}
	once   sync.Once
	broken atomic.Bool // an fsync failed

	sets       []MigrationSet
	snapshots  atomic.Int64 // that are open
	scrubLater atomic.Bool

	queueMu sync.Mutex
	queue   []*member

	signals signals
}

// Open opens the database, applies the migrations that are missing, and returns it ready to serve. Its errors are for the operator:
// they name the file or the server.
func Open(ctx context.Context, c Config) (*DB, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	db := &DB{
		dialect: c.Driver,
		finish:  c.Finish,
		log:     c.Logger,
		now:     c.Now,
		gate:    make(chan struct{}, 1),
		closed:  make(chan struct{}),
		sets:    c.Migrations,
		signals: signals{waiting: make(map[string]map[chan struct{}]bool)},
	}
	if db.log == nil {
		db.log = slog.New(slog.DiscardHandler)
	}
	if db.now == nil {
		db.now = time.Now
	}
	open := db.openSQLite
	if c.Driver == Postgres {
		open = db.openPostgres
	}
	if err := open(ctx, c); err != nil {
		_ = db.release()
		return nil, err
	}
	return db, nil
}

func (c Config) check() error {
	switch {
	case c.Finish == nil:
		return fault.Internal(nil, "sqldb: Config.Finish is required")
	case c.Driver == SQLite && c.Path == "":
		return fault.InvalidArgument("the path of the SQLite file is missing")
	case c.Driver == Postgres && c.DSN.Empty():
		return fault.InvalidArgument("the PostgreSQL connection string is missing")
	case c.Driver != SQLite && c.Driver != Postgres:
		return fault.InvalidArgument("the database driver must be sqlite or postgres")
	case c.Schema != "" && !identifier.MatchString(c.Schema):
		return fault.InvalidArgument("the schema name must be lower-case letters, digits and underscores, at most 40 characters")
	}
	names := make(map[string]bool, len(c.Migrations))
	for _, set := range c.Migrations {
		if !identifier.MatchString(set.Name) || set.FS == nil || names[set.Name] {
			return fault.Internal(nil, "sqldb: the migration set %q needs a name of its own and files", set.Name)
		}
		names[set.Name] = true
	}
	return nil
}

// Dialect says which engine it is.
func (db *DB) Dialect() Dialect { return db.dialect }

// Close waits for the write transaction that runs, refuses later ones, and gives the file free. It may be called more than once.
func (db *DB) Close() error {
	var err error
	db.once.Do(func() {
		close(db.closed)
		db.signals.stop()
		db.gate <- struct{}{} // never given back
		err = db.release()
	})
	return err
}

// release closes what Open got so far, of SQLite the writer last: the last connection of a file folds the WAL into it.
func (db *DB) release() error {
	var first error
	pools := []*sql.DB{db.reader, db.writer}
	if db.lives != nil {
		pools = append(pools, db.lives.pool)
	}
	for _, pool := range pools {
		if pool == nil {
			continue
		}
		if err := pool.Close(); err != nil && first == nil {
			first = Fault(err)
		}
	}
	if db.lock != nil {
		// Closing the file drops the flock. It is not removed: a second process could then lock another file of the same name.
		if err := db.lock.Close(); err != nil && first == nil {
			first = fault.Internal(err, "the database lock could not be released")
		}
	}
	return first
}

// Scrub takes what was deleted out of the write-ahead log, so that it is not left on disk until the log is used again. It is best
// effort: a reader that holds an old snapshot keeps it; while a backup reads, it is done after that. PostgreSQL has its own ways, and Scrub does nothing there.
func (db *DB) Scrub(ctx context.Context) error {
	if db.dialect != SQLite {
		return nil
	}
	if db.snapshots.Load() > 0 { // SQLite would wait for it, and every writer with it
		db.scrubLater.Store(true)
		return nil
	}
	if err := db.enter(ctx); err != nil {
		return err
	}
	defer db.leave()
	var busy, frames, moved int64
	err := db.writer.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &moved)
	return db.observe(err, false)
}

// readers is the size of the reader pool.
func readers() int { return max(4, runtime.GOMAXPROCS(0)) }
