package telemetry

import (
	"context"
	"sync"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// maxRuns is how many runs are remembered.
const maxRuns = 10_000

// runCache remembers which run a name means. That never changes: the id of a run is never used again in its workspace. Whether someone
// may touch the run is not decided here. The zero value is ready.
type runCache struct {
	mu   sync.Mutex
	uids map[runName]string
}

type runName struct{ workspaceUID, id string }

func (c *runCache) find(ctx context.Context, runs Runs, workspaceUID, id string) (string, error) {
	name := runName{workspaceUID, id}
	c.mu.Lock()
	uid, ok := c.uids[name]
	c.mu.Unlock()
	if ok {
		return uid, nil
	}
	run, err := c.ask(ctx, runs, workspaceUID, id)
	return run.GetRunUid(), err
}

// open finds a run that takes data: whether it is deleted may change, so compute is asked each time.
func (c *runCache) open(ctx context.Context, runs Runs, workspaceUID, id string) (string, error) {
	run, err := c.ask(ctx, runs, workspaceUID, id)
	if err == nil && run.GetDeleted() {
		return "", fault.FailedPrecondition("the run is deleted, and takes no data; restore it first")
	}
	return run.GetRunUid(), err
}

// ask asks compute, and remembers.
func (c *runCache) ask(ctx context.Context, runs Runs, workspaceUID, id string) (*computev1.DescribeRunResponse, error) {
	run, err := runs.DescribeRun(ctx, &computev1.DescribeRunRequest{WorkspaceUid: workspaceUID, RunId: id})
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	if run.GetRunUid() == "" {
		return nil, fault.Internal(nil, "compute knows a run without a uid")
	}
	name := runName{workspaceUID, id}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.uids == nil || len(c.uids) >= maxRuns {
		c.uids = make(map[runName]string)
	}
	c.uids[name] = run.GetRunUid()
	return run, nil
}

// forget drops the runs of a workspace.
func (c *runCache) forget(workspaceUID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.uids {
		if name.workspaceUID == workspaceUID {
			delete(c.uids, name)
		}
	}
}
