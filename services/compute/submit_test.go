package compute

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestSubmit(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 1)
	submit := func(change func(r *computev1.SubmitRunRequest)) (*computev1.Run, error) {
		r := l.request(c, "")
		if change != nil {
			change(r)
		}
		return l.runs().SubmitRun(l.as("owner"), r)
	}
	env := func(k, v string) func(r *computev1.SubmitRunRequest) {
		return func(r *computev1.SubmitRunRequest) { r.Environment = map[string]string{k: v} }
	}
	for _, tc := range []struct {
		name   string
		change func(r *computev1.SubmitRunRequest)
		code   codes.Code
	}{
		{"plain", nil, codes.OK},
		{"environment", env("EPOCHS", "3"), codes.OK},
		{"secret", env("DB_PASSWORD", "x"), codes.InvalidArgument},
		{"bad name", env("A-B", "x"), codes.InvalidArgument},
		{"reserved", env("REDOUBT_RUN", "x"), codes.InvalidArgument},
		{"loader", env("LD_PRELOAD", "x"), codes.InvalidArgument},
		{"NUL in a value", env("A", "x\x00"), codes.InvalidArgument},
		{"empty program", func(r *computev1.SubmitRunRequest) { r.Command = []string{""} }, codes.InvalidArgument},
		{"NUL in the command", func(r *computev1.SubmitRunRequest) { r.Command = []string{"a", "b\x00"} }, codes.InvalidArgument},
		{"negative timeout", func(r *computev1.SubmitRunRequest) {
			r.Limits = &computev1.RunLimits{Timeout: durationpb.New(-time.Second)}
		}, codes.InvalidArgument},
		{"bad id", func(r *computev1.SubmitRunRequest) { r.RunId = "../x" }, codes.InvalidArgument},
		{"the snapshot of another workspace", func(r *computev1.SubmitRunRequest) { r.Snapshot = ws2 + snap }, codes.InvalidArgument},
		{"no such compute", func(r *computev1.SubmitRunRequest) { r.Compute = ws1 + "/computes/absent" }, codes.NotFound},
	} {
		_, err := submit(tc.change)
		want(t, tc.name, err, tc.code, 0)
	}
	_, err := l.runs().SubmitRun(l.as("reader"), l.request(c, "x"))
	want(t, "by a reader", err, codes.PermissionDenied, 0)
	l.peers.set(func(p *peers) { p.snapshot = fault.NotFound("no such snapshot") })
	_, err = submit(nil)
	want(t, "no such snapshot", err, codes.NotFound, 0)
	l.peers.set(func(p *peers) { p.snapshot = nil })

	again := func(r *computev1.SubmitRunRequest) { r.RequestId = "5b2f" }
	first, err := submit(again)
	must(t, err)
	if second, err := submit(again); err != nil || second.GetUid() != first.GetUid() {
		t.Errorf("repeated: %v, %v", second, err)
	}
	_, err = submit(func(r *computev1.SubmitRunRequest) { r.RequestId, r.Command = "5b2f", []string{"other"} })
	want(t, "another request under the id", err, codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED)
	_, err = submit(func(r *computev1.SubmitRunRequest) { r.RunId = "mine" })
	must(t, err)
	_, err = submit(func(r *computev1.SubmitRunRequest) { r.RunId = "mine" })
	want(t, "the same run id", err, codes.AlreadyExists, 0)
}
