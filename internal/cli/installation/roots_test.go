package installation

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

// A rotation that is stuck, forgotten, or has to begin is told, with what to do (D10).
func TestDoctorJudgesRotation(t *testing.T) {
	now, day := time.Now(), 24*time.Hour
	root := func(state identityv1.AuthorityState, age, left time.Duration) *identityv1.Authority {
		return &identityv1.Authority{State: state, CreateTime: timestamppb.New(now.Add(-age)), ExpireTime: timestamppb.New(now.Add(left))}
	}
	const active, prepared, tainted = identityv1.AuthorityState_AUTHORITY_STATE_ACTIVE, identityv1.AuthorityState_AUTHORITY_STATE_PREPARED, identityv1.AuthorityState_AUTHORITY_STATE_TAINTED
	clock := func(late, manual bool, waits string) *identityv1.AuthorityClock {
		return &identityv1.AuthorityClock{Period: durationpb.New(30 * day), NextStep: identityv1.AuthorityStep_AUTHORITY_STEP_ACTIVATE, Late: late, Manual: manual, WaitsFor: waits}
	}
	one := root(active, day, 3650*day)
	for name, c := range map[string]struct {
		roots          []*identityv1.Authority
		clock          *identityv1.AuthorityClock
		wrong, unknown int
		says           string
	}{
		"well":                            {[]*identityv1.Authority{one}, nil, 0, 0, "active"},
		"about to end":                    {[]*identityv1.Authority{root(active, 3630*day, 20*day)}, nil, 1, 0, "ends"},
		"a rotation that goes on":         {[]*identityv1.Authority{one, root(prepared, time.Hour, 3650*day)}, clock(false, false, ""), 0, 0, "prepared beside"},
		"one that is stuck":               {[]*identityv1.Authority{one, root(prepared, time.Hour, 3650*day)}, clock(true, false, "service/compute/b"), 1, 0, "service/compute/b"},
		"one that nobody takes on":        {[]*identityv1.Authority{one, root(tainted, time.Hour, 3650*day)}, clock(true, false, ""), 1, 0, "no instance"},
		"one by hand":                     {[]*identityv1.Authority{one, root(prepared, time.Hour, 3650*day)}, nil, 0, 0, "prepared beside"},
		"one by hand, forgotten":          {[]*identityv1.Authority{one, root(prepared, 8*day, 3650*day)}, nil, 0, 1, "left prepared"},
		"one taken over, forgotten":       {[]*identityv1.Authority{one, root(tainted, 8*day, 3650*day)}, clock(true, true, ""), 0, 1, "left tainted"},
		"a root that should stand beside": {[]*identityv1.Authority{one}, clock(true, false, ""), 1, 0, "should have been prepared"},
	} {
		d := &diagnosis{now: func() time.Time { return now }}
		rotation(d, &identityv1.ListAuthoritiesResponse{Authorities: c.roots, Clock: c.clock})
		unknown, all := 0, ""
		for _, f := range d.findings {
			all += f.Found + "\n"
			if f.State == "?" {
				unknown++
			}
			if f.State != "ok" && f.Next == "" {
				t.Errorf("%s: %q says not what to do", name, f.Found)
			}
		}
		if d.bad != c.wrong || unknown != c.unknown || !strings.Contains(all, c.says) {
			t.Errorf("%s: %d wrong, %d unknown: %s", name, d.bad, unknown, all)
		}
	}
}
