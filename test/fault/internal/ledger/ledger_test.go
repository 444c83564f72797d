//go:build linux

package ledger

import (
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"
)

// A command that is started twice is noted twice, one that was started once, once.
func TestStarts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the kernel tells root alone")
	}
	l, err := Open(regexp.MustCompile(`ledger-test-([a-z]+)`))
	if err != nil {
		t.Skipf("this kernel does not tell: %v", err)
	}
	defer l.Close()
	for _, m := range []string{"once", "twice", "twice"} {
		if err := exec.CommandContext(t.Context(), "sh", "-c", "sleep 0.2; :", "ledger-test-"+m).Run(); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for len(l.Starts("twice")) < 2 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond) // the kernel's own work
	}
	if a, b := l.Starts("once"), l.Starts("twice"); len(a) != 1 || len(b) != 2 || l.Err() != nil {
		t.Errorf("noted %v and %v, %v", a, b, l.Err())
	}
}
