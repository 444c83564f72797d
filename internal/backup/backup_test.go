package backup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// D5: what was taken is what comes back, and the folder is one that a service opens.
func TestTakeAndRestore(t *testing.T) {
	l := newLab(t)
	b := l.take(t)
	must(t, l.verify(b))
	data := t.TempDir()
	must(t, restoreInto(data, l.dir, b))
	if got := entries(t, data); got != "keyvault workspace" {
		t.Fatalf("there is %s", got)
	}
	if got := entries(t, filepath.Join(data, "workspace")); got != "blob db.sqlite db.sqlite.lock seal.id seal.key" {
		t.Errorf("workspace has %s", got)
	}
	for _, name := range names {
		db, err := sqldb.Open(t.Context(), sqldb.Config{Driver: sqldb.SQLite, Path: filepath.Join(data, name, "db.sqlite"), Migrations: stores()[name].Migrations, Finish: passThrough})
		must(t, err)
		var n, keys int
		must(t, db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM item WHERE (id = 'first' AND body = $1) OR (id = 'second' AND body IS NULL)", []byte("body")).Scan(&n))
		must(t, db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM data_keys").Scan(&keys))
		must(t, db.Close())
		if n != 2 || keys != 1 {
			t.Errorf("%s has %d items and %d keys", name, n, keys)
		}
	}
	blobs, err := blob.Open(t.Context(), blob.Config{Dir: filepath.Join(data, "workspace", "blob")})
	must(t, err)
	defer func() { _ = blobs.Close() }()
	r, err := blobs.Get(t.Context(), "ws/2")
	must(t, err)
	defer func() { _ = r.Close() }()
	if content, err := io.ReadAll(r); err != nil || string(content) != strings.Repeat("b", 800) {
		t.Errorf("%d bytes, %v", len(content), err)
	}
	for path, mode := range map[string]os.FileMode{"workspace": 0o700, "workspace/seal.key": 0o600, "workspace/db.sqlite": 0o600, "workspace/blob/ws/2": 0o600} {
		if info, err := os.Stat(filepath.Join(data, path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
}

// A service that cannot hold costs the others a second at most, leaves nothing held, and the backup fails in words.
func TestCutThatIsMissed(t *testing.T) {
	l := newLab(t)
	stuck, free := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(free) })
	defer release()
	go func() {
		_ = l.dbs["keyvault"].Write(context.Background(), func(context.Context, *sqldb.Tx) error {
			close(stuck)
			<-free
			return errors.New("undo")
		})
	}()
	<-stuck
	longest, stop, done := time.Duration(0), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			begin := time.Now()
			l.insert(t, "workspace", "w"+decimal(int64(n)), nil)
			longest = max(longest, time.Since(begin))
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	var out bytes.Buffer
	_, err := Take(ctx, TakeConfig{Peers: l.peers, Installation: "lab"}, &out)
	close(stop)
	<-done
	if err == nil || out.Len() > 0 {
		t.Fatalf("%v, %d bytes", err, out.Len())
	}
	if longest > 1500*time.Millisecond || longest < 10*time.Millisecond { // a second, and what a busy machine adds
		t.Errorf("a change waited for %s", longest)
	}
	release()
	l.insert(t, "keyvault", "afterwards", nil)
	l.take(t)
}

// Two backups at once: one of them is told, and nothing is held by it.
func TestOneBackupAtATime(t *testing.T) {
	l := newLab(t)
	prepare := func() error {
		s, err := maintenancev1.NewBackupServiceClient(l.peers[1].Conn).Backup(t.Context())
		must(t, err)
		tk := &taking{peer: l.peers[1], stream: s}
		_, err = tk.prepare(strings.Repeat("a", 26))
		return err
	}
	must(t, prepare())
	if err := prepare(); !fault.Is(err, codes.Aborted) {
		t.Errorf("a second one: %v", err)
	}
	l.insert(t, "workspace", "meanwhile", nil) // when the first has waited for its go long enough
	l.take(t)
}

// What does not belong together is named, before anything is written.
func TestForeign(t *testing.T) {
	l, other := newLab(t), newLab(t)
	b := l.take(t)
	for name, run := range map[string]func(data string) error{
		"the seals of another installation": func(data string) error { return restoreInto(data, other.dir, b) },
		"no seals":                          func(data string) error { return restoreInto(data, t.TempDir(), b) },
		"a service that is not known": func(data string) error {
			return restoreInto(data, l.dir, b, func(c *RestoreConfig) { delete(c.Stores, "keyvault") })
		},
		"a service that is not in it": func(data string) error {
			return restoreInto(data, l.dir, b, func(c *RestoreConfig) { c.Stores["compute"] = c.Stores["keyvault"] })
		},
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			if err := run(data); !fault.Is(err, codes.FailedPrecondition) {
				t.Errorf("got %v", err)
			}
			if got := entries(t, data); got != "" {
				t.Errorf("left %s", got)
			}
		})
	}
	data := t.TempDir()
	must(t, os.WriteFile(filepath.Join(data, "mine"), nil, 0o600))
	if err := restoreInto(data, l.dir, b); !fault.Is(err, codes.FailedPrecondition) || entries(t, data) != "mine" {
		t.Errorf("over somebody's files: %v, %s", err, entries(t, data))
	}
}

// A restore that was cut off at any place leaves what is cleared away by the next.
func TestRestoreAfterAnInterruption(t *testing.T) {
	l := newLab(t)
	b := l.take(t)
	for name, left := range map[string][]string{
		"at the beginning":       {Unfinished + "/x"},
		"while rows were stored": {Unfinished + "/workspace/db.sqlite", Unfinished + "/workspace/db.sqlite-wal"},
		"while it was placed":    {Unfinished + "/workspace/db.sqlite", "keyvault/db.sqlite", "keyvault/seal.key", "keyvault/blob/ws"},
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			for _, path := range left {
				must(t, os.MkdirAll(filepath.Dir(filepath.Join(data, path)), 0o700))
				must(t, os.WriteFile(filepath.Join(data, path), []byte("half"), 0o600))
			}
			must(t, restoreInto(data, l.dir, b))
			if got := entries(t, data); got != "keyvault workspace" {
				t.Errorf("there is %s", got)
			}
		})
	}
	data := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(data, Unfinished), 0o700))
	must(t, os.MkdirAll(filepath.Join(data, "keyvault"), 0o700))
	must(t, os.WriteFile(filepath.Join(data, "keyvault", "notes"), nil, 0o600))
	if err := restoreInto(data, l.dir, b); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("somebody's file in the way: %v", err)
	}
	// What follows the last step fails: nothing of it is left, and nothing starts on it.
	data = t.TempDir()
	err := restoreInto(data, l.dir, b, func(c *RestoreConfig) {
		s := c.Stores["workspace"]
		s.After = func(context.Context, Summary, *sqldb.DB, *envelopeRing) error { return errors.New("after") }
		c.Stores["workspace"] = s
	})
	if err == nil || entries(t, data) != "" {
		t.Errorf("%v, left %s", err, entries(t, data))
	}
}

func TestEncryption(t *testing.T) {
	l := newLab(t)
	plain := l.take(t)
	key, recipient, err := NewIdentity(time.Unix(0, 0))
	must(t, err)
	other, second, err := NewIdentity(time.Unix(0, 0))
	must(t, err)
	pass := redact.FromString("a long enough passphrase")
	encrypt := func(recipients []string, pass redact.Secret) []byte {
		var out bytes.Buffer
		w, err := Encrypt(&out, recipients, pass)
		must(t, err)
		_, err = w.Write(plain)
		must(t, err)
		must(t, w.Close())
		return out.Bytes()
	}
	open := func(b []byte, key, pass redact.Secret) error {
		r, err := Decrypt(bytes.NewReader(b), key, pass)
		if err != nil {
			return err
		}
		_, err = Verify(t.Context(), r, l.dir)
		return err
	}
	both, none := encrypt([]string{recipient, second}, redact.Secret{}), redact.Secret{}
	must(t, open(both, key, none))
	must(t, open(both, other, none))
	byPass := encrypt(nil, pass)
	must(t, open(byPass, none, pass))
	for name, err := range map[string]error{
		"another key":                         open(encrypt([]string{recipient}, none), other, none),
		"another passphrase":                  open(byPass, none, redact.FromString("another passphrase")),
		"a key for one that has a passphrase": open(byPass, key, none),
	} {
		if !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range map[string]func() error{
		"no key":           func() error { return open(both, none, none) },
		"both":             func() error { return open(both, key, pass) },
		"no identity file": func() error { return open(both, redact.FromString("hello"), none) },
		"no recipient":     func() error { _, err := Encrypt(io.Discard, nil, none); return err },
		"not a recipient":  func() error { _, err := Encrypt(io.Discard, []string{"age1nonsense"}, none); return err },
		"a short one":      func() error { _, err := Encrypt(io.Discard, nil, redact.FromString("short")); return err },
	} {
		if err := f(); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := open([]byte("no backup at all"), key, none); !fault.Is(err, codes.DataLoss) {
		t.Errorf("another file: %v", err)
	}
	plain = []byte("something else that was encrypted for this key")
	if err := open(encrypt([]string{recipient}, none), key, none); !fault.Is(err, codes.DataLoss) {
		t.Errorf("another content: %v", err)
	}
}
