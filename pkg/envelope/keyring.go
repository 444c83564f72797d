package envelope

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"embed"
	"errors"
	"maps"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// ServiceOwner is the owner of records that belong to no workspace.
const ServiceOwner = "service"

const (
	defaultTTL  = time.Minute
	defaultKeys = 4096
	// loadTimeout bounds one load of a key; no caller's context does, since callers share it.
	loadTimeout = 10 * time.Second
	// loadAttempts is how often a load is repeated that Forget made worthless.
	loadAttempts = 4
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations is the table of wrapped data keys, for sqldb.Config.Migrations of the database that holds the ciphertexts.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "envelope", FS: migrations, Dir: "migrations"}
}

// Config says where keys come from and where their wrapped forms are kept. Source and DB are required.
type Config struct {
	Source Source
	// DB has the migrations of this package.
	DB *sqldb.DB
	// TTL is how long an unwrapped key is used before the source is asked again; 0 means one minute.
	TTL time.Duration
	// MaxKeys is how many unwrapped keys are held; 0 means 4096.
	MaxKeys int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Keyring holds the keys that are in use. It is safe for concurrent use.
type Keyring struct {
	source Source
	db     *sqldb.DB
	ttl    time.Duration
	max    int
	now    func() time.Time

	mu      sync.Mutex
	keys    map[string]held
	loading map[string]*load
	// inForce outlives the cached key, so that Forget reaches keys that callers got before it expired. One entry for each owner in use.
	inForce map[string]*atomic.Bool
}

type held struct {
	key   *Key
	until time.Time
}

// load is one load that callers share.
type load struct {
	done   chan struct{} // closed when the rest is final
	key    *Key
	err    error
	undone bool // by Forget; guarded by Keyring.mu
}

// New makes a keyring. Nothing is loaded yet.
func New(c Config) (*Keyring, error) {
	if c.Source == nil || c.DB == nil || c.TTL < 0 || c.MaxKeys < 0 {
		return nil, fault.Internal(nil, "envelope: Config needs a Source and a DB, and no negative bounds")
	}
	k := &Keyring{source: c.Source, db: c.DB, ttl: c.TTL, max: c.MaxKeys, now: c.Now, keys: make(map[string]held), loading: make(map[string]*load), inForce: make(map[string]*atomic.Bool)}
	if k.ttl == 0 {
		k.ttl = defaultTTL
	}
	if k.max == 0 {
		k.max = defaultKeys
	}
	if k.now == nil {
		k.now = time.Now
	}
	return k, nil
}

var ownerGrammar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// Key is the key of an owner: a workspace's uid, or ServiceOwner. The first use of an owner makes it, and writes to the database: do not
// call Key inside a transaction. An owner whose key was destroyed gets none (FAILED_PRECONDITION, KEY_DISABLED); the source's errors come
// back as they are.
func (k *Keyring) Key(ctx context.Context, owner string) (*Key, error) {
	if !ownerGrammar.MatchString(owner) {
		return nil, fault.Internal(nil, "the owner of a data key is missing or malformed")
	}
	for range loadAttempts {
		k.mu.Lock()
		if h, ok := k.keys[owner]; ok && k.now().Before(h.until) {
			k.mu.Unlock()
			return h.key, nil
		}
		l := k.loading[owner]
		if l == nil {
			l = &load{done: make(chan struct{})}
			k.loading[owner] = l
			go k.load(context.WithoutCancel(ctx), owner, l)
		}
		k.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-l.done:
		}
		k.mu.Lock()
		undone := l.undone
		k.mu.Unlock()
		if !undone {
			return l.key, l.err
		}
	}
	return nil, fault.Unavailable("the data key changes all the time; repeat the call")
}

// load does the work of l, and keeps its key unless Forget came in between.
func (k *Keyring) load(ctx context.Context, owner string, l *load) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	key, err := k.fetch(ctx, owner)
	k.mu.Lock()
	defer k.mu.Unlock()
	defer close(l.done)
	if l.undone { // Forget has taken it out of the map; nobody gets the key
		return
	}
	delete(k.loading, owner)
	if l.key, l.err = key, err; err != nil {
		return
	}
	if shared, ok := k.inForce[owner]; ok {
		key.dropped = shared
	} else {
		k.inForce[owner] = key.dropped
	}
	now := k.now()
	k.makeRoom(now)
	k.keys[owner] = held{key, now.Add(k.ttl)}
}

// makeRoom lets expired keys go, and others too where there are too many. Whoever holds one of them may use it to the end of his call.
func (k *Keyring) makeRoom(now time.Time) {
	for owner, h := range k.keys {
		if !now.Before(h.until) {
			delete(k.keys, owner)
		}
	}
	for owner := range k.keys {
		if len(k.keys) < k.max {
			return
		}
		delete(k.keys, owner)
	}
}

// Forget drops what is held of an owner: the next use asks the source, loads under way do not count, and keys that callers still hold
// refuse. It is called when the state of the key above may have changed.
func (k *Keyring) Forget(owner string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.keys, owner)
	if dropped, ok := k.inForce[owner]; ok {
		dropped.Store(true)
		delete(k.inForce, owner)
	}
	if l, ok := k.loading[owner]; ok {
		l.undone = true
		delete(k.loading, owner)
	}
}

// row is what is stored of an owner.
type row struct {
	id, wrapped []byte
	destroyed   bool
}

func stored(ctx context.Context, q sqldb.DBTX, owner string) (row, error) {
	var r row
	var destroyed int64
	err := q.QueryRowContext(ctx, "SELECT key_id, wrapped, destroyed FROM data_keys WHERE owner = $1", owner).Scan(&r.id, &r.wrapped, &destroyed)
	r.destroyed = destroyed != 0
	return r, err
}

// fetch reads the owner's key, or makes it.
func (k *Keyring) fetch(ctx context.Context, owner string) (*Key, error) {
	r, err := stored(ctx, k.db.Reader(), owner)
	if errors.Is(err, sql.ErrNoRows) {
		r, err = k.first(ctx, owner)
	}
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	if r.destroyed {
		return nil, fault.New(codes.FailedPrecondition, faultv1.Reason_KEY_DISABLED, "the data key of this resource was destroyed")
	}
	return k.unwrap(ctx, owner, r)
}

func (k *Keyring) unwrap(ctx context.Context, owner string, r row) (*Key, error) {
	data, err := k.source.Unwrap(ctx, owner, r.wrapped)
	if err != nil {
		return nil, err
	}
	defer data.Wipe()
	key, err := derive(owner, data)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(key.id[:], r.id) != 1 {
		return nil, errDamaged() // the source opened a key, and not the one of this row
	}
	return key, nil
}

// first makes a key for the owner and returns the one that is stored in the end, which may be another's.
func (k *Keyring) first(ctx context.Context, owner string) (row, error) {
	plain, wrapped, err := k.source.Generate(ctx, owner)
	if err != nil {
		return row{}, err
	}
	key, err := deriveAndWipe(owner, plain)
	if err != nil {
		return row{}, err
	}
	made := row{id: key.id[:], wrapped: wrapped}
	if _, err := k.unwrap(ctx, owner, made); err != nil { // what cannot be opened must not be used
		return row{}, err
	}
	var kept row
	err = k.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO data_keys (owner, key_id, wrapped, created) VALUES ($1, $2, $3, $4) ON CONFLICT (owner) DO NOTHING",
			owner, made.id, made.wrapped, k.now().UnixMicro())
		if err != nil {
			return err
		}
		kept, err = stored(ctx, tx, owner)
		return err
	})
	return kept, err
}

func deriveAndWipe(owner string, data redact.Secret) (*Key, error) {
	defer data.Wipe()
	return derive(owner, data)
}

// Destroy removes the owner's key for good, and with it everything that was sealed under it: the wrapped key is overwritten, the cached one
// dropped. It is idempotent, and holds for an owner that never had a key.
func (k *Keyring) Destroy(ctx context.Context, owner string) error {
	err := k.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return k.DestroyIn(ctx, tx, owner) })
	if err != nil {
		return err
	}
	k.Forget(owner)
	return k.db.Scrub(ctx)
}

// DestroyIn is the part of Destroy that is stored, for the transaction that removes the owner itself. Its caller calls Forget once that is
// committed, and then sqldb.DB.Scrub.
func (k *Keyring) DestroyIn(ctx context.Context, tx *sqldb.Tx, owner string) error {
	if !ownerGrammar.MatchString(owner) {
		return fault.Internal(nil, "the owner of a data key is missing or malformed")
	}
	now := k.now().UnixMicro()
	_, err := tx.ExecContext(ctx, `INSERT INTO data_keys (owner, key_id, wrapped, created, destroyed) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (owner) DO UPDATE SET key_id = excluded.key_id, wrapped = excluded.wrapped, destroyed = excluded.destroyed`,
		owner, []byte{}, []byte{}, now, now)
	if err != nil {
		return sqldb.Fault(err)
	}
	return tx.Signal(ctx, destroyedTopic)
}

// destroyedTopic tells the other instances on the database that the key of an owner was destroyed.
const destroyedTopic = "data-keys/destroyed"

// Follow drops, until ctx ends, every key that is held whenever another instance has destroyed one, or may have: they are loaded again
// when they are used. On SQLite, where one process has the database, there is nothing to follow.
func (k *Keyring) Follow(ctx context.Context) {
	if k.db.Dialect() == sqldb.SQLite {
		return
	}
	destroyed, stop := k.db.Signals(destroyedTopic)
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-destroyed:
			k.forgetAll()
		}
	}
}

func (k *Keyring) forgetAll() {
	k.mu.Lock()
	owners := slices.Concat(slices.Collect(maps.Keys(k.keys)), slices.Collect(maps.Keys(k.inForce)), slices.Collect(maps.Keys(k.loading)))
	k.mu.Unlock()
	for _, owner := range owners {
		k.Forget(owner)
	}
}
