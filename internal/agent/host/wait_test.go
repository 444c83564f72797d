package host

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

// script answers as the installation does, one line for each call.
type script struct {
	computev1.ComputeServiceClient
	get, claim []codes.Code
	kind       computev1.Compute_Kind
	calls      []string
	stop       context.CancelFunc
}

func (s *script) next(list *[]codes.Code, what string) error {
	if len(*list) == 0 {
		s.stop()
		return status.Error(codes.Canceled, "the end")
	}
	code := (*list)[0]
	*list = (*list)[1:]
	s.calls = append(s.calls, what)
	return status.Error(code, code.String())
}

func (s *script) GetCompute(_ context.Context, r *computev1.GetComputeRequest, _ ...grpc.CallOption) (*computev1.Compute, error) {
	return &computev1.Compute{Name: r.GetName(), Kind: s.kind, MaxRuns: 1}, s.next(&s.get, "get")
}

func (s *script) ClaimRun(context.Context, *computev1.ClaimRunRequest, ...grpc.CallOption) (*computev1.ClaimRunResponse, error) {
	return &computev1.ClaimRunResponse{}, s.next(&s.claim, "claim")
}

func TestServe(t *testing.T) {
	const ok, away, gone, denied, broken = codes.OK, codes.Unavailable, codes.NotFound, codes.PermissionDenied, codes.Internal
	self, local := computev1.Compute_KIND_SELF_HOSTED, computev1.Compute_KIND_LOCAL
	for _, c := range []struct {
		name       string
		kind       computev1.Compute_Kind
		wait       bool
		get, claim []codes.Code
		calls      string
		code       codes.Code
		beats      int
	}{
		{"asks again and again", self, false, []codes.Code{ok}, []codes.Code{ok, ok}, "get claim claim", ok, 3},
		{"an installation that is away", self, false, []codes.Code{away, away, ok}, []codes.Code{away, ok}, "get get get claim claim", ok, 2},
		{"no target", self, false, []codes.Code{gone}, nil, "get", gone, 1},
		{"a target that is another's", self, false, []codes.Code{denied}, nil, "get", denied, 1},
		{"a target that comes later", self, true, []codes.Code{gone, denied, ok}, []codes.Code{ok}, "get get get claim", ok, 4},
		{"a target that goes and comes again", self, true, []codes.Code{ok, gone, ok}, []codes.Code{ok, gone, ok}, "get claim claim get get claim", ok, 5},
		{"a target that goes for good", self, false, []codes.Code{ok}, []codes.Code{gone}, "get claim", gone, 1},
		{"a fault", self, true, []codes.Code{ok}, []codes.Code{broken}, "get claim", broken, 1},
		{"a target of the installation's own", local, true, []codes.Code{ok}, nil, "get", codes.Unknown, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			s := &script{get: slices.Clone(c.get), claim: slices.Clone(c.claim), kind: c.kind, stop: cancel}
			beats := 0
			h, err := New(Config{Computes: s, Server: "https://h", Target: "t", Wait: c.wait, Pause: time.Millisecond, Beat: func() { beats++ }})
			if err != nil {
				t.Fatal(err)
			}
			err = h.Serve(ctx)
			if got := strings.Join(s.calls, " "); got != c.calls || status.Code(err) != c.code && c.kind == self || (err == nil) != (c.code == ok) || beats != c.beats {
				t.Errorf("%q, %v, %d beats; wanted %q, %s, %d", got, err, beats, c.calls, c.code, c.beats)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []Config{{}, {Computes: &script{}}, {Computes: &script{}, Target: "t", Server: "http://h"}, {Computes: &script{}, Target: "t", Server: "https://"}, {Target: "t", Server: "https://h"}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	h, err := New(Config{Computes: &script{}, Target: "t", Server: "https://h"})
	if err != nil || h.cfg.Gateway != "h:443" {
		t.Errorf("got %v", err)
	}
}
