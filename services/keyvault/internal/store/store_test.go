package store

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

type lab struct {
	*Store
	t    *testing.T
	db   *sqldb.DB
	seal *seal.Seal
	now  time.Time
	ws   string // a workspace with a vault
}

// run runs fn on each engine.
func run(t *testing.T, fn func(t *testing.T, l *lab)) {
	sqldbtest.Run(t, []sqldb.MigrationSet{envelope.Migrations(), Migrations()}, func(t *testing.T, db *sqldb.DB) {
		sl, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
		if err != nil {
			t.Fatal(err)
		}
		l := &lab{t: t, db: db, seal: sl, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), ws: resource.NewUID("ws")}
		l.restart()
		if err := l.CreateVault(t.Context(), l.ws, nothing); err != nil {
			t.Fatal(err)
		}
		fn(t, l)
	})
}

// restart is the store as a new process has it: nothing is cached.
func (l *lab) restart() {
	l.t.Helper()
	own, err := envelope.New(envelope.Config{Source: envelope.SealSource(l.seal, "keyvault"), DB: l.db})
	if err != nil {
		l.t.Fatal(err)
	}
	l.Store = New(l.db, own, func() time.Time { return l.now })
}

func nothing(context.Context, *sqldb.Tx) error { return nil }

// set gives a secret a new version.
func (l *lab) set(name, value string) Item {
	l.t.Helper()
	it, err := l.Add(l.t.Context(), l.ws, Secret, name, false, redact.FromString(value), "text/plain", nothing)
	if err != nil {
		l.t.Fatal(err)
	}
	l.now = l.now.Add(time.Second)
	return it
}

func (l *lab) get(name string, version int64) (string, error) {
	_, v, err := l.Open(l.t.Context(), l.ws, Secret, name, version, faultv1.Reason_SECRET_DISABLED)
	return v.RevealString(), err
}

func (l *lab) exec(text string, args ...any) {
	l.t.Helper()
	err := l.db.Write(l.t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, text, args...)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func want(t *testing.T, name string, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	if fault.Code(err) != code || reason != 0 && fault.ReasonOf(err) != reason {
		t.Errorf("%s: got %v, want %v %v", name, err, code, reason)
	}
}

// E1: versions are 1, 2, 3, … whoever writes at the same time.
func TestVersionsHaveNoGaps(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		const writers, each = 8, 4
		var wg sync.WaitGroup
		var mu sync.Mutex
		var got []int64
		for range writers {
			wg.Go(func() {
				for i := range each {
					rolled := errors.New("no record")
					_, err := l.Add(t.Context(), l.ws, Secret, "s", false, redact.FromString("v"), "", func(context.Context, *sqldb.Tx) error { return rolled })
					if !errors.Is(err, rolled) {
						t.Errorf("a change without a record: %v", err)
					}
					it, err := l.Add(t.Context(), l.ws, Secret, "s", false, redact.FromString("v"), "", nothing)
					if err != nil {
						t.Error(i, err)
					}
					mu.Lock()
					got = append(got, it.Version)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		slices.Sort(got)
		for i, v := range got {
			if v != int64(i)+1 {
				t.Fatalf("versions %v", got)
			}
		}
		if len(got) != writers*each {
			t.Errorf("%d versions", len(got))
		}
	})
}

// E1: made once only, rotated only where it is, listed with its newest version; a deleted one begins anew.
func TestItems(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		_, err := l.Add(ctx, l.ws, Key, "k", true, redact.FromString("one"), "", nothing)
		want(t, "create", err, codes.OK, 0)
		_, err = l.Add(ctx, l.ws, Key, "k", true, redact.FromString("two"), "", nothing)
		want(t, "create again", err, codes.AlreadyExists, 0)
		_, err = l.Rotate(ctx, l.ws, Key, "absent", redact.FromString("x"), nothing)
		want(t, "rotate what is not there", err, codes.NotFound, 0)
		_, err = l.Rotate(ctx, l.ws, Secret, "k", redact.FromString("x"), nothing)
		want(t, "rotate a secret of the key's name", err, codes.NotFound, 0)
		it, err := l.Rotate(ctx, l.ws, Key, "k", redact.FromString("two"), nothing)
		if want(t, "rotate", err, codes.OK, 0); it.Version != 2 || it.Name != "k" {
			t.Errorf("rotated: %+v", it)
		}

		for _, name := range []string{"a", "b", "c"} {
			l.set(name, "1")
		}
		l.set("a", "2")
		list, cur, err := l.List(ctx, l.ws, Secret, Cursor{}, 2)
		if err != nil || len(list) != 2 || list[0].Name != "a" || list[0].Version != 2 || list[0].ContentType != "text/plain" || list[1].Name != "b" {
			t.Errorf("page 1: %+v, %v", list, err)
		}
		if list, _, err = l.List(ctx, l.ws, Secret, cur, 2); err != nil || len(list) != 1 || list[0].Name != "c" {
			t.Errorf("page 2: %+v, %v", list, err)
		}
		if err := l.Delete(ctx, l.ws, Secret, "a", nothing); err != nil {
			t.Fatal(err)
		}
		want(t, "delete again", l.Delete(ctx, l.ws, Secret, "a", nothing), codes.NotFound, 0)
		for v := range int64(3) {
			_, err := l.get("a", v)
			want(t, "open what was deleted", err, codes.NotFound, 0)
		}
		if it := l.set("a", "new"); it.Version != 1 {
			t.Errorf("a new secret begins at %d", it.Version)
		}
	})
}

// E1: a disabled version does nothing; the newest enabled one is what is meant without a number.
func TestDisabled(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		l.set("s", "one")
		l.set("s", "two")
		able := func(version int64, disabled bool) error {
			it, err := l.SetDisabled(t.Context(), l.ws, Secret, "s", version, disabled, nothing)
			if err == nil && (it.Disabled != disabled || it.Version != version) {
				t.Errorf("answer %+v", it)
			}
			return err
		}
		want(t, "a version that is not", able(3, true), codes.NotFound, 0)
		want(t, "disable 2", able(2, true), codes.OK, 0)
		if v, err := l.get("s", 0); v != "one" || err != nil {
			t.Errorf("newest enabled: %q, %v", v, err)
		}
		_, err := l.get("s", 2)
		want(t, "open the disabled one", err, codes.FailedPrecondition, faultv1.Reason_SECRET_DISABLED)
		want(t, "disable 1", able(1, true), codes.OK, 0)
		_, err = l.get("s", 0)
		want(t, "all disabled", err, codes.FailedPrecondition, faultv1.Reason_SECRET_DISABLED)
		want(t, "enable 2", able(2, false), codes.OK, 0)
		if v, err := l.get("s", 0); v != "two" || err != nil {
			t.Errorf("enabled again: %q, %v", v, err)
		}
		_, err = l.get("s", 3)
		if !errors.Is(err, ErrNoVersion) {
			t.Errorf("a version that is not: %v", err)
		}
		if _, err = l.get("other", 1); fault.Code(err) != codes.NotFound || errors.Is(err, ErrNoVersion) {
			t.Errorf("a secret that is not: %v", err)
		}
	})
}

// D1, D2: after the vault is destroyed nothing that it wrapped opens, from a copy of its rows either, and it never comes back.
func TestDestroyedStaysDestroyed(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		l.set("s", "value")
		key, err := l.VaultKey(ctx, l.ws)
		if err != nil {
			t.Fatal(err)
		}
		aad := envelope.AAD{Owner: l.ws, Kind: "data_key", ID: "compute"}
		sealed, err := key.Seal(aad, []byte("data key"))
		if err != nil {
			t.Fatal(err)
		}
		failing := errors.New("no record")
		if err := l.DestroyVault(ctx, l.ws, func(context.Context, *sqldb.Tx) error { return failing }); !errors.Is(err, failing) {
			t.Fatal(err)
		}
		if v, err := l.get("s", 0); v != "value" || err != nil {
			t.Errorf("a destruction without record has happened: %v", err)
		}
		for range 2 {
			want(t, "destroy", l.DestroyVault(ctx, l.ws, nothing), codes.OK, 0)
		}
		check := func() {
			t.Helper()
			_, err := l.VaultKey(ctx, l.ws)
			want(t, "its key", err, codes.FailedPrecondition, 0)
			_, err = l.keys.Key(ctx, l.ws)
			want(t, "the data key below", err, codes.FailedPrecondition, faultv1.Reason_KEY_DISABLED)
			_, err = l.get("s", 0)
			want(t, "a secret", err, codes.FailedPrecondition, 0)
			_, err = l.Add(ctx, l.ws, Secret, "s", false, redact.FromString("v"), "", nothing)
			want(t, "a new secret", err, codes.FailedPrecondition, 0)
			if err := l.CreateVault(ctx, l.ws, nothing); fault.Code(err) != codes.FailedPrecondition {
				t.Errorf("a new vault: %v", err)
			}
		}
		check()
		if _, err := key.Open(aad, sealed); err == nil {
			t.Error("a key that a caller held still opens")
		}
		if _, err := key.Seal(aad, []byte("late")); err == nil {
			t.Error("a key that a caller held still seals: a late data key")
		}
		l.restart()
		check()
		for _, table := range []string{"items", "item_versions"} {
			var n int
			if err := l.db.Reader().QueryRowContext(ctx, "SELECT COUNT(*) FROM "+table).Scan(&n); err != nil || n != 0 {
				t.Errorf("%d rows of %s are left, %v", n, table, err)
			}
		}
		var wrapped []byte
		if err := l.db.Reader().QueryRowContext(ctx, "SELECT wrapped FROM data_keys WHERE owner = $1", l.ws).Scan(&wrapped); err != nil || len(wrapped) != 0 {
			t.Errorf("the wrapped key is left: %d bytes, %v", len(wrapped), err)
		}
	})
}

// The row of the vault and its key go in one transaction: no moment at which one says destroyed and the other opens.
func TestDestroyIsOneTransaction(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		l.set("s", "value")
		err := l.DestroyVault(t.Context(), l.ws, func(ctx context.Context, tx *sqldb.Tx) error {
			var wrapped []byte
			var at int64
			if err := tx.QueryRowContext(ctx, "SELECT wrapped FROM data_keys WHERE owner = $1", l.ws).Scan(&wrapped); err != nil {
				return err
			}
			if err := tx.QueryRowContext(ctx, "SELECT destroy_time FROM vaults WHERE workspace_uid = $1", l.ws).Scan(&at); err != nil {
				return err
			}
			if len(wrapped) != 0 || at == 0 {
				t.Errorf("at commit: %d bytes of the wrapped key, destroyed at %d", len(wrapped), at)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// A vault that never was can be destroyed, and is not made later.
func TestDestroyBeforeCreate(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ws := resource.NewUID("ws")
		want(t, "destroy", l.DestroyVault(t.Context(), ws, nothing), codes.OK, 0)
		want(t, "create", l.CreateVault(t.Context(), ws, nothing), codes.FailedPrecondition, 0)
		for range 2 {
			want(t, "create a live one again", l.CreateVault(t.Context(), l.ws, nothing), codes.OK, 0)
		}
		_, err := l.VaultKey(t.Context(), resource.NewUID("ws"))
		want(t, "one that never was", err, codes.FailedPrecondition, 0)
	})
}

// D2: a row that was moved, swapped or changed does not open.
func TestSwappedRows(t *testing.T) {
	for _, tc := range []struct{ name, tamper string }{
		{"values of two secrets", "UPDATE item_versions SET value = (SELECT o.value FROM item_versions o WHERE o.item_uid <> item_versions.item_uid AND o.version = 1) WHERE version = 1"},
		{"values of two versions", "UPDATE item_versions SET value = (SELECT o.value FROM item_versions o WHERE o.item_uid = item_versions.item_uid AND o.version = 2) WHERE version = 1 AND item_uid IN (SELECT item_uid FROM item_versions WHERE version = 2)"},
		{"a version renumbered", "UPDATE item_versions SET version = version + 2"},
		{"names of two secrets", "UPDATE items SET name = (SELECT o.name FROM items o WHERE o.uid <> items.uid)"},
		{"lookups of two secrets", "UPDATE item_versions SET item_uid = (SELECT o.uid FROM items o WHERE o.uid <> item_versions.item_uid), version = version + 10"},
		{"content types", "UPDATE item_versions SET content_type = (SELECT o.content_type FROM item_versions o WHERE o.item_uid <> item_versions.item_uid AND o.version = 1) WHERE version = 1"},
		{"nothing in it", "UPDATE item_versions SET value = content_type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, func(t *testing.T, l *lab) {
				l.set("a", "of a")
				l.set("b", "of b, 1")
				l.set("b", "of b, 2")
				l.exec(tc.tamper)
				damaged := 0
				for _, at := range []struct {
					name    string
					version int64
					value   string
				}{{"a", 1, "of a"}, {"b", 1, "of b, 1"}, {"b", 2, "of b, 2"}, {"a", 3, ""}, {"b", 3, ""}, {"b", 4, ""}, {"a", 11, ""}, {"a", 12, ""}, {"b", 11, ""}} {
					v, err := l.get(at.name, at.version)
					switch {
					case fault.Is(err, codes.DataLoss) && fault.ReasonOf(err) == faultv1.Reason_DATA_DAMAGED:
						damaged++
					case fault.Is(err, codes.NotFound):
					case err != nil:
						t.Errorf("%s %d: %v", at.name, at.version, err)
					case v != at.value:
						t.Errorf("%s %d opened as %q", at.name, at.version, v)
					}
				}
				if damaged == 0 {
					t.Error("nothing was found damaged")
				}
			})
		})
	}
}

// What a tenant wrote is not in the database as he wrote it.
func TestCanaries(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		l.set("name-canary", "value-canary")
		rows, err := l.db.Reader().QueryContext(t.Context(), "SELECT i.name, i.name_mac, v.value, v.content_type FROM items i JOIN item_versions v ON v.item_uid = i.uid")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		n := 0
		for rows.Next() {
			n++
			cols := make([][]byte, 4)
			if err := rows.Scan(&cols[0], &cols[1], &cols[2], &cols[3]); err != nil {
				t.Fatal(err)
			}
			for i, c := range cols {
				if s := string(c); strings.Contains(s, "canary") || strings.Contains(s, "text/plain") {
					t.Errorf("column %d is clear", i)
				}
			}
		}
		if n != 1 || rows.Err() != nil {
			t.Errorf("%d rows, %v", n, rows.Err())
		}
	})
}

func TestCursor(t *testing.T) {
	c := Cursor{Time: 1 << 50, UID: "sec_x"}
	if got, err := envelope.ParseCursor(c.Bytes()); got != c || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	_, err := envelope.ParseCursor([]byte("short"))
	want(t, "short", err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
}
