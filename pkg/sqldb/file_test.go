package sqldb_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// fill stores n rows of about a kilobyte.
func fill(t *testing.T, db *sqldb.DB, n int) {
	t.Helper()
	err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		for i := range n {
			if _, err := tx.ExecContext(ctx, "INSERT INTO note (id, body) VALUES ($1, $2)", strings.Repeat("k", i+1), bytes.Repeat([]byte{7}, 1000)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sums is the content of every file of a folder. The shared memory is left out: SQLite makes it anew whenever it opens.
func sums(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	found := make(map[string][32]byte)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "-shm") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		found[e.Name()] = sha256.Sum256(data)
	}
	return found
}

func TestFilesArePrivate(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	c := sqldbtest.SQLite(t, sets()...)
	check := func() {
		t.Helper()
		fill(t, sqldbtest.OpenConfig(t, c), 3)
		seen := 0
		err := filepath.WalkDir(filepath.Dir(c.Path), func(_ string, e fs.DirEntry, _ error) error {
			if info, err := e.Info(); err == nil && !e.IsDir() {
				seen++
				if info.Mode().Perm() != 0o600 {
					t.Errorf("%s has mode %v", e.Name(), info.Mode())
				}
			}
			return nil
		})
		if err != nil || seen != 4 { // the file, its WAL, its shared memory, the lock
			t.Errorf("%d files, %v", seen, err)
		}
	}
	t.Run("new", func(*testing.T) { check() })
	c = sqldbtest.SQLite(t, sets()...)
	if err := os.WriteFile(c.Path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	t.Run("made wide by someone", func(*testing.T) { check() })
}

func TestSecondOpenIsRefused(t *testing.T) {
	c := sqldbtest.SQLite(t, sets()...)
	db, err := sqldb.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	_, err = sqldb.Open(t.Context(), c)
	if !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), c.Path) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v", err)
	}
	fill(t, db, 1) // the first is not disturbed
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if !has(t, sqldbtest.OpenConfig(t, c), "k") {
		t.Error("the row is gone")
	}
}

func TestPathIsTakenLiterally(t *testing.T) {
	c := sqldbtest.SQLite(t, sets()...)
	c.Path = filepath.Join(filepath.Dir(c.Path), "a b?mode=memory&x=%41#'ü.sqlite")
	fill(t, sqldbtest.OpenConfig(t, c), 1)
	if info, err := os.Stat(c.Path); err != nil || info.Size() == 0 {
		t.Errorf("the file is not where it was asked for: %v", err)
	}
}

func TestDamageIsNamedAndNothingIsTouched(t *testing.T) {
	overwrite := func(at int64, with []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			if at < 0 {
				info, _ := f.Stat()
				at = info.Size()/2&^4095 + 8
			}
			if _, err := f.WriteAt(with, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(n int64) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, path string)
	}{
		{"another kind of file", overwrite(0, []byte("#!/bin/sh\nexit 0\n"))},
		{"page size of nothing", overwrite(16, []byte{0x12, 0x34})},
		{"a page in the middle", overwrite(-1, bytes.Repeat([]byte{0xff}, 3000))},
		{"the root page", overwrite(104, bytes.Repeat([]byte{0xa5}, 500))},
		{"the second half is missing", truncate(32 << 10)},
		{"half a header", truncate(50)},
		{"emptied", truncate(0)},
		{"gone", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}},
		{"gone, with a WAL left", func(t *testing.T, path string) {
			for _, name := range []string{path, path + ".lock"} {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(path+"-wal", []byte("frames"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := sqldbtest.SQLite(t, sets()...)
			db, err := sqldb.Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			fill(t, db, 100)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			c.damage(t, config.Path)
			dir := filepath.Dir(config.Path)
			before := sums(t, dir)

			_, err = sqldb.Open(t.Context(), config)
			if fault.ReasonOf(err) != faultv1.Reason_DATA_DAMAGED || !strings.Contains(err.Error(), config.Path) {
				t.Fatalf("got %v", err)
			}
			after := sums(t, dir)
			if c.name == "gone, with a WAL left" {
				delete(after, "db.sqlite.lock")
			}
			if len(before) != len(after) {
				t.Errorf("there were %d files, now %d", len(before), len(after))
			}
			for name, sum := range before {
				if after[name] != sum {
					t.Errorf("%s was changed", name)
				}
			}
		})
	}
}

// A copy of the files of a running database is what a killed process leaves: most of the data stands in the WAL only.
func TestDataInTheLogIsCheckedAndKept(t *testing.T) {
	live := sqldbtest.SQLite(t, sets()...)
	db := sqldbtest.OpenConfig(t, live)
	fill(t, db, 50)
	snapshot := func() sqldb.Config {
		c := sqldbtest.SQLite(t, sets()...)
		for _, suffix := range []string{"", "-wal", ".lock"} {
			data, err := os.ReadFile(live.Path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(c.Path+suffix, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}
	whole := snapshot()
	if info, err := os.Stat(whole.Path + "-wal"); err != nil || info.Size() < 50_000 {
		t.Fatalf("the test needs the rows in the WAL: %v", err)
	}
	if !has(t, sqldbtest.OpenConfig(t, whole), strings.Repeat("k", 50)) {
		t.Error("the rows of the WAL are gone")
	}

	// With a newer schema in the WAL an older binary changes neither file.
	older := snapshot()
	older.Migrations[0] = notes()
	newer := older
	newer.Migrations = []sqldb.MigrationSet{notes("CREATE TABLE later (id TEXT);")}
	ahead, err := sqldb.Open(t.Context(), newer)
	if err != nil {
		t.Fatal(err)
	}
	live = newer
	older2 := snapshot()
	if err := ahead.Close(); err != nil {
		t.Fatal(err)
	}
	before := sums(t, filepath.Dir(older2.Path))
	if _, err := sqldb.Open(t.Context(), older2); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("got %v", err)
	}
	for name, sum := range sums(t, filepath.Dir(older2.Path)) {
		if before[name] != sum {
			t.Errorf("%s was changed", name)
		}
	}
}

func TestInterruptedFirstStartBeginsAnew(t *testing.T) {
	c := sqldbtest.SQLite(t, sets()...)
	for _, name := range []string{c.Path, c.Path + ".lock"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, sqldbtest.OpenConfig(t, c), 1)
}

func TestFolderThatCannotBeUsed(t *testing.T) {
	c := sqldbtest.SQLite(t, sets()...)
	c.Path = filepath.Join(filepath.Dir(c.Path), "nowhere", "db.sqlite")
	if _, err := sqldb.Open(t.Context(), c); !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), filepath.Dir(c.Path)) {
		t.Errorf("no folder: %v", err)
	}
	if err := os.Mkdir(filepath.Dir(c.Path), 0o500); err != nil {
		t.Fatal(err)
	}
	if err := unix.Access(filepath.Dir(c.Path), unix.W_OK); err == nil {
		t.Skip("this user may write everywhere")
	}
	if _, err := sqldb.Open(t.Context(), c); !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), "cannot be written") {
		t.Errorf("read-only folder: %v", err)
	}
}

func TestLinksAreNotFollowed(t *testing.T) {
	elsewhere := sqldbtest.SQLite(t, sets()...)
	for _, suffix := range []string{"", ".lock"} {
		c := sqldbtest.SQLite(t, sets()...)
		if err := os.Symlink(elsewhere.Path, c.Path+suffix); err != nil {
			t.Fatal(err)
		}
		if _, err := sqldb.Open(t.Context(), c); err == nil {
			t.Errorf("a link at %q was followed", suffix)
		}
		if _, err := os.Lstat(elsewhere.Path); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a file was made behind the link")
		}
	}
}

func TestScrubEmptiesTheLog(t *testing.T) {
	c := sqldbtest.SQLite(t, sets()...)
	db := sqldbtest.OpenConfig(t, c)
	canary := []byte("canary-7f3a9c")
	err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO note (id, body) VALUES ('a', $1)", canary)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	anywhere := func() bool {
		found := false
		for _, suffix := range []string{"", "-wal"} {
			data, err := os.ReadFile(c.Path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Contains(data, canary)
		}
		return found
	}
	if !anywhere() {
		t.Fatal("the search does not find what is there")
	}
	err = db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM note")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Scrub(t.Context()); err != nil {
		t.Fatal(err)
	}
	if anywhere() {
		t.Error("what was deleted is still in the files")
	}
}
