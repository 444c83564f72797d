package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// D10: an installation of a plan, each process at an address of its own, with three etcd members. Members are lost, the majority is
// lost and comes back, and all that etcd holds is lost: calls go on, or are refused while nobody can know what was revoked (A3), and services
// register by themselves. At the end everything was stopped for longer than certificates live.
func TestHosts(t *testing.T) {
	needSandbox(t)
	long(t)
	h := NewHosts(t, "", nil)
	h.WantRegistered(t)
	t.Run("health", h.health)

	t.Run("a member killed", func(t *testing.T) {
		calls := h.Calling(t)
		calls.More(t, 50)
		if err := h.Members[0].Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.WantRegistered(t)
		calls.More(t, 100)
		// Who starts meanwhile finds the others.
		keyvault := h.named(t, "keyvault-a")
		if err := keyvault.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := keyvault.Start(); err != nil {
			t.Fatal(err)
		}
		h.WantRegistered(t)
		if err := h.Members[0].Start(); err != nil {
			t.Fatal(err)
		}
		calls.More(t, 100)
		h.none(t, calls)
	})

	t.Run("the majority lost", func(t *testing.T) {
		calls := h.Calling(t)
		calls.More(t, 50)
		for _, m := range h.Members[:2] {
			if err := m.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.Registered(t.Context()); err == nil {
			t.Error("one of three members answers for all")
		}
		time.Sleep(14 * time.Second) // longer than a registration lives, and longer than anybody may decide
		for _, m := range h.Members[:2] {
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		h.WantRegistered(t)
		t.Logf("registered %s after the majority was back", time.Since(begin).Round(time.Millisecond))
		calls.More(t, 100)
		h.fenced(t, calls, true)
	})

	t.Run("the data lost", func(t *testing.T) {
		calls := h.Calling(t)
		calls.More(t, 50)
		for _, m := range h.Members {
			if err := m.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range h.Members {
			if err := os.RemoveAll(filepath.Join(h.Data, m.Name, "data")); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		for _, m := range h.Members {
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
		}
		h.WantRegistered(t)
		t.Logf("registered %s after etcd was begun anew", time.Since(begin).Round(time.Millisecond))
		calls.More(t, 100)
		h.fenced(t, calls, false)
	})

	t.Run("a second store", h.secondStore)
	t.Run("cold start", func(t *testing.T) {
		h.Stop(t)
		time.Sleep(LeafLife + 2*time.Second) // the passing of time is what is tested
		begin := time.Now()
		h.Start(t)
		h.WaitReady(t)
		t.Logf("ready %s after a cold start", time.Since(begin).Round(time.Millisecond))
		h.WantRegistered(t)
		Walk(t, h.Access(), "after", time.Second)
		h.WantNothingLeft(t)
	})
}

// secondStore starts a copy of compute's folder beside it: a store that knows what the first one knew a moment ago, and no more.
func (h *Hosts) secondStore(t *testing.T) {
	calls := h.Calling(t)
	calls.More(t, 20)
	from, to := filepath.Join(h.Data, "compute-a"), filepath.Join(h.base, "copy")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	env := append(Environment(h.base), "REDOUBT_SERVICE_DIR="+to, "REDOUBT_SERVICE_LISTEN=127.0.0.1:0", "REDOUBT_SERVICE_INSTANCE=b")
	code, out := Run(t, env, "serve", "compute", "--config", filepath.Join(from, "service.yaml"))
	if code == 0 || !strings.Contains(out, "another process has this service's store: instance compute-a") || !strings.Contains(out, from) {
		t.Errorf("it ends with %d: %s", code, out)
	}
	calls.More(t, 20)
	h.WantRegistered(t)
	h.none(t, calls)
	// The one that is killed comes back at once: its claim is that of the same place.
	p := h.named(t, "compute-a")
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	if err := poll(ctx, func() error {
		if code, out := Run(t, nil, "health", "--config", filepath.Join(from, "service.yaml")); code != 0 {
			return errors.New(out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 8*time.Second {
		t.Errorf("it took %s to serve again", d)
	} else {
		t.Logf("serves again %s after a kill", d.Round(time.Millisecond))
	}
}

func (h *Hosts) named(t *testing.T, name string) *Process {
	t.Helper()
	for _, p := range h.Processes {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("there is no %s", name)
	return nil
}

// none wants every call to have been answered.
func (h *Hosts) none(t *testing.T, c *Calls) {
	t.Helper()
	good, failed := c.Stop()
	t.Logf("%d calls were answered, %d failed", good, len(failed))
	if len(failed) > 0 {
		t.Errorf("the first failed with %v", failed[0])
	}
}

// fenced holds that calls failed for the one reason that their service could not know what was revoked; some must have.
func (h *Hosts) fenced(t *testing.T, c *Calls, some bool) {
	t.Helper()
	good, failed := c.Stop()
	t.Logf("%d calls were answered, %d refused", good, len(failed))
	if some && len(failed) == 0 {
		t.Error("services decided without etcd for longer than their leases")
	}
	for _, err := range failed {
		if fault.ReasonOf(fault.FromStatus(err)) != faultv1.Reason_FENCE_LOST {
			t.Errorf("one failed with %v", err)
			return
		}
	}
}

// health is what a container's check asks.
func (h *Hosts) health(t *testing.T) {
	for _, p := range h.Processes {
		config := p.Args[len(p.Args)-1]
		if code, out := Run(t, nil, "health", "--config", config); code != 0 || !strings.Contains(out, "serving") {
			t.Errorf("%s: %d, %s", p.Name, code, out)
		}
	}
}
