package sqldb_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func signal(topics ...string) func(context.Context, *sqldb.Tx) error {
	return func(ctx context.Context, tx *sqldb.Tx) error {
		for _, topic := range topics {
			if err := tx.Signal(ctx, topic); err != nil {
				return err
			}
		}
		return nil
	}
}

// woken waits for a signal for longer than any takes.
func woken(t *testing.T, wake <-chan struct{}, why string) {
	t.Helper()
	select {
	case <-wake:
	case <-time.After(10 * time.Second):
		t.Fatalf("no signal: %s", why)
	}
}

// quiet says that no signal is there. Where one could still be on its way from the server, another one that was sent after it has been
// received before.
func quiet(t *testing.T, wake <-chan struct{}, why string) {
	t.Helper()
	select {
	case <-wake:
		t.Errorf("a signal: %s", why)
	default:
	}
}

// settled subscribes, and takes the wake that comes of the listener's connection, where there is one.
func settled(t *testing.T, db *sqldb.DB, topic string) <-chan struct{} {
	t.Helper()
	wake, stop := db.Signals(topic)
	t.Cleanup(stop)
	if db.Dialect() == sqldb.Postgres {
		other, stop := db.Signals("settle")
		defer stop()
		woken(t, other, "the listener connects")
		if err := db.Write(t.Context(), signal("settle")); err != nil {
			t.Fatal(err)
		}
		woken(t, other, "its own")
		select {
		case <-wake:
		default:
		}
	}
	return wake
}

func TestSignalsComeWithTheCommit(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		wake := settled(t, db, "notes")
		mine := errors.New("mine")
		err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			if err := signal("notes")(ctx, tx); err != nil {
				t.Fatal(err)
			}
			quiet(t, wake, "before the commit")
			return mine
		})
		if !errors.Is(err, mine) {
			t.Fatal(err)
		}
		quiet(t, wake, "of what was undone")
		if err := db.Write(t.Context(), signal("other")); err != nil {
			t.Fatal(err)
		}
		quiet(t, wake, "of another topic")
		for range 3 {
			if err := db.Write(t.Context(), signal("notes", "notes")); err != nil {
				t.Fatal(err)
			}
		}
		woken(t, wake, "three commits")
		quiet(t, wake, "three commits that nobody received are one signal")
		if err := db.WriteGrouped(t.Context(), signal("notes")); err != nil {
			t.Fatal(err)
		}
		woken(t, wake, "a grouped write")
	})
}

func TestSignalsThatAreNone(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		for _, topic := range []string{"", "A", "1a", "a b", "a'b", "a\x00", "ä", strings.Repeat("a", 101)} {
			if err := db.Write(t.Context(), signal(topic)); err == nil {
				t.Errorf("%q was taken", topic)
			}
		}
		many := make([]string, 0, 17)
		for i := range 17 {
			many = append(many, "t"+strings.Repeat("x", i))
		}
		if err := db.Write(t.Context(), signal(many...)); err == nil {
			t.Error("17 topics were taken")
		}
		if err := db.Write(t.Context(), signal(many[:16]...)); err != nil {
			t.Errorf("16 topics: %v", err)
		}
		if err := db.Read(t.Context(), signal("a")); err == nil {
			t.Error("a read signalled")
		}
		wake, stop := db.Signals("gone")
		stop()
		if err := db.Write(t.Context(), signal("gone")); err != nil {
			t.Fatal(err)
		}
		quiet(t, wake, "after stop")
	})
}

// What one instance commits, the others hear of; and after a listener has lost its connection, that something may have been missed.
func TestSignalsReachOtherInstances(t *testing.T) {
	c := sqldbtest.Postgres(t, sets()...)
	a, b := sqldbtest.OpenConfig(t, c), sqldbtest.OpenConfig(t, c)
	wake := settled(t, b, "notes")
	if err := a.Write(t.Context(), signal("notes")); err != nil {
		t.Fatal(err)
	}
	woken(t, wake, "the other instance's commit")
	if err := a.Write(t.Context(), signal("other")); err != nil {
		t.Fatal(err)
	}
	if err := a.Write(t.Context(), signal("notes")); err != nil {
		t.Fatal(err)
	}
	woken(t, wake, "and the next")

	// A schema of its own hears nothing of this one.
	elsewhere := settled(t, sqldbtest.OpenConfig(t, sqldbtest.Postgres(t, sets()...)), "notes")
	if err := a.Write(t.Context(), signal("notes")); err != nil {
		t.Fatal(err)
	}
	woken(t, wake, "the schema's own")
	quiet(t, elsewhere, "of another schema")

	// The server ends every session that listens. While b hears nothing, a commits.
	for range 3 {
		var n int
		err := a.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			return tx.QueryRowContext(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
				WHERE query LIKE 'LISTEN "redoubt_%' AND datname = current_database()`).Scan(&n)
		})
		if err != nil || n == 0 {
			t.Fatalf("%d listeners ended, %v", n, err)
		}
		if err := a.Write(t.Context(), signal("unheard")); err != nil {
			t.Fatal(err)
		}
		woken(t, wake, "the connection was lost and is made again: anything may have been missed")
		if err := a.Write(t.Context(), signal("notes")); err != nil {
			t.Fatal(err)
		}
		woken(t, wake, "the listener is back")
	}
}
