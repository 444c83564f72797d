package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// runSteps and runPause make a run of some seconds, which lives through several kills.
const (
	runSteps = 40
	runPause = 100 * time.Millisecond
)

// load changes an installation without pause, and remembers what was acknowledged.
type load struct {
	lab  *Lab
	conn *grpc.ClientConn // repeats nothing
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	tried   int
	failed  map[string]int    // by code and reason
	changes map[string]string // acknowledged: request id → method
	secrets map[string]string // acknowledged: name → value
	users   map[string]string // acknowledged: name → uid
	runs    map[string]string // acknowledged: name → uid
	logged  map[string][]int64
	current string // the run that goes on
	odd     []string
}

func startLoad(t *testing.T, lab *Lab) *load {
	t.Helper()
	conn, err := lab.Access.plain(lab.Token)
	if err != nil {
		t.Fatal(err)
	}
	w := &load{
		lab: lab, conn: conn, stop: make(chan struct{}), failed: make(map[string]int), changes: maps.Clone(lab.Changes), secrets: make(map[string]string),
		users: make(map[string]string), runs: make(map[string]string), logged: make(map[string][]int64),
	}
	for _, f := range []func(context.Context, int){w.secret, w.user, w.run, w.metric} {
		w.wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-w.stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
				f(ctx, i)
				cancel()
			}
		})
	}
	return w
}

// try makes one change under a request id of its own and notes what came of it.
func (w *load) try(ctx context.Context, method string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	w.mu.Lock()
	w.tried++
	id := fmt.Sprintf("load-%s-%d", w.lab.Workspace[strings.LastIndexByte(w.lab.Workspace, '/')+1:], w.tried)
	w.mu.Unlock()
	err := f(metadata.AppendToOutgoingContext(ctx, "x-request-id", id))
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.changes[id] = method
		return nil
	}
	w.failed[status.Code(err).String()+" "+fault.ReasonOf(fault.FromStatus(err)).String()]++
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted:
	default:
		w.odd = append(w.odd, method+": "+err.Error())
	}
	return err
}

func (w *load) secret(ctx context.Context, i int) {
	id, value := fmt.Sprintf("s%d", i), fmt.Sprintf("value %d", i)
	_ = w.try(ctx, "SetSecret", func(ctx context.Context) error {
		_, err := keyvaultv1.NewSecretServiceClient(w.conn).SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: w.lab.Workspace, SecretId: id, Value: []byte(value)})
		if err == nil {
			w.mu.Lock()
			w.secrets[w.lab.Workspace+"/secrets/"+id] = value
			w.mu.Unlock()
		}
		return err
	})
}

func (w *load) user(ctx context.Context, i int) {
	id := fmt.Sprintf("%s-u%d", w.lab.Workspace[strings.LastIndexByte(w.lab.Workspace, '/')+1:], i)
	_ = w.try(ctx, "CreateUser", func(ctx context.Context) error {
		u, err := identityv1.NewDirectoryServiceClient(w.conn).CreateUser(ctx, &identityv1.CreateUserRequest{UserId: id, Password: "correct horse battery " + id})
		if err == nil {
			w.mu.Lock()
			w.users[u.GetName()] = u.GetUid()
			w.mu.Unlock()
		}
		return err
	})
	select { // a password's hash costs much
	case <-w.stop:
	case <-time.After(300 * time.Millisecond):
	}
}

// run submits a run, again under the same request id until it is acknowledged, and waits for its end.
func (w *load) run(ctx context.Context, i int) {
	id := fmt.Sprintf("r%d", i)
	for ctx.Err() == nil {
		var r *computev1.Run
		err := w.try(ctx, "SubmitRun", func(ctx context.Context) (err error) {
			r, err = computev1.NewRunServiceClient(w.conn).SubmitRun(ctx, w.lab.count(id, runSteps, runPause))
			return err
		})
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		w.mu.Lock()
		w.runs[r.GetName()], w.current = r.GetUid(), r.GetName()
		w.mu.Unlock()
		if _, err := w.lab.WaitRun(ctx, r.GetName(), nil); err != nil {
			w.mu.Lock()
			w.odd = append(w.odd, "waiting for "+r.GetName()+": "+err.Error())
			w.mu.Unlock()
		}
		return
	}
}

// metric logs for the run that goes on, batch by batch: one that was not acknowledged is sent again under its id.
func (w *load) metric(ctx context.Context, i int) {
	w.mu.Lock()
	run := w.current
	w.mu.Unlock()
	if run == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	batch := &telemetryv1.LogRunDataRequest{Run: run, BatchId: fmt.Sprintf("b%d", i), Metrics: []*telemetryv1.Metric{{Key: "user", Value: float64(i), Step: int64(i), Time: timestamppb.Now()}}}
	for sent := 0; ; sent++ {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			s, err := telemetryv1.NewMetricServiceClient(w.conn).LogRunData(ctx)
			if err != nil {
				return err
			}
			if err := s.Send(batch); err != nil {
				_, err = s.Recv()
				return err
			}
			_, err = s.Recv()
			return err
		}()
		if err == nil {
			w.mu.Lock()
			w.logged[run] = append(w.logged[run], int64(i))
			w.mu.Unlock()
			if i%4 != 0 || sent > 0 {
				return
			}
			continue // as if the answer had been lost
		}
		select {
		case <-w.stop:
			return
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// end stops the load, and looks whether everything that was acknowledged is there once.
func (w *load) end(t *testing.T) {
	t.Helper()
	close(w.stop)
	w.wg.Wait()
	defer func() { _ = w.conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	failed := 0
	for _, n := range w.failed {
		failed += n
	}
	t.Logf("%d changes tried, %d not acknowledged %v; acknowledged: %d secrets, %d users, %d runs", w.tried, failed, w.failed, len(w.secrets), len(w.users), len(w.runs))
	for _, o := range w.odd {
		t.Errorf("refused for another reason than that it is away: %s", o)
	}
	if len(w.secrets) == 0 || len(w.users) == 0 || len(w.runs) == 0 || len(w.logged) == 0 {
		t.Errorf("too little was acknowledged to say anything")
	}
	for name, value := range w.secrets {
		s, err := w.lab.Secrets().AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: name})
		if err != nil || string(s.GetValue()) != value || s.GetVersion().GetVersion() != 1 {
			t.Errorf("%s: version %d, %v", name, s.GetVersion().GetVersion(), err)
		}
	}
	for name, uid := range w.users {
		if u, err := w.lab.Directory().GetUser(ctx, &identityv1.GetUserRequest{Name: name}); err != nil || u.GetUid() != uid {
			t.Errorf("%s: %s instead of %s, %v", name, u.GetUid(), uid, err)
		}
	}
	w.wantRuns(ctx, t)
	w.lab.WantActivity(ctx, t, w.changes)
}

// wantRuns: each run that was acknowledged is there once, and has ended once. One whose command had started has completed, with all
// of its log and metrics.
func (w *load) wantRuns(ctx context.Context, t *testing.T) {
	t.Helper()
	listed := make(map[string]int)
	for page := ""; ; {
		l, err := w.lab.Runs().ListRuns(ctx, &computev1.ListRunsRequest{Parent: w.lab.Workspace, PageSize: 100, PageToken: page})
		if err != nil {
			t.Errorf("list of runs: %v", err)
			return
		}
		for _, r := range l.GetRuns() {
			listed[r.GetUid()]++
		}
		if page = l.GetNextPageToken(); page == "" {
			break
		}
	}
	states := make(map[string]int)
	points := 0
	for name, uid := range w.runs {
		r, err := w.lab.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: name})
		if err != nil || r.GetUid() != uid || listed[uid] != 1 || !client.Ended(r) {
			t.Errorf("%s is %s instead of %s, listed %d times, %s: %v", name, r.GetUid(), uid, listed[uid], r.GetState(), err)
			continue
		}
		states[r.GetState().String()]++
		var log bytes.Buffer
		if _, err := w.lab.FollowLogs(ctx, name, 0, false, &log); err != nil {
			t.Errorf("log of %s: %v", name, err)
		}
		if r.GetState() != computev1.Run_STATE_COMPLETED {
			t.Logf("%s ended as %s: %s", name, r.GetState(), r.GetMessage())
			if log.Len() > 0 || r.GetStartTime() != nil {
				t.Errorf("%s had started and ended as %s: %s; its log: %q", name, r.GetState(), r.GetMessage(), log.String())
			}
			continue
		}
		var all []int64
		var want strings.Builder
		for i := range runSteps {
			all = append(all, int64(i+1))
			fmt.Fprintf(&want, "stored %d\n", i+1)
		}
		if log.String() != want.String() {
			t.Errorf("the log of %s is %q", name, log.String())
		}
		if got, err := w.lab.History(ctx, name, "i"); err != nil || !slices.Equal(got, all) {
			t.Errorf("metrics of %s: %v %v", name, got, err)
		}
		got, err := w.lab.History(ctx, name, "user")
		if err != nil && status.Code(err) != codes.NotFound {
			t.Errorf("metrics of %s: %v", name, err)
		}
		points += len(got) + runSteps
		if err := once(got, w.logged[name]); err != nil {
			t.Errorf("metrics of %s that were logged by a user: %v", name, err)
		}
	}
	t.Logf("runs ended as %v, with %d metrics", states, points)
}

// once wants every number of want once in got, and no number twice.
func once(got, want []int64) error {
	n := make(map[int64]int)
	for _, g := range got {
		if n[g]++; n[g] > 1 {
			return fmt.Errorf("%d stands there %d times", g, n[g])
		}
	}
	var missing []int64
	for _, x := range want {
		if n[x] == 0 {
			missing = append(missing, x)
		}
	}
	if len(missing) > 0 {
		return errors.New("missing: " + fmt.Sprint(missing))
	}
	return nil
}
