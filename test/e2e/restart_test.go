package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// H3: a run outlives the installation's process, and is adopted when that is back: it ends once, with its whole log.
func TestRunOutlivesRestart(t *testing.T) {
	own, err := testmesh.StartOnPorts()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	l := labOn(t, own, "restart")
	r := l.submit(t, l.request("/bin/sh", "-c", "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.1; done"))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	seen := &waitFor{want: "line 3\n", found: make(chan struct{})}
	go func() { _, _ = l.FollowLogs(ctx, r.GetName(), 0, true, seen) }()
	select {
	case <-seen.found:
	case <-ctx.Done():
		t.Fatal("the run does not start")
	}
	if err := own.Restart(); err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(client.Context{Name: "e2e", Server: own.URL, CAPEM: own.CA}, redact.FromString(own.Admin(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	l.Client = c
	end, log := l.finish(t, r.GetName())
	if end.GetState() != computev1.Run_STATE_COMPLETED {
		t.Fatalf("ended as %s: %s\n%s", end.GetState(), end.GetMessage(), own.Log())
	}
	var want strings.Builder
	for i := range 40 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if log != want.String() {
		t.Errorf("the log is %q", log)
	}
}
