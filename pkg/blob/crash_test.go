package blob

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// These tests run this test binary again as a process that is killed, that is watched, whose disk fails, or whose disk is full.
const childEnv = "REDOUBT_BLOB_CHILD"

func TestMain(m *testing.M) {
	switch path := os.Args[len(os.Args)-1]; os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "endless":
		os.Exit(puts(path, 1<<30))
	case "few":
		os.Exit(puts(path, 4))
	case "batches":
		os.Exit(putsAll(path, 1<<30))
	case "batch":
		os.Exit(putsAll(path, 2))
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

func content(i int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%09d\n", i)), 1000) }

// puts stores blobs and prints each that was acknowledged or refused.
func puts(dir string, n int) int {
	s, err := Open(context.Background(), Config{Dir: dir})
	if err != nil {
		fmt.Println("open", fault.Code(err))
		return 0
	}
	fmt.Println("opened")
	for i := range n {
		if _, err := s.Put(context.Background(), fmt.Sprintf("d%d/n%d", i%3, i), bytes.NewReader(content(i))); err != nil {
			fmt.Println("refused", i, fault.Code(err))
		} else {
			fmt.Println("acknowledged", i)
		}
	}
	return 0
}

// inBatch is how many blobs of putsAll go together.
const inBatch = 10

// putsAll is puts by batches.
func putsAll(dir string, n int) int {
	s, err := Open(context.Background(), Config{Dir: dir})
	if err != nil {
		fmt.Println("open", fault.Code(err))
		return 0
	}
	fmt.Println("opened")
	for b := range n {
		items := make([]Item, inBatch)
		for i := range items {
			k := b*inBatch + i
			items[i] = Item{fmt.Sprintf("d%d/n%d", k%3, k), content(k)}
		}
		what := "acknowledged"
		if err := s.PutAll(context.Background(), items); err != nil {
			what = "refused"
		}
		for i := range items {
			fmt.Println(what, b*inBatch+i)
		}
	}
	return 0
}

func TestKilledProcessLeavesWholeBlobsOnly(t *testing.T) {
	for _, what := range []string{"endless", "batches"} {
		t.Run(what, func(t *testing.T) { killed(t, what) })
	}
}

func killed(t *testing.T, what string) {
	for _, after := range []int{1, 20, 60} {
		dir := filepath.Join(t.TempDir(), "blob")
		cmd := child(t, what, dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "acknowledged ") {
				acknowledged++
			}
			if acknowledged == after {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		if acknowledged < after {
			t.Fatalf("the process acknowledged %d blobs before it ended", acknowledged)
		}
		// What a kill can leave in any case, besides what it has left in this one.
		if err := os.WriteFile(filepath.Join(dir, temporary, "left"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		for i := range acknowledged {
			if get(t, s, fmt.Sprintf("d%d/n%d", i%3, i)) != string(content(i)) {
				t.Errorf("blob %d was acknowledged and is not whole", i)
			}
		}
		for _, name := range list(t, s, "") {
			if len(get(t, s, name)) != len(content(0)) {
				t.Errorf("%s is not whole", name)
			}
		}
		if left, err := os.ReadDir(filepath.Join(dir, temporary)); err != nil || len(left) != 0 {
			t.Errorf("temporary files are left: %v, %v", left, err)
		}
	}
}

func strace(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if err := exec.CommandContext(t.Context(), path, "-f", "-o", "/dev/null", "true").Run(); err != nil {
		t.Skip("this process may not trace")
	}
	return path
}

// The order that makes an acknowledgement true: the bytes, then the name of a new folder, then the name of the blob.
func TestOrderOfSyncs(t *testing.T) {
	steps := traced(t, "few", 4)
	first := []string{"write", "sync bytes", "make folder", "sync top", "rename", "sync folder", "acknowledge"}
	again := []string{"write", "sync bytes", "rename", "sync folder", "acknowledge"} // the folder is known by now
	if want := slices.Concat(first, first, first, again); !slices.Equal(steps, want) {
		t.Errorf("got  %v\nwant %v", steps, want)
	}
}

// Of a batch: the bytes of all, then the names, then each folder once, and only then the acknowledgement.
func TestOrderOfSyncsOfBatch(t *testing.T) {
	var steps []string // without who is first of those at the same time
	for _, s := range traced(t, "batch", 2*inBatch) {
		if s != "write" && s != "make folder" && s != "sync top" {
			steps = append(steps, s)
		}
	}
	one := slices.Concat(slices.Repeat([]string{"sync bytes"}, inBatch), slices.Repeat([]string{"rename"}, inBatch), slices.Repeat([]string{"sync folder"}, 3), slices.Repeat([]string{"acknowledge"}, inBatch))
	if want := slices.Concat(one, one); !slices.Equal(steps, want) {
		t.Errorf("got  %v\nwant %v", steps, want)
	}
}

// traced runs a child and gives what it did to the disk, in order.
func traced(t *testing.T, what string, acknowledged int) []string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "blob")
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := child(t, what, dir, strace(t), "-f", "-y", "-o", trace, "-e", "trace=fsync,fdatasync,mkdirat,renameat,renameat2,write")
	if out, err := cmd.Output(); err != nil || bytes.Count(out, []byte("acknowledged")) != acknowledged {
		t.Fatalf("%s, %v", out, err)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	resumed := make(map[string]string) // a call that another thread interrupted in the trace
	unfinished := regexp.MustCompile(`^(\d+) +(.*) <unfinished \.\.\.>$`)
	rest := regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if m := unfinished.FindStringSubmatch(line); m != nil {
			resumed[m[1]] = m[1] + " " + m[2]
			continue
		}
		if m := rest.FindStringSubmatch(line); m != nil {
			line = resumed[m[1]] + m[2]
		}
		switch {
		case strings.Contains(line, `write(1<`) && strings.Contains(line, "opened"):
			steps = nil // what Open did
		case strings.Contains(line, `write(1<`) && strings.Contains(line, "acknowledged"):
			steps = append(steps, "acknowledge")
		case strings.Contains(line, " write(") && strings.Contains(line, "/blob/.tmp/"):
			if len(steps) == 0 || steps[len(steps)-1] != "write" {
				steps = append(steps, "write")
			}
		case strings.Contains(line, "mkdirat("):
			steps = append(steps, "make folder")
		case strings.Contains(line, "rename"):
			steps = append(steps, "rename")
		case strings.Contains(line, "sync(") && strings.Contains(line, "/blob/.tmp/"):
			steps = append(steps, "sync bytes")
		case strings.Contains(line, "sync(") && strings.Contains(line, "/blob>"):
			steps = append(steps, "sync top")
		case strings.Contains(line, "sync("):
			steps = append(steps, "sync folder")
		}
	}
	return steps
}

// One fsync fails, and the next would succeed: from then on nothing may be acknowledged.
func TestFailedSyncStopsPuts(t *testing.T) {
	for what, nths := range map[string][]int{"few": {2, 3, 4, 5, 6, 8}, "batch": {2, 7, 12, 13, 18}} {
		t.Run(what, func(t *testing.T) { failedSync(t, what, nths) })
	}
}

func failedSync(t *testing.T, what string, nths []int) {
	tracer := strace(t)
	stopped := 0
	for _, nth := range nths {
		dir := filepath.Join(t.TempDir(), "blob")
		cmd := child(t, what, dir, tracer, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
			"-e", fmt.Sprintf("inject=fsync,fdatasync:error=EIO:when=%d", nth))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("the process: %v", err)
		}
		s := open(t, dir)
		refused := false
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		for _, line := range lines {
			var i int
			switch {
			case strings.HasPrefix(line, "refused"):
				refused = true
			case strings.HasPrefix(line, "acknowledged"):
				if refused {
					t.Errorf("fsync %d failed, and yet: %s", nth, line)
				}
				if _, err := fmt.Sscanf(line, "acknowledged %d", &i); err != nil {
					t.Fatal(err)
				}
				if get(t, s, fmt.Sprintf("d%d/n%d", i%3, i)) != string(content(i)) {
					t.Errorf("fsync %d failed: blob %d is not whole", nth, i)
				}
			}
		}
		if refused && lines[0] == "opened" {
			stopped++
		}
	}
	if stopped == 0 {
		t.Error("no fsync of a Put was hit; the test shows nothing")
	}
}

func TestFullDiskIsReportedAndPasses(t *testing.T) {
	cmd := child(t, "full", t.TempDir())
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

// fullDisk puts more than a file system of 1 MiB holds.
func fullDisk(dir string) int {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		return 77
	}
	fail := func(what string, err error) int {
		fmt.Println(what, err)
		return 1
	}
	s, err := Open(context.Background(), Config{Dir: filepath.Join(dir, "blob")})
	if err != nil {
		return fail("open", err)
	}
	ctx, small := context.Background(), strings.Repeat("s", 1000)
	if _, err := s.Put(ctx, "a", strings.NewReader(small)); err != nil {
		return fail("before", err)
	}
	for _, name := range []string{"a", "new/b"} {
		if _, err := s.Put(ctx, name, io.LimitReader(endless{}, 2<<20)); fault.ReasonOf(err) != faultv1.Reason_STORAGE_FULL {
			return fail("full", err)
		}
	}
	r, err := s.Get(ctx, "a")
	if err != nil {
		return fail("the old content", err)
	}
	if old, err := io.ReadAll(r); err != nil || string(old) != small {
		return fail("the old content", err)
	}
	for info, err := range s.List(ctx, "") {
		if err != nil || info.Name != "a" {
			return fail("half written "+info.Name, err)
		}
	}
	batch := []Item{{"a", bytes.Repeat([]byte("t"), 1000)}, {"new/b", make([]byte, 2<<20)}}
	if err := s.PutAll(ctx, batch); fault.ReasonOf(err) != faultv1.Reason_STORAGE_FULL {
		return fail("full by a batch", err)
	}
	for info, err := range s.List(ctx, "") {
		if err != nil || info.Name != "a" || info.Size != 1000 {
			return fail("half written by a batch: "+info.Name, err)
		}
	}
	// Nothing of the failed ones takes space now.
	if _, err := s.Put(ctx, "new/b", io.LimitReader(endless{}, 900<<10)); err != nil {
		return fail("after", err)
	}
	return 0
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
