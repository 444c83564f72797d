package identity

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// failing is a hasher that looks at nothing.
type failing struct {
	hasher
	err error
}

func (f failing) Verify(context.Context, string, redact.Secret) (bool, bool, error) {
	return false, false, f.err
}

func (f failing) Dummy(context.Context, redact.Secret) error { return f.err }

// A1: who is turned away because the service is busy has not used up a try; who gives up has.
func TestTriesThatAreNotMadeDoNotCount(t *testing.T) {
	busy := fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "busy")
	for name, c := range map[string]struct {
		err    error
		counts bool
	}{"busy": {busy, false}, "a dead worker": {fault.Unavailable("dead"), false}, "given up": {context.Canceled, true}, "damaged": {fault.Internal(nil, "damaged"), true}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.addUser("alice")
			plain := l.s.hasher
			for _, user := range []string{"alice", "nobody"} {
				l.s.hasher = failing{plain, c.err}
				for i := range 5 {
					_, _ = l.try(user, "password of alice", fmt.Sprint("192.0.2.", i))
				}
				l.s.hasher = plain
				_, err := l.try(user, "password of alice", "192.0.2.9")
				if locked := fault.Code(err) == codes.ResourceExhausted; locked != c.counts {
					t.Errorf("%s: %v", user, err)
				}
			}
		})
	}
}

// A1: a worker that dies while it checks a password fails that sign-in, lets nobody in, and the next one is served.
func TestSignInWhoseWorkerIsKilled(t *testing.T) {
	if !apart.Supported {
		t.Skip("only Linux has workers")
	}
	l := newLabOf(t, func(c *Config) { c.Password = password.Config{Apart: true, MemoryKiB: 64 << 10, Passes: 4} })
	t.Cleanup(l.s.hasher.Close)
	l.addUser("alice")
	result := make(chan error, 1)
	go func() {
		session, err := l.try("alice", "password of alice", "192.0.2.1")
		if session != nil {
			err = fmt.Errorf("there is a session, and %w", err)
		}
		result <- err
	}()
	waitFor(t, "the hash", func() bool { return l.s.Passwords().Pending == 1 })
	if n := killWorkers(t); n != 1 {
		t.Errorf("%d workers", n)
	}
	want(t, "the sign-in", <-result, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
	l.signIn("alice", "password of alice")
	if _, err := l.try("alice", "password of bob", "192.0.2.1"); fault.Code(err) != codes.Unauthenticated {
		t.Errorf("a wrong password: %v", err)
	}
	if s := l.s.Passwords(); s.Started != 2 || s.Failed != 1 || s.Pending != 0 {
		t.Errorf("%+v", s)
	}
	must(t, l.s.Close())
	if n := killWorkers(t); n != 0 {
		t.Errorf("%d workers outlive the service", n)
	}
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there is no end of waiting for %s", what)
		}
	}
}

// killWorkers kills all workers of this process, and says how many those were.
func killWorkers(t *testing.T) (n int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	for _, task := range tasks {
		children, _ := os.ReadFile(task)
		for pid := range strings.FieldsSeq(string(children)) {
			if args, _ := os.ReadFile("/proc/" + pid + "/cmdline"); !strings.HasPrefix(string(args), "redoubt-password-worker\x00") {
				continue
			}
			id, err := strconv.Atoi(pid)
			must(t, err)
			must(t, syscall.Kill(id, syscall.SIGKILL))
			n++
		}
	}
	return n
}
