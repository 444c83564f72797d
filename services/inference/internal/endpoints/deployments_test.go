package endpoints

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// H6: from a model to an endpoint that answers.
func TestDeploy(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	model := l.model()
	s := spec(ws1 + "/models/m/versions/latest")
	s.Environment = map[string]string{"THREADS": "2"}
	s.Workers, s.MemoryBytes = 2, 1<<30
	d := l.deploy(e.GetName(), "blue", s)
	if d.GetName() != e.GetName()+"/deployments/blue" || d.GetState() != inferencev1.Deployment_STATE_CREATING || d.GetGeneration() != 1 || d.GetCreatedBy() != "usr_owner" {
		t.Errorf("%v", d)
	}
	if got := d.GetSpec(); got.GetModel() != model || got.GetEntryScript() != "score.py" || got.GetReplicas() != 1 || got.GetQueueLength() != 100 || got.GetMaxBodyBytes() != 10<<20 ||
		got.GetRequestTimeout().AsDuration() != 30*time.Second || got.GetStartTimeout().AsDuration() != time.Minute {
		t.Errorf("what was left out is filled in as %v", got)
	}
	d = l.ready(d.GetName())
	r := d.GetReplicas()[0]
	if d.GetReadyReplicas() != 1 || len(d.GetReplicas()) != 1 || r.GetState() != inferencev1.Replica_STATE_READY || r.GetGeneration() != 1 || !strings.HasPrefix(r.GetUid(), "run_") {
		t.Errorf("%v", d)
	}
	req := l.comp.running()[0]
	wanted := &computev1.StartReplicaRequest{
		Workspace: ws1, WorkspaceUid: l.uids[ws1], Principal: "usr_owner", ReplicaId: req.GetReplicaId(), Compute: here, Snapshot: snap, Deployment: d.GetName(),
		Environment: map[string]string{"THREADS": "2"}, Limits: &computev1.RunLimits{MemoryBytes: 1 << 30}, Serve: &computev1.ServeSpec{
			Models: []string{model}, EntryScript: "score.py", Workers: 2, RequestTimeout: durationpb.New(30 * time.Second), StartTimeout: durationpb.New(time.Minute),
			Address: "replicas.test:1", MaxBodyBytes: 10 << 20,
		},
	}
	if !proto.Equal(req, wanted) {
		t.Errorf("compute was asked for %v", req)
	}
	got, err := l.rpc().GetEndpoint(l.as("reader"), &inferencev1.GetEndpointRequest{Name: e.GetName()})
	must(t, err)
	if len(got.GetTraffic()) != 1 || got.GetTraffic()["blue"] != 100 {
		t.Errorf("the first deployment that answers gets the traffic: %v", got.GetTraffic())
	}
	if status, body := l.score(l.client(), e.GetUid(), l.keys(e.GetName()).GetSecondaryKey()); status != http.StatusOK || body != req.GetReplicaId() {
		t.Errorf("%d %s", status, body)
	}
	// Lineage holds: the version stays while it is deployed.
	m := inferencev1.NewModelServiceClient(l.dial("gateway"))
	_, err = m.DeleteModelVersion(l.as("owner"), &inferencev1.DeleteModelVersionRequest{Name: model})
	want(t, "deleting the version meanwhile", err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
	v, err := m.GetModelVersion(l.as("owner"), &inferencev1.GetModelVersionRequest{Name: model})
	must(t, err)
	if !slices.Equal(v.GetDeployments(), []string{d.GetName()}) {
		t.Errorf("the version is used by %v", v.GetDeployments())
	}
	logs, err := l.rpc().StreamDeploymentLogs(l.as("reader"), &inferencev1.StreamDeploymentLogsRequest{Name: d.GetName(), Offset: 7})
	must(t, err)
	c, err := logs.Recv()
	must(t, err)
	if string(c.GetData()) != r.GetUid()+"\n" || c.GetReplica() != r.GetUid() || c.GetOffset() != 7 {
		t.Errorf("%v", c)
	}
	logs, err = l.rpc().StreamDeploymentLogs(l.as("reader"), &inferencev1.StreamDeploymentLogsRequest{Name: d.GetName(), Replica: "run_absent"})
	must(t, err)
	_, err = logs.Recv()
	want(t, "the log of what is no replica of it", err, codes.NotFound, 0)
	list, err := l.rpc().ListDeployments(l.as("reader"), &inferencev1.ListDeploymentsRequest{Parent: e.GetName()})
	must(t, err)
	if len(list.GetDeployments()) != 1 || list.GetDeployments()[0].GetUid() != d.GetUid() {
		t.Errorf("%v", list)
	}
	for _, method := range []string{"/CreateDeployment", "/inference/replicas/start", "/inference/endpoints/traffic"} {
		if ev := l.of(method); len(ev) != 1 || ev[0].GetPrincipal() != "usr_owner" || ev[0].GetWorkspaceUid() != l.uids[ws1] {
			t.Errorf("%s is recorded as %v", method, ev)
		}
	}
}

func TestSpecsThatAreRefused(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	model := l.model()
	create := func(user, id string, change func(s *inferencev1.DeploymentSpec)) error {
		s := spec(model)
		if change != nil {
			change(s)
		}
		_, err := l.rpc().CreateDeployment(l.as(user), &inferencev1.CreateDeploymentRequest{Parent: e.GetName(), DeploymentId: id, Deployment: s})
		return err
	}
	env := func(k, v string) func(s *inferencev1.DeploymentSpec) {
		return func(s *inferencev1.DeploymentSpec) { s.Environment = map[string]string{k: v} }
	}
	for _, tc := range []struct {
		name   string
		change func(s *inferencev1.DeploymentSpec)
		code   codes.Code
	}{
		{"a secret in the environment", env("DB_PASSWORD", "x"), codes.InvalidArgument},
		{"a name of ours", env("REDOUBT_X", "x"), codes.InvalidArgument},
		{"a name that is none", env("A-B", "x"), codes.InvalidArgument},
		{"a script above the snapshot", func(s *inferencev1.DeploymentSpec) { s.EntryScript = "../score.py" }, codes.InvalidArgument},
		{"a script anywhere", func(s *inferencev1.DeploymentSpec) { s.EntryScript = "/etc/passwd" }, codes.InvalidArgument},
		{"a script with a backslash", func(s *inferencev1.DeploymentSpec) { s.EntryScript = `a\b.py` }, codes.InvalidArgument},
		{"too many replicas", func(s *inferencev1.DeploymentSpec) { s.Replicas = 17 }, codes.InvalidArgument},
		{"too many workers", func(s *inferencev1.DeploymentSpec) { s.Workers = 17 }, codes.InvalidArgument},
		{"a timeout of nothing", func(s *inferencev1.DeploymentSpec) { s.RequestTimeout = durationpb.New(0) }, codes.InvalidArgument},
		{"a timeout too long", func(s *inferencev1.DeploymentSpec) { s.RequestTimeout = durationpb.New(11 * time.Minute) }, codes.InvalidArgument},
		{"a start too long", func(s *inferencev1.DeploymentSpec) { s.StartTimeout = durationpb.New(31 * time.Minute) }, codes.InvalidArgument},
		{"the snapshot of another workspace", func(s *inferencev1.DeploymentSpec) { s.Snapshot = strings.Replace(snap, ws1, ws2, 1) }, codes.InvalidArgument},
		{"the model of another workspace", func(s *inferencev1.DeploymentSpec) { s.Model = ws2 + "/models/m/versions/1" }, codes.InvalidArgument},
		{"the compute of another workspace", func(s *inferencev1.DeploymentSpec) { s.Compute = ws2 + "/computes/here" }, codes.InvalidArgument},
		{"no such model", func(s *inferencev1.DeploymentSpec) { s.Model = ws1 + "/models/absent/versions/1" }, codes.NotFound},
		{"no such version", func(s *inferencev1.DeploymentSpec) { s.Model = ws1 + "/models/m/versions/7" }, codes.NotFound},
		{"a model without its version", func(s *inferencev1.DeploymentSpec) { s.Model = ws1 + "/models/m" }, codes.InvalidArgument},
	} {
		want(t, tc.name, create("owner", "d1", tc.change), tc.code, 0)
	}
	want(t, "a reader", create("reader", "d1", nil), codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	want(t, "the owner of another workspace", create("other", "d1", nil), codes.NotFound, 0)
	l.peer.set(fault.NotFound("no such snapshot"), nil)
	want(t, "no such snapshot", create("owner", "d1", nil), codes.NotFound, 0)
	l.peer.set(nil, fault.NotFound("no such compute"))
	want(t, "no such compute", create("owner", "d1", nil), codes.NotFound, 0)
	l.peer.set(nil, fault.PermissionDenied("may use it and not read it"))
	must(t, create("owner", "d1", nil))
	want(t, "the same id again", create("owner", "d1", nil), codes.AlreadyExists, 0)
	if n := len(l.comp.started()); n > 1 {
		t.Errorf("%d replicas were started", n)
	}
}

// load scores an endpoint from several clients until it is stopped. No call may fail.
func (l *lab) load(uid, key string) (answers func() map[string]int, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[string]int)
	for range 3 {
		c := l.client()
		wg.Go(func() {
			for ctx.Err() == nil {
				status, body := l.score(c, uid, key)
				if status != http.StatusOK {
					l.t.Errorf("%d %s", status, body)
				}
				mu.Lock()
				seen[body]++
				mu.Unlock()
			}
		})
	}
	answers = func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		out := seen
		seen = make(map[string]int)
		return out
	}
	return answers, func() { cancel(); wg.Wait() }
}

// H6: new replicas take the place of old ones, and no call fails.
func TestRollingUpdate(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	first, second := l.model(), l.model()
	s := spec(first)
	s.Replicas, s.Workers = 2, 2
	d := l.ready(l.deploy(e.GetName(), "blue", s).GetName())
	l.comp.set(func() {
		l.comp.answer = func(req *computev1.StartReplicaRequest) (int, string) { return 200, req.GetServe().GetModels()[0] }
	})
	var fewest atomic.Int64
	fewest.Store(1 << 30)
	answers, stop := l.load(e.GetUid(), l.keys(e.GetName()).GetPrimaryKey())
	defer stop()
	l.eventually("answers of the first version", func() bool { return answers()[first] > 10 })
	for round, model := range []string{second, first, second} {
		s = proto.CloneOf(s)
		s.Model = model
		u, err := l.rpc().UpdateDeployment(l.as("owner"), &inferencev1.UpdateDeploymentRequest{Name: d.GetName(), Deployment: s})
		must(t, err)
		if u.GetState() != inferencev1.Deployment_STATE_UPDATING || u.GetGeneration() != int64(round+2) {
			t.Errorf("%v", u)
		}
		got := l.until(d.GetName(), "updated", func(d *inferencev1.Deployment) bool {
			if d.GetGeneration() == u.GetGeneration() {
				fewest.Store(min(fewest.Load(), int64(d.GetReadyReplicas())))
			}
			return d.GetGeneration() == u.GetGeneration() && isReady(d)
		})
		for _, r := range got.GetReplicas() {
			if old := r.GetGeneration() != u.GetGeneration(); old && (r.GetState() == inferencev1.Replica_STATE_READY || r.GetState() == inferencev1.Replica_STATE_STARTING) {
				t.Errorf("an old replica is left: %v", r)
			}
		}
		answers() // what was on its way
		l.eventually("answers of the new version", func() bool { return answers()[model] > 10 })
		if other := answers(); other[first]+other[second] != other[model] {
			t.Errorf("the old version still answers: %v", other)
		}
	}
	if fewest.Load() < 2 {
		t.Errorf("meanwhile only %d replicas answered", fewest.Load())
	}
	l.eventually("the old replicas have ended", func() bool { return len(l.comp.running()) == 2 })
	// The first version is let go of when nothing of it runs any more.
	l.eventually("the first version is free", func() bool {
		_, err := inferencev1.NewModelServiceClient(l.dial("gateway")).DeleteModelVersion(l.as("owner"), &inferencev1.DeleteModelVersionRequest{Name: first})
		return err == nil
	})
}

// A new version that does not start leaves the old one where it is.
func TestUpdateThatFails(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	d := l.ready(l.deploy(e.GetName(), "blue", spec(l.model())).GetName())
	old := l.comp.running()[0].GetReplicaId()
	l.comp.set(func() {
		l.comp.die = func(req *computev1.StartReplicaRequest) string {
			if req.GetServe().GetEntryScript() == "broken.py" {
				return "init() raised ValueError"
			}
			return ""
		}
	})
	answers, stop := l.load(e.GetUid(), l.keys(e.GetName()).GetPrimaryKey())
	s := spec(d.GetSpec().GetModel())
	s.EntryScript = "broken.py"
	_, err := l.rpc().UpdateDeployment(l.as("owner"), &inferencev1.UpdateDeploymentRequest{Name: d.GetName(), Deployment: s, Etag: "0"})
	want(t, "an etag of nothing", err, codes.Aborted, 0)
	_, err = l.rpc().UpdateDeployment(l.as("owner"), &inferencev1.UpdateDeploymentRequest{Name: d.GetName(), Deployment: s})
	must(t, err)
	got := l.until(d.GetName(), "given up", func(d *inferencev1.Deployment) bool { return d.GetState() == inferencev1.Deployment_STATE_DEGRADED })
	if got.GetMessage() != "init() raised ValueError" || got.GetReadyReplicas() != 1 {
		t.Errorf("%v", got)
	}
	answers()
	l.eventually("the old one answers", func() bool { return answers()[old] > 0 })
	s.EntryScript = "score.py"
	_, err = l.rpc().UpdateDeployment(l.as("owner"), &inferencev1.UpdateDeploymentRequest{Name: d.GetName(), Deployment: s})
	must(t, err)
	got = l.until(d.GetName(), "back", func(d *inferencev1.Deployment) bool { return isReady(d) && d.GetGeneration() == 3 })
	stop()
	if got.GetMessage() != "" {
		t.Errorf("%v", got)
	}
}

// The number of replicas changes without those that are there being replaced.
func TestScale(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	d := l.ready(l.deploy(e.GetName(), "blue", spec(l.model())).GetName())
	first := l.comp.running()[0].GetReplicaId()
	answers, stop := l.load(e.GetUid(), l.keys(e.GetName()).GetPrimaryKey())
	defer stop()
	for _, n := range []int32{3, 1, 2, 1} {
		s := proto.CloneOf(d.GetSpec())
		s.Replicas = n
		u, err := l.rpc().UpdateDeployment(l.as("owner"), &inferencev1.UpdateDeploymentRequest{Name: d.GetName(), Deployment: s})
		must(t, err)
		if u.GetState() != inferencev1.Deployment_STATE_UPDATING || u.GetGeneration() != 1 {
			t.Errorf("%v", u)
		}
		l.until(d.GetName(), "scaled", func(d *inferencev1.Deployment) bool { return isReady(d) && d.GetReadyReplicas() == n })
		l.eventually("only those run that are wanted", func() bool { return len(l.comp.running()) == int(n) })
		if l.comp.running()[0].GetReplicaId() != first {
			t.Error("the first replica was replaced")
		}
	}
	answers()
	l.eventually("the first one answers", func() bool { return answers()[first] > 0 })
}

// H3: a replica that is lost is started anew.
func TestLostReplica(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	s := spec(l.model())
	s.Replicas = 2
	d := l.ready(l.deploy(e.GetName(), "blue", s).GetName())
	victim := d.GetReplicas()[0].GetUid()
	l.comp.kill(victim, "the agent went silent")
	d = l.until(d.GetName(), "another one", func(d *inferencev1.Deployment) bool {
		i := slices.IndexFunc(d.GetReplicas(), func(r *inferencev1.Replica) bool { return r.GetUid() == victim })
		return isReady(d) && i >= 0 && d.GetReplicas()[i].GetState() == inferencev1.Replica_STATE_ENDED
	})
	if n := len(l.comp.started()); n != 3 {
		t.Errorf("%d replicas were started", n)
	}
	if ev := l.of("/inference/replicas/lost"); len(ev) != 1 || ev[0].GetDetails()["replica"] != victim || ev[0].GetDetails()["reason"] != "the agent went silent" {
		t.Errorf("%v", ev)
	}
	if d.GetReadyReplicas() != 2 {
		t.Errorf("%v", d)
	}
}

// A replica whose run goes on and whose workers do not come back is replaced.
func TestSilentReplica(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	d := l.ready(l.deploy(e.GetName(), "blue", spec(l.model())).GetName())
	l.comp.set(func() { l.comp.mute = true })
	l.restart()
	l.until(d.GetName(), "nobody answers", func(d *inferencev1.Deployment) bool { return d.GetState() == inferencev1.Deployment_STATE_DEGRADED })
	l.eventually("a while", func() bool {
		l.advance(30 * time.Second)
		l.s.keepers.Look(l.uids[ws1], d.GetUid()) // the clock is the test's, and the keeper's timer is not
		return len(l.comp.started()) > 1
	})
	l.comp.set(func() { l.comp.mute = false })
	l.ready(d.GetName())
	l.eventually("the silent one has ended", func() bool { return len(l.comp.running()) == 1 })
}

// What cannot start says why, is tried slowly, and answers when it can.
func TestGivenUp(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	l.comp.set(func() {
		l.comp.die = func(*computev1.StartReplicaRequest) string { return "score.py has no run()" }
	})
	s := spec(l.model())
	s.Replicas = 2
	d := l.deploy(e.GetName(), "blue", s)
	got := l.until(d.GetName(), "given up", func(d *inferencev1.Deployment) bool { return d.GetState() == inferencev1.Deployment_STATE_FAILED })
	if got.GetMessage() != "score.py has no run()" || got.GetReadyReplicas() != 0 {
		t.Errorf("%v", got)
	}
	if status, body := l.score(l.client(), e.GetUid(), l.keys(e.GetName()).GetPrimaryKey()); status != http.StatusNotFound || !strings.Contains(body, "DEPLOYMENT_MISSING") {
		t.Errorf("without traffic: %d %s", status, body)
	}
	if n := len(l.comp.started()); n < 5 {
		t.Errorf("it was given up after %d", n)
	}
	l.restart()
	l.comp.set(func() { l.comp.die = nil })
	if got = l.ready(d.GetName()); got.GetMessage() != "" || got.GetReadyReplicas() != 2 {
		t.Errorf("%v", got)
	}
	if kept := len(got.GetReplicas()); kept > 8 {
		t.Errorf("%d replicas are kept", kept)
	}
}

// Where compute is away, it is waited for; where it refuses, it says so.
func TestComputeRefuses(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	model := l.model()
	l.comp.set(func() { l.comp.fail = fault.Unavailable("away") })
	d := l.deploy(e.GetName(), "blue", spec(model))
	l.eventually("compute is asked", func() bool { l.comp.mu.Lock(); defer l.comp.mu.Unlock(); return l.comp.starts > 0 })
	l.comp.set(func() { l.comp.fail = nil })
	l.ready(d.GetName())
	if n := len(l.comp.started()); n != 1 {
		t.Errorf("%d replicas were started", n)
	}
	l.comp.set(func() { l.comp.fail = fault.NotFound("the compute was deleted") })
	d = l.deploy(e.GetName(), "green", spec(model))
	got := l.until(d.GetName(), "given up", func(d *inferencev1.Deployment) bool { return d.GetState() == inferencev1.Deployment_STATE_FAILED })
	if !strings.Contains(got.GetMessage(), "the compute was deleted") {
		t.Errorf("%v", got)
	}
}

// Restarted, inference goes on with what is there.
func TestRestart(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	s := spec(l.model())
	s.Replicas, s.Workers = 2, 2
	d := l.ready(l.deploy(e.GetName(), "blue", s).GetName())
	before := l.comp.started()
	for range 3 {
		l.restart()
		d = l.until(d.GetName(), "both are back", func(d *inferencev1.Deployment) bool { return isReady(d) && d.GetReadyReplicas() == 2 })
	}
	if after := l.comp.started(); !slices.Equal(before, after) {
		t.Errorf("started were %v, then %v", before, after)
	}
	l.stop()
	l.comp.kill(d.GetReplicas()[0].GetUid(), "the machine went down")
	l.start()
	l.until(d.GetName(), "a new one", func(d *inferencev1.Deployment) bool { return isReady(d) && len(l.comp.started()) == 3 })
}

// H3: inference is killed before or after each call that it makes to compute on the way from one version to the next. It ends where it
// would have ended, and nothing is left over.
func TestCrashes(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	s := spec(l.model())
	s.Replicas = 2
	d := l.ready(l.deploy(e.GetName(), "blue", s).GetName())
	for _, late := range []bool{false, true} {
		for at := int64(1); at <= 4; at++ {
			var calls atomic.Int64
			now, gone := make(chan struct{}), make(chan struct{})
			hook := func() {
				if calls.Add(1) == at {
					close(now)
					<-gone // so that the caller never hears of it
				}
			}
			l.comp.set(func() {
				if late {
					l.comp.after = hook
				} else {
					l.comp.before = hook
				}
			})
			s = proto.CloneOf(s)
			s.EntryScript = "v" + string(rune('a'+at)) + map[bool]string{true: "-late", false: ""}[late] + ".py"
			u, err := l.rpc().UpdateDeployment(l.as("owner"), &inferencev1.UpdateDeploymentRequest{Name: d.GetName(), Deployment: s})
			must(t, err)
			select {
			case <-now:
			case <-time.After(longTime):
				t.Fatalf("there is no call %d", at)
			}
			l.comp.set(func() { l.comp.before, l.comp.after = nil, nil })
			l.stop()
			close(gone)
			l.start()
			l.until(d.GetName(), "updated", func(d *inferencev1.Deployment) bool { return isReady(d) && d.GetGeneration() == u.GetGeneration() })
			l.eventually("nothing is left over", func() bool {
				running := l.comp.running()
				for _, r := range running {
					if r.GetServe().GetEntryScript() != s.GetEntryScript() {
						return false
					}
				}
				return len(running) == 2
			})
		}
	}
}

func TestTraffic(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	model := l.model()
	blue := l.ready(l.deploy(e.GetName(), "blue", spec(model)).GetName())
	green := l.ready(l.deploy(e.GetName(), "green", spec(model)).GetName())
	set := func(traffic, mirror map[string]int32) (*inferencev1.Endpoint, error) {
		return l.rpc().UpdateEndpoint(l.as("owner"), &inferencev1.UpdateEndpointRequest{
			Endpoint: &inferencev1.EndpointUpdate{Name: e.GetName(), Traffic: traffic, Mirror: mirror}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"traffic", "mirror"}},
		})
	}
	for name, traffic := range map[string]map[string]int32{
		"99": {"blue": 99}, "101": {"blue": 50, "green": 51}, "absent": {"blue": 50, "red": 50}, "absent for nothing": {"blue": 100, "red": 0},
	} {
		_, err := set(traffic, nil)
		want(t, name, err, codes.InvalidArgument, 0)
	}
	_, err := set(map[string]int32{"blue": 100}, map[string]int32{"red": 10})
	want(t, "a mirror that is not there", err, codes.InvalidArgument, 0)
	u, err := set(map[string]int32{"blue": 0, "green": 100}, map[string]int32{"blue": 10})
	must(t, err)
	if len(u.GetTraffic()) != 1 || u.GetTraffic()["green"] != 100 || u.GetMirror()["blue"] != 10 {
		t.Errorf("%v", u)
	}
	if ev := l.of("/UpdateEndpoint"); ev[len(ev)-1].GetDetails()["traffic"] != "green 100" || ev[len(ev)-1].GetDetails()["mirror"] != "blue 10" {
		t.Errorf("recorded as %v", ev[len(ev)-1])
	}
	id := l.comp.running()[1].GetReplicaId()
	c, key := l.client(), l.keys(e.GetName()).GetPrimaryKey()
	for range 20 {
		if status, body := l.score(c, e.GetUid(), key); status != http.StatusOK || body != id {
			t.Fatalf("%d %s", status, body)
		}
	}
	_, err = l.rpc().DeleteDeployment(l.as("owner"), &inferencev1.DeleteDeploymentRequest{Name: green.GetName()})
	want(t, "deleting what has the traffic", err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
	_, err = l.rpc().DeleteDeployment(l.as("owner"), &inferencev1.DeleteDeploymentRequest{Name: blue.GetName()})
	must(t, err)
	u, err = l.rpc().GetEndpoint(l.as("owner"), &inferencev1.GetEndpointRequest{Name: e.GetName()})
	must(t, err)
	if len(u.GetMirror()) != 0 || u.GetTraffic()["green"] != 100 {
		t.Errorf("%v", u)
	}
	l.eventually("blue is gone", func() bool {
		_, err := l.rpc().GetDeployment(l.as("owner"), &inferencev1.GetDeploymentRequest{Name: blue.GetName()})
		return fault.Is(fault.FromStatus(err), codes.NotFound)
	})
	_, err = l.rpc().DeleteDeployment(l.as("owner"), &inferencev1.DeleteDeploymentRequest{Name: green.GetName()})
	must(t, err)
	l.eventually("nothing runs", func() bool { return len(l.comp.running()) == 0 })
	again := l.deployAgain(e.GetName(), "green", spec(model))
	l.ready(again.GetName())
	u, err = l.rpc().GetEndpoint(l.as("owner"), &inferencev1.GetEndpointRequest{Name: e.GetName()})
	must(t, err)
	if u.GetTraffic()["green"] != 100 {
		t.Errorf("%v", u)
	}
}

// deployAgain deploys where a deployment of that name is just being deleted.
func (l *lab) deployAgain(endpoint, id string, s *inferencev1.DeploymentSpec) (d *inferencev1.Deployment) {
	l.t.Helper()
	l.eventually("the name is free", func() (ok bool) {
		var err error
		d, err = l.rpc().CreateDeployment(l.as("owner"), &inferencev1.CreateDeploymentRequest{Parent: endpoint, DeploymentId: id, Deployment: s})
		if err != nil && !fault.Is(fault.FromStatus(err), codes.Aborted) {
			l.t.Fatal(err)
		}
		return err == nil
	})
	return d
}
