package host

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

// installation gives out runs as long as it has some, and is away for the first few questions.
type installation struct {
	computev1.ComputeServiceClient
	mu   sync.Mutex
	away int
	runs int
	asks int
}

func (i *installation) GetCompute(_ context.Context, in *computev1.GetComputeRequest, _ ...grpc.CallOption) (*computev1.Compute, error) {
	return &computev1.Compute{Name: in.GetName(), Kind: computev1.Compute_KIND_SELF_HOSTED, MaxRuns: 2}, nil
}

func (i *installation) ClaimRun(ctx context.Context, in *computev1.ClaimRunRequest, _ ...grpc.CallOption) (*computev1.ClaimRunResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asks++
	if i.away > 0 {
		i.away--
		return nil, status.Error(codes.Unavailable, "restarting")
	}
	if i.runs == 0 {
		i.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(in.GetWait().AsDuration()):
		}
		i.mu.Lock()
		return &computev1.ClaimRunResponse{}, ctx.Err()
	}
	i.runs--
	return &computev1.ClaimRunResponse{Bootstrap: &computev1.AgentBootstrap{Run: fmt.Sprintf("x/runs/r%d", i.runs)}}, nil
}

// A host that is stopped takes no more, and its runs have their time; what goes on after that is ended.
func TestDrain(t *testing.T) {
	for _, tc := range []struct {
		name         string
		drain, takes time.Duration // how long a run still takes when the host is stopped
		ended        bool          // the run, by the host
		after        time.Duration // Serve returns
	}{
		{"at once", 0, time.Hour, true, 0},
		{"in time", time.Minute, 20 * time.Second, false, 20 * time.Second},
		{"too late", time.Minute, time.Hour, true, time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in := &installation{away: 3, runs: 2}
				h, err := New(Config{Computes: in, Server: "https://h", Target: "x/computes/c", Drain: tc.drain})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				var mu sync.Mutex
				carried, ended := 0, 0
				h.run = func(ctx context.Context, _ *computev1.AgentBootstrap) error {
					mu.Lock()
					carried++
					mu.Unlock()
					select {
					case <-time.After(10*time.Second + tc.takes):
					case <-ctx.Done():
						mu.Lock()
						ended++
						mu.Unlock()
					}
					return ctx.Err()
				}
				done := make(chan error, 1)
				go func() { done <- h.Serve(ctx) }()
				time.Sleep(3*claimPause + 10*time.Second) // the fake clock's
				cancel()
				stopped := time.Now()
				synctest.Wait()
				in.mu.Lock()
				in.runs = 5 // for others
				in.mu.Unlock()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if took := time.Since(stopped); took != tc.after {
					t.Errorf("stopped after %v, want %v", took, tc.after)
				}
				if want := map[bool]int{true: 2}[tc.ended]; carried != 2 || ended != want || in.runs != 5 {
					t.Errorf("%d carried, %d of them ended, %d left", carried, ended, in.runs)
				}
			})
		})
	}
}
