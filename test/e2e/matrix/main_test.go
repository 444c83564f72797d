// Package matrix asks of every RPC, as its contract declares it, who may call it: each method with a valid request on a live
// installation, by everyone from its owner to a thief, and each answer with its code, its reason and its record in the activity log.
//
// The rows come from the descriptors: a method without a request in this package's registry fails by name, so a new RPC cannot be
// left out. The columns come from the method's rule and from the built-in roles; where a handler decides more than its rule says,
// the registry says what.
//
// Refused cells share one request on a live target, which the allowed caller sends last and gets OK for: so a refusal is never one
// of a request that would have failed anyway, and had none of the effect. With a build tag redoubt_break_… cells must fail; see
// test/mutants.sh.
package matrix

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

var (
	mesh *testmesh.Mesh
	// behind is by how much the clock of the whole mesh is late. It starts in the past, to have tokens that are over.
	behind  atomic.Int64
	started = time.Now()
)

func TestMain(m *testing.M) {
	sandbox.MaybeStage()
	behind.Store(int64(2 * time.Hour))
	var err error
	mesh, err = testmesh.Start(func(c *node.UpConfig) {
		c.LeafLife = 24 * time.Hour // certificates outlive the step
		c.Options.Now = func() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	for _, stop := range stops {
		stop()
	}
	mesh.Close()
	os.Exit(code)
}

// ready waits until every service decides again.
func ready(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for name, n := range mesh.Nodes {
		if err := n.Ready(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}
