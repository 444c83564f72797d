package store

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

func (l *lab) replica(id string) *Run {
	r := l.spec(id)
	r.Kind, r.Spec = computev1.Run_KIND_REPLICA, nil
	r.Replica = &computev1.StartReplicaRequest{
		Workspace: parent, WorkspaceUid: l.ws, Principal: "usr_1", ReplicaId: id, Compute: parent + "/computes/c", Snapshot: parent + "/snapshots/s",
		Serve:  &computev1.ServeSpec{Models: []string{parent + "/models/m/versions/1"}, EntryScript: "score.py", Workers: 2, Address: "127.0.0.1:1"},
		Limits: &computev1.RunLimits{MemoryBytes: 1 << 30}, Environment: map[string]string{"A": "env-canary"}, Deployment: "deployment-canary",
	}
	r.Spec = ReplicaSpec(r.Replica)
	return r
}

func TestReplicaRoundTrip(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		job := l.submit("job")
		in := l.replica("replica")
		r, err := l.InsertRun(t.Context(), in, "", nothing)
		must(t, err)
		if r.Kind != computev1.Run_KIND_REPLICA || !proto.Equal(r.Replica, in.Replica) || r.Name() != parent+"/runs/replica" || r.Spec.GetLimits().GetMemoryBytes() != 1<<30 {
			t.Errorf("%+v", r)
		}
		if job.Replica != nil || job.Kind != computev1.Run_KIND_JOB {
			t.Errorf("a job reads %+v", job)
		}
		for _, state := range []computev1.Run_State{0, computev1.Run_STATE_QUEUED} {
			list, _, err := l.ListRuns(t.Context(), l.ws, state, false, Cursor{}, 10)
			must(t, err)
			if len(list) != 1 || list[0].UID != job.UID {
				t.Errorf("the list of state %v has %d runs, want the job alone", state, len(list))
			}
		}
		queued, err := l.QueuedOn(t.Context(), l.cmp, 10)
		must(t, err)
		if len(queued) != 2 {
			t.Errorf("%d runs are queued, want both", len(queued))
		}
	})
}

// What was stored of one kind does not open as another, and nothing is stored of a kind that is not known.
func TestKindIsBound(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		for _, kind := range []computev1.Run_Kind{computev1.Run_KIND_UNSPECIFIED, 77} {
			r := l.spec("none")
			r.Kind = kind
			_, err := l.InsertRun(t.Context(), r, "", nothing)
			want(t, kind.String(), err, codes.Internal, 0)
		}
		job := l.submit("job")
		replica, err := l.InsertRun(t.Context(), l.replica("replica"), "", nothing)
		must(t, err)
		for _, c := range []struct {
			uid  string
			kind computev1.Run_Kind
		}{{job.UID, computev1.Run_KIND_REPLICA}, {replica.UID, computev1.Run_KIND_JOB}, {job.UID, computev1.Run_KIND_UNSPECIFIED}, {job.UID, 77}} {
			l.exec("UPDATE runs SET kind = $2 WHERE uid = $1", c.uid, int64(c.kind))
			_, err := l.RunByUID(t.Context(), c.uid)
			want(t, "as "+c.kind.String(), err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
		}
	})
}

// A row from before there were kinds is a job.
func TestKindOfOldRows(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		job := l.submit("job")
		uid := resource.NewUID("run")
		l.exec(`INSERT INTO runs (uid, workspace_uid, compute_uid, id_mac, request_mac, spec, outcome, submitter, state, generation, agent_key, cancel, version,
			create_time, start_time, end_time, heartbeat_time, cancel_time, log_bytes, revoked)
			SELECT $2, workspace_uid, compute_uid, spec, request_mac, spec, outcome, submitter, state, generation, agent_key, cancel, version,
			create_time, start_time, end_time, heartbeat_time, cancel_time, log_bytes, revoked FROM runs WHERE uid = $1`, job.UID, uid)
		var kind int64
		must(t, l.db.Reader().QueryRowContext(t.Context(), "SELECT kind FROM runs WHERE uid = $1", uid).Scan(&kind))
		if kind != int64(computev1.Run_KIND_JOB) {
			t.Errorf("its kind is %d", kind)
		}
	})
}
