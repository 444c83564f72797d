// Package scoring asks endpoints on a whole installation, with real replicas, in every way that there is: each form of
// authentication, each kind of credential, each protocol. Of every call it looks at the status, the body and the record.
package scoring

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

// clock is the mesh's. It begins in the past, so that a token can be issued that has run out when the test begins.
type clock struct{ behind atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(-time.Duration(c.behind.Load())) }

const past = 7 * time.Minute

var (
	mesh  *testmesh.Mesh
	watch clock
)

func TestMain(m *testing.M) {
	testmesh.Child()
	watch.behind.Store(int64(past))
	var err error
	if mesh, err = testmesh.Start(func(c *node.UpConfig) { c.Options.Now = watch.now }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}
