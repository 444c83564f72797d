package host

import (
	"context"
	"fmt"
	"slices"
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

// lossy gives one run for each claim, as compute does, and loses some answers.
type lossy struct {
	computev1.ComputeServiceClient
	mu     sync.Mutex
	lose   []error // what comes in place of the next answers; nil lets one through
	left   int     // runs that wait
	given  map[string]string
	claims []string
	used   map[string]bool // claims whose agents have come
}

func (i *lossy) GetCompute(_ context.Context, in *computev1.GetComputeRequest, _ ...grpc.CallOption) (*computev1.Compute, error) {
	return &computev1.Compute{Name: in.GetName(), Kind: computev1.Compute_KIND_SELF_HOSTED, MaxRuns: 4}, nil
}

func (i *lossy) ClaimRun(ctx context.Context, in *computev1.ClaimRunRequest, _ ...grpc.CallOption) (*computev1.ClaimRunResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	id := in.GetClaimId()
	i.claims = append(i.claims, id)
	if i.used[id] {
		return nil, status.Error(codes.AlreadyExists, "used")
	}
	if i.given[id] == "" && i.left > 0 {
		i.given[id] = fmt.Sprintf("x/runs/r%d", i.left)
		i.left--
	}
	if len(i.lose) > 0 {
		err := i.lose[0]
		i.lose = i.lose[1:]
		if err != nil {
			return nil, err
		}
	}
	if run := i.given[id]; run != "" {
		return &computev1.ClaimRunResponse{Bootstrap: &computev1.AgentBootstrap{Run: run}}, nil
	}
	i.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-time.After(in.GetWait().AsDuration()):
	}
	i.mu.Lock()
	return &computev1.ClaimRunResponse{}, ctx.Err()
}

// H3: a host repeats a claim until its answer has come, also one of a life before; each run is carried once, and none is left with nobody.
func TestClaimsAreRepeated(t *testing.T) {
	gone := status.Error(codes.Unavailable, "the answer is lost")
	for _, tc := range []struct {
		name    string
		lose    []error
		before  string // the claim of a life before, which was given a run
		came    bool   // and whose agent has come
		carried int
	}{
		{name: "no answer is lost", carried: 3},
		{name: "answers are lost", lose: []error{gone, status.Error(codes.DeadlineExceeded, ""), nil, status.Error(codes.Aborted, "at once"), nil}, carried: 3},
		{name: "the host was killed before the answer", before: "old", carried: 4},
		{name: "and after it", before: "old", came: true, carried: 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in := &lossy{lose: tc.lose, left: 3, given: make(map[string]string), used: make(map[string]bool)}
				if tc.before != "" {
					in.given[tc.before], in.used[tc.before] = "x/runs/old", tc.came
				}
				var kept []string
				h, err := New(Config{Computes: in, Server: "https://h", Target: "x/computes/c", Claim: tc.before, KeepClaim: func(id string) { kept = append(kept, id) }})
				if err != nil {
					t.Fatal(err)
				}
				var mu sync.Mutex
				carried := make(map[string]int)
				h.run = func(_ context.Context, b *computev1.AgentBootstrap) error {
					mu.Lock()
					defer mu.Unlock()
					carried[b.GetRun()]++
					return nil
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- h.Serve(ctx) }()
				time.Sleep(10 * claimWait) // the fake clock's
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if len(carried) != tc.carried {
					t.Errorf("carried %v", carried)
				}
				for run, n := range carried {
					if n != 1 {
						t.Errorf("%s was carried %d times", run, n)
					}
				}
				for i, id := range in.claims {
					if id == "" || id != tc.before && !slices.Contains(kept, id) {
						t.Errorf("claim %d, %q, was not kept: %v", i, id, kept)
					}
				}
				if last := kept[len(kept)-1]; h.claim != last || in.given[last] != "" {
					t.Errorf("the claim that waits is %q, kept was %q", h.claim, last)
				}
			})
		})
	}
}
