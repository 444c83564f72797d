package envelope_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func sets() []sqldb.MigrationSet { return []sqldb.MigrationSet{envelope.Migrations()} }

// watched is a real source that counts, can be told to refuse, and can be made to wait.
type watched struct {
	envelope.Source
	generated, unwrapped atomic.Int64
	refuse               atomic.Pointer[fault.Error]
	during               func() // called in the middle of an Unwrap
}

func (w *watched) Generate(ctx context.Context, owner string) (redact.Secret, []byte, error) {
	w.generated.Add(1)
	if err := w.refuse.Load(); err != nil {
		return redact.Secret{}, nil, err
	}
	return w.Source.Generate(ctx, owner)
}

func (w *watched) Unwrap(ctx context.Context, owner string, wrapped []byte) (redact.Secret, error) {
	w.unwrapped.Add(1)
	if w.during != nil {
		w.during()
	}
	if err := w.refuse.Load(); err != nil {
		return redact.Secret{}, err
	}
	return w.Source.Unwrap(ctx, owner, wrapped)
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	return &watched{Source: envelope.SealSource(newSeal(t), "test")}
}

// clock is set by the test.
type clock struct{ micros atomic.Int64 }

func (c *clock) now() time.Time          { return time.UnixMicro(c.micros.Load()) }
func (c *clock) advance(d time.Duration) { c.micros.Add(d.Microseconds()) }

func keyDisabled(err error) bool { return fault.ReasonOf(err) == faultv1.Reason_KEY_DISABLED }

func TestFirstUseMakesOneKey(t *testing.T) {
	sqldbtest.RunConfig(t, sets(), func(t *testing.T, c sqldb.Config) {
		source := newWatched(t)
		// Several keyrings stand for several replicas; on PostgreSQL each has a DB of its own.
		db := sqldbtest.OpenConfig(t, c)
		var rings []*envelope.Keyring
		for range 4 {
			if c.Driver == sqldb.Postgres {
				db = sqldbtest.OpenConfig(t, c)
			}
			rings = append(rings, newKeyring(t, envelope.Config{DB: db, Source: source}))
		}
		keys := make([]*envelope.Key, 32)
		var wg sync.WaitGroup
		for i := range keys {
			wg.Go(func() {
				k, err := rings[i%len(rings)].Key(context.Background(), "ws_a")
				if err != nil {
					t.Error(err)
					return
				}
				keys[i] = k
			})
		}
		wg.Wait()
		sealed, err := keys[0].SealString(where, "x")
		if err != nil {
			t.Fatal(err)
		}
		for i, k := range keys {
			if got, err := k.OpenString(where, sealed); err != nil || got != "x" {
				t.Errorf("key %d: %v", i, err)
			}
		}
		if n := source.generated.Load(); n > int64(len(rings)) {
			t.Errorf("%d keys were made by %d keyrings: callers of one do not share", n, len(rings))
		}
		var rows int
		if err := db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM data_keys").Scan(&rows); err != nil || rows != 1 {
			t.Errorf("%d rows, %v", rows, err)
		}
	})
}

func TestKeyOutlivesTheProcess(t *testing.T) {
	sqldbtest.RunConfig(t, sets(), func(t *testing.T, c sqldb.Config) {
		source := newWatched(t)
		var sealed []byte
		for range 2 {
			db, err := sqldb.Open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			k := key(t, newKeyring(t, envelope.Config{DB: db, Source: source}), envelope.ServiceOwner)
			if sealed == nil {
				if sealed, err = k.SealString(where, "x"); err != nil {
					t.Fatal(err)
				}
			} else if got, err := k.OpenString(where, sealed); err != nil || got != "x" {
				t.Errorf("got %q, %v", got, err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestCacheAsksTheSourceAgain(t *testing.T) {
	source, time0 := newWatched(t), new(clock)
	ring := newKeyring(t, envelope.Config{Source: source, Now: time0.now, TTL: time.Minute})
	old := key(t, ring, "ws_a")
	after := source.unwrapped.Load()
	time0.advance(time.Minute - time.Microsecond)
	key(t, ring, "ws_a")
	if n := source.unwrapped.Load(); n != after {
		t.Errorf("within its time the key was asked for %d times more", n-after)
	}
	disabled := fault.New(codes.FailedPrecondition, faultv1.Reason_KEY_DISABLED, "the key is disabled")
	source.refuse.Store(disabled)
	time0.advance(time.Microsecond)
	// Nothing is decided from an expired copy, and the source's reason comes through (D3).
	for range 2 {
		if _, err := ring.Key(t.Context(), "ws_a"); !errors.Is(err, disabled) {
			t.Fatalf("got %v", err)
		}
	}
	source.refuse.Store(nil)
	fresh := key(t, ring, "ws_a")
	sealed, err := fresh.SealString(where, "x")
	if err != nil {
		t.Fatal(err)
	}
	// A call that began before goes on with the key that it has, until Forget, which reaches it though it left the cache.
	if _, err := old.Open(where, sealed); err != nil {
		t.Errorf("expiry took the key away from a call under way: %v", err)
	}
	ring.Forget("ws_a")
	for name, k := range map[string]*envelope.Key{"old": old, "fresh": fresh} {
		if _, err := k.Open(where, sealed); !fault.Is(err, codes.Unavailable) {
			t.Errorf("the %s key opens after it was forgotten: %v", name, err)
		}
	}
}

func TestFirstUseWithoutASourceStoresNothing(t *testing.T) {
	source := newWatched(t)
	db := sqldbtest.Open(t, sets()...)
	ring := newKeyring(t, envelope.Config{DB: db, Source: source})
	source.refuse.Store(fault.Unavailable("keyvault is away"))
	if _, err := ring.Key(t.Context(), "ws_a"); !fault.Is(err, codes.Unavailable) {
		t.Fatalf("got %v", err)
	}
	// A source that gives what it cannot open again must not be trusted with data.
	source.refuse.Store(nil)
	source.during = func() { source.refuse.Store(fault.Unavailable("keyvault is away")) }
	if _, err := ring.Key(t.Context(), "ws_a"); !fault.Is(err, codes.Unavailable) {
		t.Fatalf("got %v", err)
	}
	var rows int
	if err := db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM data_keys").Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d rows, %v", rows, err)
	}
	source.during = nil
	source.refuse.Store(nil)
	key(t, ring, "ws_a")
}

func TestForgetStopsWhatIsHeld(t *testing.T) {
	ring := newKeyring(t, envelope.Config{})
	k, other := key(t, ring, "ws_a"), key(t, ring, "ws_b")
	sealed := sealStream(t, k, where, make([]byte, 4*segment))
	record, err := k.SealString(where, "x")
	if err != nil {
		t.Fatal(err)
	}
	reading, err := k.OpenStream(where, bytes.NewReader(sealed))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(reading, make([]byte, segment)); err != nil {
		t.Fatal(err)
	}
	writing, err := k.SealStream(where, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	closing, err := k.SealStream(where, io.Discard)
	if err != nil {
		t.Fatal(err)
	}

	ring.Forget("ws_a")
	for name, do := range map[string]func() error{
		"Seal":          func() error { _, err := k.Seal(where, nil); return err },
		"Open":          func() error { _, err := k.Open(where, record); return err },
		"SealStream":    func() error { _, err := k.SealStream(where, io.Discard); return err },
		"OpenStream":    func() error { _, err := k.OpenStream(where, bytes.NewReader(sealed)); return err },
		"a read":        func() error { _, err := reading.Read(make([]byte, 1)); return err },
		"a write":       func() error { _, err := writing.Write([]byte("x")); return err },
		"close a write": func() error { return writing.Close() },
		"close":         func() error { return closing.Close() },
	} {
		if err := do(); !fault.Is(err, codes.Unavailable) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := key(t, ring, "ws_a").Open(where, record); err != nil {
		t.Errorf("asked for again: %v", err)
	}
	if _, err := other.Seal(where, nil); err != nil {
		t.Errorf("another owner's key was forgotten too: %v", err)
	}
}

// A load that began before Forget may rest on what Forget is about: nobody gets its key.
func TestForgetDuringALoad(t *testing.T) {
	source := newWatched(t)
	ring := newKeyring(t, envelope.Config{Source: source})
	key(t, ring, "ws_a")
	ring.Forget("ws_a")
	before := source.unwrapped.Load()
	once := sync.OnceFunc(func() { ring.Forget("ws_a") })
	source.during = once
	k := key(t, ring, "ws_a")
	if n := source.unwrapped.Load() - before; n != 2 {
		t.Errorf("the source was asked %d times, want once more after Forget", n)
	}
	if _, err := k.Seal(where, nil); err != nil {
		t.Errorf("the key that came in the end: %v", err)
	}
	// Forgotten over and over: an error, and no endless loop.
	ring.Forget("ws_a")
	source.during = func() { ring.Forget("ws_a") }
	if _, err := ring.Key(t.Context(), "ws_a"); !fault.Is(err, codes.Unavailable) {
		t.Errorf("got %v", err)
	}
}

func TestWaitingEndsWithTheCaller(t *testing.T) {
	source := newWatched(t)
	release := make(chan struct{})
	source.during = func() { <-release }
	ring := newKeyring(t, envelope.Config{Source: source})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ring.Key(ctx, "ws_a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release) // the load that he began goes on for others
	key(t, ring, "ws_a")
	if n := source.generated.Load(); n != 1 {
		t.Errorf("%d keys were made", n)
	}
}

// D2, deletion: when the key is destroyed nothing opens, nothing makes a new one, and no file holds the wrapped key.
func TestDestroy(t *testing.T) {
	sqldbtest.RunConfig(t, sets(), func(t *testing.T, c sqldb.Config) {
		db := sqldbtest.OpenConfig(t, c)
		source := newWatched(t)
		ring := newKeyring(t, envelope.Config{DB: db, Source: source})
		k := key(t, ring, "ws_a")
		keep, err := key(t, ring, "ws_b").SealString(where, "kept")
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := k.SealString(where, "x")
		if err != nil {
			t.Fatal(err)
		}
		var wrapped []byte
		if err := db.Reader().QueryRowContext(t.Context(), "SELECT wrapped FROM data_keys WHERE owner = 'ws_a'").Scan(&wrapped); err != nil {
			t.Fatal(err)
		}
		if c.Driver == sqldb.SQLite && !inFiles(t, c.Path, wrapped) {
			t.Fatal("the search does not find what is there")
		}
		for range 2 {
			if err := ring.Destroy(t.Context(), "ws_a"); err != nil {
				t.Fatal(err)
			}
		}
		if c.Driver == sqldb.SQLite && inFiles(t, c.Path, wrapped) {
			t.Error("the wrapped key is still in the files")
		}
		if _, err := k.Open(where, sealed); !fault.Is(err, codes.Unavailable) {
			t.Errorf("a key that is still held opens: %v", err)
		}
		for name, r := range map[string]*envelope.Keyring{"here": ring, "elsewhere": newKeyring(t, envelope.Config{DB: db, Source: source})} {
			if _, err := r.Key(t.Context(), "ws_a"); !keyDisabled(err) {
				t.Errorf("%s: got %v", name, err)
			}
			if got, err := key(t, r, "ws_b").OpenString(where, keep); err != nil || got != "kept" {
				t.Errorf("%s: another owner's data: %q, %v", name, got, err)
			}
		}
		// Before there was a key, and in a transaction that is undone.
		if err := ring.Destroy(t.Context(), "ws_never"); err != nil {
			t.Fatal(err)
		}
		if _, err := ring.Key(t.Context(), "ws_never"); !keyDisabled(err) {
			t.Errorf("got %v", err)
		}
		undo := errors.New("undo")
		err = db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			if err := ring.DestroyIn(ctx, tx, "ws_b"); err != nil {
				return err
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Fatal(err)
		}
		ring.Forget("ws_b")
		if _, err := key(t, ring, "ws_b").Open(where, keep); err != nil {
			t.Errorf("an undone destruction: %v", err)
		}
	})
}

func inFiles(t *testing.T, path string, what []byte) bool {
	t.Helper()
	found := false
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		found = found || bytes.Contains(data, what)
	}
	return found
}

// Whoever can write the table can deny service, and no more.
func TestTamperedRows(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		source := newWatched(t)
		ring := newKeyring(t, envelope.Config{DB: db, Source: source})
		for _, owner := range []string{"ws_a", "ws_b", "ws_c"} {
			key(t, ring, owner)
		}
		tamper := func(query string) {
			t.Helper()
			err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { _, err := tx.ExecContext(ctx, query); return err })
			if err != nil {
				t.Fatal(err)
			}
			ring.Forget("ws_b")
		}
		tamper("UPDATE data_keys SET wrapped = (SELECT wrapped FROM data_keys WHERE owner = 'ws_a'), key_id = (SELECT key_id FROM data_keys WHERE owner = 'ws_a') WHERE owner = 'ws_b'")
		if _, err := ring.Key(t.Context(), "ws_b"); fault.ReasonOf(err) != faultv1.Reason_DATA_DAMAGED {
			t.Errorf("another owner's key: %v", err)
		}
		// A key that opens and is another one than its row says.
		_, other, err := source.Source.Generate(t.Context(), "ws_b")
		if err != nil {
			t.Fatal(err)
		}
		err = db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE data_keys SET wrapped = $1 WHERE owner = 'ws_b'", other)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ring.Key(t.Context(), "ws_b"); !damaged(err) {
			t.Errorf("an exchanged key: %v", err)
		}
		tamper("UPDATE data_keys SET wrapped = key_id WHERE owner = 'ws_b'")
		if _, err := ring.Key(t.Context(), "ws_b"); fault.ReasonOf(err) != faultv1.Reason_DATA_DAMAGED {
			t.Errorf("a damaged key: %v", err)
		}
		key(t, ring, "ws_c")
	})
}

func TestSealSourceIsBoundToServiceAndOwner(t *testing.T) {
	s, other := newSeal(t), newSeal(t)
	source := envelope.SealSource(s, "compute")
	plain, wrapped, err := source.Generate(t.Context(), "ws_a")
	if err != nil || plain.Len() != envelope.KeySize {
		t.Fatal(err)
	}
	if got, err := source.Unwrap(t.Context(), "ws_a", wrapped); err != nil || !got.Equal(plain) {
		t.Errorf("got %v", err)
	}
	for name, try := range map[string]struct {
		source envelope.Source
		owner  string
	}{
		"another owner":   {source, "ws_b"},
		"another service": {envelope.SealSource(s, "telemetry"), "ws_a"},
		"a moved border":  {envelope.SealSource(s, "computew"), "s_a"},
		"another seal":    {envelope.SealSource(other, "compute"), "ws_a"},
	} {
		if _, err := try.source.Unwrap(t.Context(), try.owner, wrapped); fault.ReasonOf(err) != faultv1.Reason_DATA_DAMAGED {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBounds(t *testing.T) {
	source := newWatched(t)
	ring := newKeyring(t, envelope.Config{MaxKeys: 2, Source: source})
	for round := range 2 {
		before := source.unwrapped.Load()
		for _, owner := range []string{"ws_a", "ws_b", "ws_c", "ws_d"} {
			if _, err := key(t, ring, owner).Seal(where, nil); err != nil {
				t.Error(err)
			}
		}
		if n := source.unwrapped.Load() - before; round == 1 && n < 2 {
			t.Errorf("of four keys in turn more than two were held: the source was asked %d times", n)
		}
	}
	for _, owner := range []string{"", "a b", "a\x00", "../x", "ö", strings.Repeat("a", 129)} {
		if _, err := ring.Key(t.Context(), owner); !fault.Is(err, codes.Internal) {
			t.Errorf("%q: %v", owner, err)
		}
		if err := ring.Destroy(t.Context(), owner); !fault.Is(err, codes.Internal) {
			t.Errorf("Destroy(%q): %v", owner, err)
		}
	}
	for name, c := range map[string]envelope.Config{
		"zero":         {},
		"no source":    {DB: sqldbtest.Open(t, sets()...)},
		"no database":  {Source: newWatched(t)},
		"negative TTL": {Source: newWatched(t), DB: sqldbtest.Open(t, sets()...), TTL: -1},
	} {
		if _, err := envelope.New(c); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestFirstUseInsideATransactionIsRefused(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	ring := newKeyring(t, envelope.Config{DB: db})
	err := db.Write(t.Context(), func(ctx context.Context, _ *sqldb.Tx) error {
		_, err := ring.Key(ctx, "ws_a")
		return err
	})
	if !fault.Is(err, codes.Internal) {
		t.Errorf("got %v", err)
	}
}
