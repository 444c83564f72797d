package installation

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// What an instance says of itself is judged, and whoever reads it is told what to do.
func TestDoctorJudges(t *testing.T) {
	now := time.Now()
	good := func() *maintenancev1.InstanceStatus {
		return &maintenancev1.InstanceStatus{
			Service: "identity", Instance: "a", Version: "v1", Revision: "r1", Now: timestamppb.New(now), Leads: []string{"outbox"},
			Store: &maintenancev1.InstanceStatus_Store{Engine: "sqlite", FreeBytes: 10 << 30},
		}
	}
	for name, c := range map[string]struct {
		change func(s *maintenancev1.InstanceStatus)
		wrong  int
		says   string
	}{
		"well":               {func(*maintenancev1.InstanceStatus) {}, 0, "leads outbox"},
		"its clock is near":  {func(s *maintenancev1.InstanceStatus) { s.Now = timestamppb.New(now.Add(-time.Second)) }, 0, "sqlite"},
		"its clock is off":   {func(s *maintenancev1.InstanceStatus) { s.Now = timestamppb.New(now.Add(5 * time.Second)) }, 0, "clock is 5s off"},
		"its clock is wrong": {func(s *maintenancev1.InstanceStatus) { s.Now = timestamppb.New(now.Add(-time.Minute)) }, 1, "clock is -1m0s off"},
		"its state is stale": {func(s *maintenancev1.InstanceStatus) { s.StateStale = "nothing was heard" }, 1, "nothing was heard"},
		"etcd is away":       {func(s *maintenancev1.InstanceStatus) { s.EtcdError = "nothing answers" }, 1, "etcd: nothing answers"},
		"its store fails":    {func(s *maintenancev1.InstanceStatus) { s.Store.Error = "damaged" }, 1, "its store: damaged"},
		"its disk is full":   {func(s *maintenancev1.InstanceStatus) { s.Store.FreeBytes = 1 << 20 }, 1, "free in its folder"},
		"its disk fills":     {func(s *maintenancev1.InstanceStatus) { s.Store.FreeBytes = 1 << 30 }, 0, "free in its folder"},
		"a peer is away": {func(s *maintenancev1.InstanceStatus) {
			s.Peers = []*maintenancev1.PeerStatus{{Service: "telemetry", State: "TRANSIENT_FAILURE"}, {Service: "workspace", State: "IDLE"}}
		}, 1, "cannot reach telemetry"},
		"records wait": {func(s *maintenancev1.InstanceStatus) {
			s.OutboxDepth, s.OutboxOldestTime = 7, timestamppb.New(now.Add(-time.Minute))
		}, 1, "7 records wait"},
		"records are on their way": {func(s *maintenancev1.InstanceStatus) {
			s.OutboxDepth, s.OutboxOldestTime = 7, timestamppb.New(now.Add(-time.Second))
		}, 0, "outbox 7"},
	} {
		t.Run(name, func(t *testing.T) {
			d, s := &diagnosis{}, good()
			c.change(s)
			aboutInstance(d, "identity-a", s, now, now)
			var all strings.Builder
			for _, f := range d.findings {
				all.WriteString(f.Found + "\n")
				if f.State != "ok" && f.Next == "" {
					t.Errorf("%q says not what to do", f.Found)
				}
			}
			if d.bad != c.wrong || !strings.Contains(all.String(), c.says) {
				t.Errorf("%d wrong of\n%s", d.bad, &all)
			}
		})
	}
	two := good()
	two.Instance, two.Revision = "b", "r2"
	other := good()
	other.Service, other.Leads = "workspace", nil
	d := &diagnosis{}
	together(d, []*maintenancev1.InstanceStatus{good(), two, other})
	var found []string
	for _, f := range d.findings {
		found = append(found, f.Found)
	}
	want := []string{"v1 r1: identity-a workspace-a; v1 r2: identity-b", "more than one instance says that it leads: identity-a identity-b", "none of its instances relays its records"}
	if strings.Join(found, "|") != strings.Join(want, "|") {
		t.Errorf("%q", found)
	}
}

// A3: who decides with which revocations is told, and whoever is missing or keeps others waiting.
func TestDoctorJudgesTheFence(t *testing.T) {
	good := func() (all []fence.Listed) {
		for _, name := range node.Services {
			if name != rpc.Gateway {
				all = append(all, fence.Listed{Service: name, Instance: "a", Class: fence.Embedded, Applied: 12, Head: 9, Lease: 4 * time.Second})
			}
		}
		return all
	}
	strong := func(place string, which ...int) func(all []fence.Listed) []fence.Listed {
		return func(all []fence.Listed) []fence.Listed {
			for i := range all {
				if len(which) == 0 || slices.Contains(which, i) {
					all[i].Class, all[i].Place = fence.SQLFence, place
				} else {
					all[i].Class, all[i].Place = fence.SQLFence, "another place"
				}
			}
			return all
		}
	}
	for name, c := range map[string]struct {
		change func(all []fence.Listed) []fence.Listed
		wrong  int
		says   string
	}{
		"well":                 {func(all []fence.Listed) []fence.Listed { return all }, 0, "has applied all changes, lease 4.0 s"},
		"one is behind":        {func(all []fence.Listed) []fence.Listed { all[0].Applied = 8; return all }, 0, "has not applied the last change: it is at etcd's revision 8 of 9"},
		"one is missing":       {func(all []fence.Listed) []fence.Listed { return all[1:] }, 1, "no instance is a member"},
		"one has gone":         {func(all []fence.Listed) []fence.Listed { all[0].Lease = -1; return all }, 2, "its lease has ended"},
		"its row":              {strong("here"), 0, "lease 4.0 s, class sqlfence"},
		"its row is elsewhere": {strong("here", 3), 0, "its row is in another database than that of identity-a"},
		"no row":               {func(all []fence.Listed) []fence.Listed { all[2].Class = fence.SQL; return all }, 0, "by the clock alone: it has no row"},
		"another instance": {func(all []fence.Listed) []fence.Listed {
			gone := all[0]
			gone.Instance, gone.Lease = "b", -1
			return append(all, gone)
		}, 1, "its lease has ended"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &diagnosis{}
			aboutFence(d, c.change(good()))
			var all strings.Builder
			for _, f := range d.findings {
				all.WriteString(f.Found + "\n")
				if f.State != "ok" && f.Next == "" {
					t.Errorf("%q says not what to do", f.Found)
				}
			}
			if d.bad != c.wrong || !strings.Contains(all.String(), c.says) {
				t.Errorf("%d wrong of\n%s", d.bad, &all)
			}
		})
	}
}
