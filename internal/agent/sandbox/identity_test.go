//go:build linux

package sandbox

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox/internal/stage"
)

func TestDrawID(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name, table string
		from, to    int
		whole       bool
	}{
		{"the machine's own", "0 0 4294967295\n", unused, unused + unusedCount - 1, true},
		{"all, but another's", "0 5 4294967290\n", unused, unused + unusedCount - 1, false},
		{"a container's", "0 100000 65536\n", 61000, 65534, false},
		{"an ordinary user's", "0 1000 1\n1 100000 65536\n", 61000, 65535, false},
		{"one alone", "0 1000 1\n", 0, 0, false},
		{"none", "", 0, 0, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "map")
			if err := os.WriteFile(path, []byte(c.table), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 100 {
				id, whole, err := drawID(path)
				if err != nil || id < c.from || id > c.to || whole != c.whole {
					t.Fatalf("%d, %v, %v; want %d to %d, %v", id, whole, err, c.from, c.to, c.whole)
				}
			}
		})
	}
	if _, _, err := drawID(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing table gives a number")
	}
}

func TestLimitsDefault(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	small, err := Limits{}.complete(2 * gib)
	if err != nil || small.MemoryBytes != gib || small.DiskBytes != gib/2 || small.AddressBytes != 2*gib || small.Processes != 512 || small.OpenFiles != 1024 {
		t.Errorf("%+v, %v", small, err)
	}
	large, err := Limits{FileBytes: 5}.complete(512 * gib)
	if err != nil || large.MemoryBytes != 4*gib || large.DiskBytes != 2*gib || large.FileBytes != 5 || large.CPUTime != 0 {
		t.Errorf("%+v, %v", large, err)
	}
	if machineMemory() < gib/4 {
		t.Errorf("the machine has %d bytes", machineMemory())
	}
}

func TestExitOf(t *testing.T) {
	t.Parallel()
	const killed, xcpu, term = 9, 24, 15 // as wait(2) gives signals
	cases := []struct {
		name  string
		ended stage.Ended
		limit time.Duration
		want  Exit
	}{
		{"success", stage.Ended{}, 0, Exit{Reason: Exited}},
		{"failure", stage.Ended{Status: 3 << 8, CPU: 5, PeakMemory: 7}, 0, Exit{Code: 3, Reason: Exited, CPU: 5, PeakMemory: 7}},
		{"signal", stage.Ended{Status: term}, time.Second, Exit{Code: 143, Signal: 15, Reason: Signaled}},
		{"processor time", stage.Ended{Status: xcpu}, time.Second, Exit{Code: 152, Signal: 24, Reason: CPUTime}},
		{"processor time, unheeded", stage.Ended{Status: killed, CPU: 2 * time.Second}, time.Second, Exit{Code: 137, Signal: 9, Reason: CPUTime, CPU: 2 * time.Second}},
		{"killed before that", stage.Ended{Status: killed, CPU: time.Second / 2}, time.Second, Exit{Code: 137, Signal: 9, Reason: Signaled, CPU: time.Second / 2}},
		{"killed without a limit", stage.Ended{Status: killed, CPU: time.Hour}, 0, Exit{Code: 137, Signal: 9, Reason: Signaled, CPU: time.Hour}},
		{"memory", stage.Ended{Status: killed, Memory: true}, 0, Exit{Code: 137, Signal: 9, Reason: Memory}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := exitOf(c.ended, c.limit); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}
