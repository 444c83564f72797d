package compute

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/services/compute/internal/queue"
)

func (l *lab) replicas() computev1.ReplicaServiceClient {
	return computev1.NewReplicaServiceClient(l.dial("inference"))
}

func (l *lab) replica(compute, id string) *computev1.StartReplicaRequest {
	return &computev1.StartReplicaRequest{
		Workspace: ws1, WorkspaceUid: l.uids[ws1], Principal: "usr_owner", ReplicaId: id, Compute: compute, Snapshot: ws1 + snap,
		Deployment: ws1 + "/endpoints/e/deployments/d", Environment: map[string]string{"A": "b"}, Limits: &computev1.RunLimits{MemoryBytes: 1 << 28},
		Serve: &computev1.ServeSpec{
			Models: []string{ws1 + "/models/m/versions/3"}, EntryScript: "src/score.py", Workers: 2, Address: "127.0.0.1:7",
			RequestTimeout: durationpb.New(time.Second), StartTimeout: durationpb.New(time.Minute), MaxBodyBytes: 1 << 20,
		},
	}
}

func (l *lab) start(compute, id string) *computev1.ReplicaStatus {
	l.t.Helper()
	s, err := l.replicas().StartReplica(l.t.Context(), l.replica(compute, id))
	must(l.t, err)
	l.advance(time.Millisecond)
	return s
}

// A5, D10: a replica from its start to its stop. It goes the way of every run, and stands in no list.
func TestReplica(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 2)
	got := l.start(c, "r1")
	if !strings.HasPrefix(got.GetRunUid(), "run_") || got.GetReplicaId() != "r1" || got.GetState() != computev1.Run_STATE_QUEUED || got.GetCreateTime() == nil {
		t.Errorf("started: %v", got)
	}
	uid := got.GetRunUid()
	if again := l.start(c, "r1"); again.GetRunUid() != uid {
		t.Errorf("the same call again: %v", again)
	}
	other := l.replica(c, "r1")
	other.Serve.Workers = 3
	_, err := l.replicas().StartReplica(t.Context(), other)
	want(t, "another with the same id", err, codes.AlreadyExists, 0)
	job := l.submit(c, "job")
	_, err = l.replicas().StartReplica(t.Context(), l.replica(c, "job"))
	want(t, "the id of a job", err, codes.AlreadyExists, 0)
	for name, call := range map[string]func() error{
		"stop": func() error {
			_, err := l.replicas().StopReplica(t.Context(), &computev1.StopReplicaRequest{WorkspaceUid: l.uids[ws1], ReplicaId: "job"})
			return err
		},
		"the log": func() error {
			s, err := l.replicas().ReadReplicaLogs(t.Context(), &computev1.ReadReplicaLogsRequest{WorkspaceUid: l.uids[ws1], ReplicaId: "job"})
			must(t, err)
			_, err = s.Recv()
			return err
		},
	} {
		err := call()
		if name == "the log" {
			want(t, name+" of a job", err, codes.NotFound, 0)
		} else if err != nil {
			t.Errorf("%s of a job: %v", name, err)
		}
	}
	if l.stored(job.GetUid()).HasEnded() || l.stored(job.GetUid()).Cancel {
		t.Error("StopReplica stopped a job")
	}

	l.step()
	l.is("started", uid, computev1.Run_STATE_STARTING, 0)
	join := l.peers.joins[0]
	wantActions := []string{"compute/runs/execute runs/r1", "workspace/snapshots/read " + strings.TrimPrefix(snap, "/"), "inference/models/content/read models/m/versions/3"}
	if join.GetRunUid() != uid || join.GetSubmitter() != "usr_owner" || !slices.Equal(join.GetActions(), wantActions) {
		t.Errorf("the join token is %v", join)
	}
	a := l.agent(uid)
	task, err := a.assignment()
	must(t, err)
	if !proto.Equal(task.GetServe(), l.replica(c, "r1").GetServe()) || len(task.GetCommand()) != 0 || task.GetSnapshot() != ws1+snap || task.GetLimits().GetMemoryBytes() != 1<<28 ||
		task.GetLimits().GetTimeout() != nil || task.GetEnvironment()["A"] != "b" {
		t.Errorf("assignment %v", task)
	}

	run, err := l.runs().GetRun(l.as("reader"), &computev1.GetRunRequest{Name: ws1 + "/runs/r1"})
	must(t, err)
	if run.GetKind() != computev1.Run_KIND_REPLICA || run.GetUid() != uid || run.GetSubmitter() != "usr_owner" {
		t.Errorf("as a run: %v", run)
	}
	list, err := l.runs().ListRuns(l.as("owner"), &computev1.ListRunsRequest{Parent: ws1})
	must(t, err)
	if len(list.GetRuns()) != 1 || list.GetRuns()[0].GetUid() != job.GetUid() || list.GetRuns()[0].GetKind() != computev1.Run_KIND_JOB {
		t.Errorf("listed: %v", list.GetRuns())
	}
	_, err = l.runs().CancelRun(l.as("owner"), &computev1.CancelRunRequest{Name: ws1 + "/runs/r1"})
	want(t, "cancelled as a run", err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
	if l.stored(uid).Cancel {
		t.Error("it was cancelled all the same")
	}

	_, err = a.log(0, "serving\n")
	must(t, err)
	logs, err := l.replicas().ReadReplicaLogs(t.Context(), &computev1.ReadReplicaLogsRequest{WorkspaceUid: l.uids[ws1], ReplicaId: "r1", Offset: 3})
	must(t, err)
	if piece, err := logs.Recv(); err != nil || string(piece.GetData()) != "ving\n" || piece.GetOffset() != 3 {
		t.Errorf("log: %v, %v", piece, err)
	}
	if _, err := logs.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the log's end: %v", err)
	}

	// It serves for as long as its agent lives: an hour, and through a restart of the service.
	l.restart()
	for range 3 {
		l.advance(20 * time.Minute)
		if cancel, err := a.heartbeat(); err != nil || cancel {
			t.Fatalf("heartbeat: %v, %v", cancel, err)
		}
		l.step()
	}
	must(t, l.s.queue.Adopt(t.Context()))
	if slices.Contains(l.driver.killed, uid) || slices.Contains(l.driver.cleaned, uid) {
		t.Error("a restart ends its agent")
	}
	l.is("after an hour", uid, computev1.Run_STATE_RUNNING, 0)

	for range 2 {
		_, err = l.replicas().StopReplica(t.Context(), &computev1.StopReplicaRequest{WorkspaceUid: l.uids[ws1], ReplicaId: "r1"})
		must(t, err)
	}
	if cancel, err := a.heartbeat(); err != nil || !cancel {
		t.Errorf("after the stop: %v, %v", cancel, err)
	}
	must(t, a.report(computev1.Run_STATE_CANCELED, 8, 0))
	l.is("stopped", uid, computev1.Run_STATE_CANCELED, 0)
	if !l.stored(uid).Revoked {
		t.Error("A4: its token lives on")
	}
	_, err = l.replicas().StopReplica(t.Context(), &computev1.StopReplicaRequest{WorkspaceUid: l.uids[ws1], ReplicaId: "r1"})
	must(t, err)
	_, err = l.replicas().StopReplica(t.Context(), &computev1.StopReplicaRequest{WorkspaceUid: l.uids[ws1], ReplicaId: "never-was"})
	must(t, err)
	if again := l.start(c, "r1"); again.GetState() != computev1.Run_STATE_CANCELED {
		t.Errorf("a repeated start starts what has ended: %v", again)
	}
}

// One that has not started is ended by the stop; one that does not hear the request to end is stopped.
func TestStopReplica(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 1)
	deaf := l.start(c, "deaf").GetRunUid()
	l.step()
	_, err := l.agent(deaf).assignment()
	must(t, err)
	waits := l.start(c, "waits").GetRunUid()
	l.step()
	l.is("no room", waits, computev1.Run_STATE_QUEUED, 0)
	for _, id := range []string{"waits", "deaf"} {
		_, err := l.replicas().StopReplica(t.Context(), &computev1.StopReplicaRequest{WorkspaceUid: l.uids[ws1], ReplicaId: id})
		must(t, err)
	}
	l.is("waiting", waits, computev1.Run_STATE_CANCELED, 0)
	l.advance(l.cfg.CancelGrace + time.Millisecond)
	l.step()
	l.is("deaf", deaf, computev1.Run_STATE_CANCELED, 0)
	if !slices.Contains(l.driver.killed, deaf) {
		t.Error("its agent was not killed")
	}
}

func TestWatchReplicas(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 2)
	one, two := l.start(c, "one"), l.start(c, "two")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := l.replicas().WatchReplicas(ctx, &computev1.WatchReplicasRequest{WorkspaceUid: l.uids[ws1], ReplicaIds: []string{"one", "two", "none"}})
	must(t, err)
	first := map[string]computev1.Run_State{}
	for range 3 {
		m, err := s.Recv()
		must(t, err)
		first[m.GetReplicaId()] = m.GetState()
	}
	if first["one"] != computev1.Run_STATE_QUEUED || first["two"] != computev1.Run_STATE_QUEUED || first["none"] != computev1.Run_STATE_UNSPECIFIED || len(first) != 3 {
		t.Errorf("at first: %v", first)
	}
	next := func(name, id string, state computev1.Run_State) {
		t.Helper()
		for {
			m, err := s.Recv()
			must(t, err)
			if m.GetReplicaId() == id && m.GetState() == state {
				return
			}
			if m.GetReplicaId() == id && m.GetState() > state {
				t.Fatalf("%s: %v", name, m)
			}
		}
	}
	l.driver.fail = errors.New("no such program")
	l.step()
	next("cannot be placed", "two", computev1.Run_STATE_FAILED)
	_, _ = one, two
	m, err := s.Recv()
	for err == nil {
		if m.GetReplicaId() == "one" && m.GetState() == computev1.Run_STATE_FAILED && m.GetMessage() == "" {
			t.Errorf("it says nothing: %v", m)
		}
		m, err = s.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("after the last has ended: %v", err)
	}
}

// The rights of who deployed it are looked at when it starts, and not before.
func TestReplicaRights(t *testing.T) {
	for name, c := range map[string]struct {
		role    string // of usr_dev in the subscription; "" for none
		lose    bool   // between the call and the start
		starts  bool
		missing string
	}{
		"an owner":           {role: authz.Owner, starts: true},
		"no more an owner":   {role: authz.Owner, lose: true},
		"a reader":           {role: authz.Reader},
		"who has no role":    {},
		"a contributor does": {role: authz.Contributor, starts: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			target := l.target(computev1.Compute_KIND_LOCAL, 1)
			if c.role != "" {
				l.assign("dev", sub1, c.role)
			}
			req := l.replica(target, "r")
			req.Principal = "usr_dev"
			s, err := l.replicas().StartReplica(t.Context(), req)
			must(t, err)
			if c.lose {
				l.unassign("dev", sub1, c.role)
			}
			l.step()
			if c.starts {
				l.is(name, s.GetRunUid(), computev1.Run_STATE_STARTING, 0)
			} else {
				l.is(name, s.GetRunUid(), computev1.Run_STATE_FAILED, faultv1.Reason_RUN_SUBMITTER_DENIED)
			}
			if n := l.driver.starts(s.GetRunUid()); n > 0 != c.starts {
				t.Errorf("placed %d times", n)
			}
		})
	}
}

func TestReplicaNeeds(t *testing.T) {
	l := newLab(t)
	target := l.target(computev1.Compute_KIND_LOCAL, 1)
	req := l.replica(target, "r")
	req.Serve.Models = append(req.GetServe().GetModels(), ws1+"/models/n/versions/1")
	s, err := l.replicas().StartReplica(t.Context(), req)
	must(t, err)
	list := []queue.Need{
		{Name: ws1 + "/endpoints/e/deployments/d", Action: "inference/endpoints/deployments/write"}, {Name: target, Action: "compute/computes/use"}, {Name: ws1 + snap, Action: "workspace/snapshots/read"},
		{Name: ws1 + "/models/m/versions/3", Action: "inference/models/content/read"}, {Name: ws1 + "/models/n/versions/1", Action: "inference/models/content/read"},
	}
	if got := queue.Needs(l.stored(s.GetRunUid())); !slices.Equal(got, list) {
		t.Errorf("needs %v", got)
	}
}

func TestStartReplicaRefuses(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 1)
	for name, change := range map[string]func(*computev1.StartReplicaRequest){
		"another workspace's uid": func(r *computev1.StartReplicaRequest) { r.WorkspaceUid = l.uids[ws2] },
		"no workspace":            func(r *computev1.StartReplicaRequest) { r.Workspace = grp1 },
		"an unknown workspace":    func(r *computev1.StartReplicaRequest) { r.Workspace = grp1 + "/workspaces/none" },
		"another's compute":       func(r *computev1.StartReplicaRequest) { r.Compute = ws2 + "/computes/local" },
		"a snapshot as compute":   func(r *computev1.StartReplicaRequest) { r.Compute = ws1 + snap },
		"another's snapshot":      func(r *computev1.StartReplicaRequest) { r.Snapshot = ws2 + snap },
		"another's model":         func(r *computev1.StartReplicaRequest) { r.Serve.Models[0] = ws2 + "/models/m/versions/3" },
		"a model, no version":     func(r *computev1.StartReplicaRequest) { r.Serve.Models[0] = ws1 + "/models/m" },
		"no model":                func(r *computev1.StartReplicaRequest) { r.Serve.Models = nil },
		"another's deployment":    func(r *computev1.StartReplicaRequest) { r.Deployment = ws2 + "/endpoints/e/deployments/d" },
		"an endpoint":             func(r *computev1.StartReplicaRequest) { r.Deployment = ws1 + "/endpoints/e" },
		"a path as id":            func(r *computev1.StartReplicaRequest) { r.ReplicaId = "../x" },
		"an absolute script":      func(r *computev1.StartReplicaRequest) { r.Serve.EntryScript = "/etc/passwd" },
		"a script outside":        func(r *computev1.StartReplicaRequest) { r.Serve.EntryScript = "../score.py" },
		"a detour":                func(r *computev1.StartReplicaRequest) { r.Serve.EntryScript = "a/../score.py" },
		"no workers":              func(r *computev1.StartReplicaRequest) { r.Serve.Workers = 0 },
		"no deadline":             func(r *computev1.StartReplicaRequest) { r.Serve.RequestTimeout = durationpb.New(0) },
		"a timeout":               func(r *computev1.StartReplicaRequest) { r.Limits.Timeout = durationpb.New(time.Hour) },
		"a variable of ours":      func(r *computev1.StartReplicaRequest) { r.Environment["REDOUBT_SERVE_ADDRESS"] = "x" },
		"a secret":                func(r *computev1.StartReplicaRequest) { r.Environment["DB_PASSWORD"] = "x" },
		"nothing to serve":        func(r *computev1.StartReplicaRequest) { r.Serve = nil },
	} {
		req := l.replica(c, "r")
		change(req)
		_, err := l.replicas().StartReplica(t.Context(), req)
		want(t, name, err, codes.InvalidArgument, 0)
	}
	req := l.replica(ws1+"/computes/none", "r")
	_, err := l.replicas().StartReplica(t.Context(), req)
	want(t, "no such compute", err, codes.NotFound, 0)
	// Nobody but inference asks.
	for _, peer := range []string{"gateway", "workspace", "telemetry"} {
		_, err := computev1.NewReplicaServiceClient(l.dial(peer)).StartReplica(l.as("owner"), l.replica(c, "r"))
		want(t, peer, err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
	}
}
