package sqldb_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// These tests run this test binary again as a process that is killed, whose disk fails, or whose disk is full.
const childEnv = "REDOUBT_SQLDB_CHILD"

func TestMain(m *testing.M) {
	switch path := os.Args[len(os.Args)-1]; os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "endless":
		os.Exit(writes(path, 1<<30))
	case "ten":
		os.Exit(writes(path, 10))
	case "full":
		os.Exit(fullDisk(path))
	default:
		os.Exit(64)
	}
}

func child(t *testing.T, what, path string, before ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(before, self, path)
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	cmd.Stderr = os.Stderr
	return cmd
}

func childConfig(path string) sqldb.Config {
	return sqldb.Config{Driver: sqldb.SQLite, Path: path, Migrations: sets(), Finish: sqldbtest.PassThrough}
}

// writes inserts rows one by one and prints each that was acknowledged or refused.
func writes(path string, n int) int {
	runtime.LockOSThread() // strace counts the calls of each thread by itself
	db, err := sqldb.Open(context.Background(), childConfig(path))
	if err != nil {
		fmt.Println("open", fault.Code(err))
		return 0
	}
	fmt.Println("opened")
	for i := range n {
		write := db.Write
		if i%2 == 1 {
			write = db.WriteGrouped
		}
		err := write(context.Background(), func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, fmt.Sprint("n", i)) })
		if err != nil {
			fmt.Println("refused", i, fault.Code(err))
		} else {
			fmt.Println("acknowledged", i)
		}
	}
	return 0
}

func TestKilledProcessLosesNothingAcknowledged(t *testing.T) {
	for _, after := range []int{1, 7, 40} {
		c := sqldbtest.SQLite(t, sets()...)
		cmd := child(t, "endless", c.Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var acknowledged []string
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if i, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
				acknowledged = append(acknowledged, "n"+i)
			}
			if len(acknowledged) == after {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		if len(acknowledged) < after {
			t.Fatalf("the process acknowledged %d writes before it ended", len(acknowledged))
		}
		db := sqldbtest.OpenConfig(t, c)
		for _, id := range acknowledged {
			if !has(t, db, id) {
				t.Errorf("%s was acknowledged and is lost", id)
			}
		}
	}
}

// One fsync fails, and the next would succeed: from then on nothing may be acknowledged (RELIABILITY: fsyncgate).
func TestFailedSyncStopsWrites(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	probe := exec.CommandContext(t.Context(), strace, "-f", "-o", "/dev/null", "true")
	if err := probe.Run(); err != nil {
		t.Skip("this process may not trace")
	}
	stopped := 0
	for _, nth := range []int{1, 3, 6, 9, 12, 14} {
		c := sqldbtest.SQLite(t, sets()...)
		cmd := child(t, "ten", c.Path, strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
			"-e", fmt.Sprintf("inject=fsync,fdatasync:error=EIO:when=%d", nth))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("the process: %v", err)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		refused := false
		db := sqldbtest.OpenConfig(t, c)
		for _, line := range lines {
			switch {
			case strings.HasPrefix(line, "refused"):
				refused = true
			case strings.HasPrefix(line, "acknowledged"):
				if refused {
					t.Errorf("fsync %d failed, and yet: %s", nth, line)
				}
				if id := "n" + strings.Fields(line)[1]; !has(t, db, id) {
					t.Errorf("fsync %d failed: %s was acknowledged and is lost", nth, id)
				}
			}
		}
		if refused && lines[0] == "opened" {
			stopped++
		}
	}
	if stopped == 0 {
		t.Error("no fsync of a commit was hit; the test shows nothing")
	}
}

func TestFullDiskIsReportedAndPasses(t *testing.T) {
	dir := t.TempDir()
	cmd := child(t, "full", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == 77:
		t.Skip("this process may not mount")
	case errors.As(err, &exit):
		t.Fatalf("%v\n%s", err, out)
	case err != nil:
		t.Skipf("no user namespace: %v", err)
	}
}

// fullDisk fills a file system of 1 MiB, frees it, and goes on.
func fullDisk(dir string) int {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		return 77
	}
	db, err := sqldb.Open(context.Background(), childConfig(filepath.Join(dir, "db.sqlite")))
	if err != nil {
		fmt.Println("open:", err)
		return 1
	}
	ballast := filepath.Join(dir, "ballast")
	put := func(id string) error {
		return db.Write(context.Background(), func(ctx context.Context, tx *sqldb.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO note (id, body) VALUES ($1, $2)", id, bytes.Repeat([]byte{1}, 20_000))
			return err
		})
	}
	if err := put("before"); err != nil {
		fmt.Println("before:", err)
		return 1
	}
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		fmt.Println("the disk is not full:", err)
		return 1
	}
	failed := 0
	for i := range 5 {
		if err := put(fmt.Sprint("full", i)); err != nil {
			failed++
			if fault.ReasonOf(err) != faultv1.Reason_STORAGE_FULL {
				fmt.Println("full:", err)
				return 1
			}
		}
	}
	if failed == 0 {
		fmt.Println("a full disk took everything")
		return 1
	}
	if err := os.Remove(ballast); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := put("after"); err != nil {
		fmt.Println("after:", err)
		return 1
	}
	var n int
	if err := db.Reader().QueryRowContext(context.Background(), "SELECT COUNT(*) FROM note").Scan(&n); err != nil || n != 7-failed {
		fmt.Println("rows:", n, err)
		return 1
	}
	if err := db.Close(); err != nil {
		fmt.Println("close:", err)
		return 1
	}
	return 0
}
