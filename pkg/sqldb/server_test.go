package sqldb_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// overTLS is the server that takes nothing else, with the folder of its roots.
func overTLS(t *testing.T) (dsn *url.URL, folder string) {
	t.Helper()
	folder = os.Getenv("REDOUBT_TEST_POSTGRES_TLS")
	if folder == "" {
		t.Skip("REDOUBT_TEST_POSTGRES_TLS is not set: make test-postgres")
	}
	dsn, err := url.Parse(os.Getenv(sqldbtest.Env))
	if err != nil {
		t.Fatal(err)
	}
	return dsn, folder
}

// D10: a server is believed by a root that is named, for the name that is dialled; the message says what to do, and never the password.
func TestVerifyFullAndNothingLess(t *testing.T) {
	good, folder := overTLS(t)
	host, port, _ := net.SplitHostPort(good.Host)
	password, _ := good.User.Password()
	// The same server at an address that its certificate does not have.
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go carry(l, net.JoinHostPort(host, port))
	for name, c := range map[string]struct {
		change func(u *url.URL, q url.Values)
		code   codes.Code
		words  string
	}{
		"as it is":          {func(*url.URL, url.Values) {}, codes.OK, ""},
		"by name":           {func(u *url.URL, _ url.Values) { u.Host = "localhost:" + port }, codes.OK, ""},
		"another root":      {func(_ *url.URL, q url.Values) { q.Set("sslrootcert", filepath.Join(folder, "other.pem")) }, codes.FailedPrecondition, "sslrootcert"},
		"the system's root": {func(_ *url.URL, q url.Values) { q.Del("sslrootcert") }, codes.FailedPrecondition, "sslrootcert"},
		"another host":      {func(u *url.URL, _ url.Values) { u.Host = l.Addr().String() }, codes.FailedPrecondition, "for another host"},
		"another password":  {func(u *url.URL, _ url.Values) { u.User = url.UserPassword("redoubt", password+"x") }, codes.FailedPrecondition, "the role or its password"},
		"plain":             {func(_ *url.URL, q url.Values) { q.Set("sslmode", "disable") }, codes.FailedPrecondition, "sslmode=verify-full"},
		"plain, elsewhere":  {func(u *url.URL, q url.Values) { u.Host = "db.example:1"; q.Set("sslmode", "disable") }, codes.InvalidArgument, "sslmode=verify-full"},
		"prefer, elsewhere": {func(u *url.URL, q url.Values) { u.Host = "db.example:1"; q.Set("sslmode", "prefer") }, codes.InvalidArgument, "sslmode=verify-full"},
		"require, elsewhere": {func(u *url.URL, q url.Values) {
			u.Host = "db.example:1"
			q.Set("sslmode", "require")
			q.Del("sslrootcert")
		}, codes.InvalidArgument, "sslmode=verify-full"},
		"verify-ca, elsewhere": {func(u *url.URL, q url.Values) { u.Host = "db.example:1"; q.Set("sslmode", "verify-ca") }, codes.InvalidArgument, "sslmode=verify-full"},
		"second host is plain": {func(u *url.URL, q url.Values) {
			u.Host += ",db.example:1"
			q.Set("sslmode", "require")
			q.Del("sslrootcert")
		}, codes.InvalidArgument, "sslmode=verify-full"},
		"first host is away": {func(u *url.URL, q url.Values) {
			u.Host = "127.0.0.1:1," + u.Host
			q.Set("target_session_attrs", "read-write")
		}, codes.OK, ""},
		"nobody there": {func(u *url.URL, _ url.Values) { u.Host = "127.0.0.1:1" }, codes.Unavailable, "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			u, q := *good, good.Query()
			c.change(&u, q)
			u.RawQuery = q.Encode()
			db, err := sqldb.Open(t.Context(), sqldb.Config{Driver: sqldb.Postgres, DSN: redact.FromString(u.String()), Finish: sqldbtest.PassThrough})
			if err == nil {
				defer func() { _ = db.Close() }()
				var tls bool
				if err := db.Reader().QueryRowContext(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&tls); err != nil || !tls {
					t.Errorf("not over TLS: %v", err)
				}
			}
			if fault.Code(err) != c.code || err != nil && (!strings.Contains(err.Error(), c.words) || strings.Contains(err.Error(), password)) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func carry(l net.Listener, to string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			_ = in.Close()
			continue
		}
		go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
		go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
	}
}

// A server that is killed, or restarted, under writes: what is under way is UNAVAILABLE, the pools come back by themselves, and what was
// acknowledged is there once.
func TestServerDiesUnderWrites(t *testing.T) {
	control := os.Getenv("REDOUBT_TEST_POSTGRES_CONTROL")
	if control == "" || os.Getenv("REDOUBT_TEST_POSTGRES_ALONE") == "" {
		t.Skip("this kills the server, which has to be the test's alone: make test-postgres")
	}
	db := sqldbtest.OpenConfig(t, sqldbtest.Postgres(t, sets()...))
	do := func(what string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), control, what).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", what, err, out)
		}
	}
	var mu sync.Mutex
	acknowledged, unknown := map[string]bool{}, map[string]bool{}
	var tried, refused, read atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprintf("w%d-%d", w, i)
				tried.Add(1)
				err := db.Write(context.Background(), func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, id) })
				mu.Lock()
				switch {
				case err == nil:
					acknowledged[id] = true
				default:
					unknown[id] = true // most are not there; the result of a commit can be lost
					refused.Add(1)
				}
				mu.Unlock()
				if err != nil {
					if !fault.Is(err, codes.Unavailable) {
						t.Errorf("a write under way: %v", err)
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			var n int
			if err := sqldb.Fault(db.Reader().QueryRowContext(context.Background(), "SELECT COUNT(*) FROM counter").Scan(&n)); err == nil {
				read.Add(1)
			} else if !fault.Is(err, codes.Unavailable) {
				t.Errorf("a read under way: %v", err)
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	more := func(n int) {
		t.Helper()
		mu.Lock()
		want := len(acknowledged) + n
		mu.Unlock()
		reads := read.Load() + 5
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			got := len(acknowledged)
			mu.Unlock()
			if got >= want && read.Load() >= reads {
				return
			}
			if time.Now().After(end) || t.Failed() {
				t.Fatalf("%d writes and %d reads, not %d and %d", got, read.Load(), want, reads)
			}
		}
	}
	for _, what := range []string{"kill", "stop", "kill"} {
		more(50)
		do(what)
		before := refused.Load()
		for end := time.Now().Add(10 * time.Second); refused.Load() < before+4 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
		if refused.Load() == before {
			t.Error("nothing was refused while the server was away")
		}
		begun := time.Now()
		do("start")
		more(50)
		t.Logf("after %s: writes and reads again %v after the start was asked for", what, time.Since(begun).Round(time.Millisecond))
	}
	stop()
	wg.Wait()
	rows, err := db.Reader().QueryContext(t.Context(), "SELECT id FROM note")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	there, late := map[string]bool{}, 0
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		there[id] = true
		switch {
		case acknowledged[id]:
		case unknown[id]:
			late++
		default:
			t.Errorf("%s was never tried", id)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	lost := 0
	for id := range acknowledged {
		if !there[id] {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, len(acknowledged))
	}
	t.Logf("%d tried, %d acknowledged, %d UNAVAILABLE of which %d had been stored, %d lost", tried.Load(), len(acknowledged), refused.Load(), late, lost)
}

// The tablespace of the server fills up: STORAGE_FULL, nothing half, and it ends by itself.
func TestPostgresDiskFull(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv("REDOUBT_TEST_POSTGRES_ALONE") == "" {
		t.Skip("needs root, to mount a small file system, and make test-postgres")
	}
	folder, err := os.MkdirTemp("/tmp", "redoubt-tablespace-") //nolint:usetesting // the server's user gets there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=8m,mode=0777", "tmpfs", folder).CombinedOutput(); err != nil {
		t.Skipf("cannot mount: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.CommandContext(context.Background(), "umount", "-l", folder).Run() })
	space := filepath.Join(folder, "space")
	if out, err := exec.CommandContext(t.Context(), "install", "-d", "-o", "postgres", "-m", "0700", space).CombinedOutput(); err != nil {
		t.Skipf("the server does not run as postgres: %v %s", err, out)
	}
	c := sqldbtest.Postgres(t, sets()...)
	db := sqldbtest.OpenConfig(t, c)
	name := "small_" + c.Schema
	admin := func(statement string) {
		t.Helper()
		if out, err := exec.CommandContext(context.Background(), "psql", os.Getenv(sqldbtest.Env), "-v", "ON_ERROR_STOP=1", "-c", statement).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", statement, err, out)
		}
	}
	admin("CREATE TABLESPACE " + name + " LOCATION '" + space + "'")
	t.Cleanup(func() {
		admin("DROP TABLE IF EXISTS " + c.Schema + ".tag; DROP TABLE IF EXISTS " + c.Schema + ".note")
		admin("DROP TABLESPACE " + name)
	})
	admin("ALTER TABLE " + c.Schema + ".note SET TABLESPACE " + name)
	put := func(id string, size int) error {
		return db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			if err := insert(ctx, tx, id); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, "UPDATE note SET body = $1 WHERE id = $2", noise(size), id)
			return err
		})
	}
	if err := put("before", 1000); err != nil {
		t.Fatal(err)
	}
	full := 0
	for i := range 40 {
		err := put(fmt.Sprintf("n%d", i), 512<<10)
		if err == nil {
			continue
		}
		if fault.ReasonOf(err).String() != "STORAGE_FULL" {
			t.Fatalf("got %v", err)
		}
		if has(t, db, fmt.Sprintf("n%d", i)) {
			t.Error("half of what was refused is there")
		}
		if full++; full == 3 {
			break
		}
	}
	if full < 3 {
		t.Fatalf("refused %d times: the disk was not full", full)
	}
	if !has(t, db, "before") {
		t.Error("reads end with the disk")
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,size=32m", folder).CombinedOutput(); err != nil {
		t.Fatalf("make room: %v %s", err, out)
	}
	if err := put("after", 512<<10); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// noise is what no compression makes smaller.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

// Instances that start at the same moment on a database that has nothing yet: one makes the schema, none is told that it cannot be made.
func TestInstancesMakeOneSchema(t *testing.T) {
	for range 5 {
		c := sqldbtest.Postgres(t, sets()...)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				db, err := sqldb.Open(t.Context(), c)
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				if err := db.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
		}
		wg.Wait()
	}
}
