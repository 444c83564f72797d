package requestlog_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/inference/internal/requestlog"
)

// childEnv says to the test binary that it is the process that will be killed: folder, seal and database, and the first number.
const childEnv = "REDOUBT_TEST_REQUESTLOG"

// TestAppendingChild is not a test: it is the other process of TestKilled.
func TestAppendingChild(t *testing.T) {
	arg := os.Getenv(childEnv)
	if arg == "" {
		t.Skip("it is started by TestKilled")
	}
	parts := strings.Split(arg, "|")
	first, err := strconv.Atoi(parts[3])
	must(t, err)
	own := keyring(t, parts[1], parts[2])
	l, err := requestlog.Open(context.Background(), requestlog.Config{Dir: parts[0], Own: own, Client: &telemetry{}, Instance: "a", SegmentBytes: 16 << 10})
	must(t, err)
	defer func() { _ = l.Close() }()
	if parts[4] == "full" {
		fillAndGoOn(t, l)
		return
	}
	for n := first; ; n++ {
		l.Append(record(n))
		// The number is told after Append has returned: it must not be lost.
		if _, err := os.Stdout.WriteString("appended " + strconv.Itoa(n) + "\n"); err != nil {
			return
		}
	}
}

// fillAndGoOn appends 100 records to a disk that takes 10,000 bytes of a file, and then further ones to one that takes more.
func fillAndGoOn(t *testing.T, l *requestlog.Log) {
	signal.Ignore(syscall.SIGXFSZ)
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &limit))
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 10_000, Max: limit.Max}))
	appendAll(l, 1, 100)
	kept := 100 - int(l.Dropped())
	if kept < 10 || kept > 50 {
		t.Fatalf("%d of 100 were kept", kept)
	}
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &limit))
	appendAll(l, kept+1, 200)
	if int(l.Dropped()) != 100-kept {
		t.Fatalf("%d were dropped", l.Dropped())
	}
}

// TestDiskFullInTheMiddle: what a full disk has taken of a record does not stand before the next one.
func TestDiskFullInTheMiddle(t *testing.T) {
	p := newSpool(t, nil)
	dir := t.TempDir()
	sealFile, database := dir+"/seal.key", dir+"/db.sqlite"
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestAppendingChild$")
	child.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{p.dir, sealFile, database, "1", "full"}, "|"))
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.own = keyring(t, sealFile, database)
	p.cfg.Own = p.own
	l := p.open()
	dropped := l.Dropped()
	p.relay(l, 200)
	p.exactly(1, 200)
	if dropped < 50 || p.to.lost() != dropped {
		t.Errorf("%d were dropped, %d told", dropped, p.to.lost())
	}
}

func keyring(t testing.TB, sealFile, database string) *envelope.Keyring {
	s, err := seal.OpenFile(sealFile, true)
	must(t, err)
	config := sqldbtest.SQLite(t, []sqldb.MigrationSet{envelope.Migrations()}...)
	config.Path = database
	own, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, "inference"), DB: sqldbtest.OpenConfig(t, config)})
	must(t, err)
	return own
}

// TestKilled kills a process in the middle of its work, again and again. All that it had appended is delivered, once, in order (G3).
func TestKilled(t *testing.T) {
	p := newSpool(t, nil)
	dir := t.TempDir()
	sealFile, database := dir+"/seal.key", dir+"/db.sqlite"
	first := 1
	for range 5 {
		last := appendAndKill(t, p.dir, sealFile, database, first)
		t.Run("", func(t *testing.T) { // its database is closed before the next child opens it
			p := &spool{t: t, dir: p.dir, own: keyring(t, sealFile, database), to: p.to}
			p.cfg = requestlog.Config{Dir: p.dir, Own: p.own, Client: p.to, Instance: "a"}
			l := p.open()
			p.relay(l, last)
			// The record after the last that was told may be whole too.
			got := p.to.requests()
			if n := len(got); n < last || n > last+1 {
				t.Fatalf("telemetry has %d requests, and %d were appended", n, last)
			}
			p.exactly(1, len(got))
			if l.Dropped() != 0 {
				t.Errorf("%d were dropped", l.Dropped())
			}
			first = len(got) + 1
		})
	}
}

// appendAndKill gives the last number that the process told before it was killed.
func appendAndKill(t *testing.T, dir, sealFile, database string, first int) (last int) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestAppendingChild$")
	child.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{dir, sealFile, database, strconv.Itoa(first), ""}, "|"))
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "appended ")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			continue // cut by the kill
		}
		if last = n; n == first+700 {
			must(t, child.Process.Signal(syscall.SIGKILL))
		}
	}
	_ = child.Wait()
	if last < first+700 {
		t.Fatalf("the process ended by itself after %d", last)
	}
	return last
}
