package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

const parent = "subscriptions/s1/resourceGroups/g1/workspaces/w1"

type lab struct {
	*Store
	t   *testing.T
	ws  string
	cmp string
	now time.Time
}

// run runs fn on each engine.
func run(t *testing.T, fn func(t *testing.T, l *lab)) {
	sqldbtest.Run(t, []sqldb.MigrationSet{envelope.Migrations(), Migrations()}, func(t *testing.T, db *sqldb.DB) {
		sl, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
		must(t, err)
		keys, err := envelope.New(envelope.Config{Source: envelope.SealSource(sl, "compute"), DB: db})
		must(t, err)
		l := &lab{Store: New(db, keys, slog.New(slog.DiscardHandler)), t: t, ws: resource.NewUID("ws"), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
		l.cmp = l.target("c").UID
		fn(t, l)
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, name string, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	if fault.Code(err) != code || reason != 0 && fault.ReasonOf(err) != reason {
		t.Errorf("%s: got %v, want %v %v", name, err, code, reason)
	}
}

func nothing(context.Context, *sqldb.Tx) error { return nil }

func (l *lab) target(id string) Compute {
	l.t.Helper()
	c := Compute{UID: resource.NewUID("cmp"), Workspace: l.ws, ID: id, Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 2, Created: l.now, CreatedBy: "usr_1"}
	must(l.t, l.InsertCompute(l.t.Context(), c, nothing))
	l.now = l.now.Add(time.Second)
	return c
}

func (l *lab) spec(id string) *Run {
	l.now = l.now.Add(time.Second)
	return &Run{
		UID: resource.NewUID("run"), Workspace: l.ws, Kind: computev1.Run_KIND_JOB, Compute: l.cmp, Submitter: "usr_1", State: computev1.Run_STATE_QUEUED, Created: l.now,
		Spec: &computev1.SubmitRunRequest{
			Parent: parent, RunId: id, Compute: parent + "/computes/c", Snapshot: parent + "/snapshots/s", Command: []string{"command-canary"},
			Environment: map[string]string{"A": "env-canary"}, Limits: &computev1.RunLimits{Timeout: durationpb.New(time.Minute)},
		},
	}
}

func (l *lab) submit(id string) *Run {
	l.t.Helper()
	r, err := l.InsertRun(l.t.Context(), l.spec(id), "", nothing)
	must(l.t, err)
	return r
}

// to moves a run.
func (l *lab) to(r *Run, state computev1.Run_State) *Run {
	l.t.Helper()
	out, err := l.Update(l.t.Context(), r.UID, func(_ context.Context, _ *sqldb.Tx, r *Run) error {
		r.State = state
		if r.Generation == 0 {
			r.Generation = 1
		}
		return nil
	}, nil)
	must(l.t, err)
	return out
}

func (l *lab) exec(text string, args ...any) {
	l.t.Helper()
	must(l.t, l.db.Write(l.t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, text, args...)
		return err
	}))
}

func TestRunRoundTrip(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		in := l.spec("r")
		r, err := l.InsertRun(t.Context(), in, "", nothing)
		must(t, err)
		if r.UID != in.UID || !proto.Equal(r.Spec, in.Spec) || r.Version != 1 || r.Generation != 0 || !r.Created.Equal(in.Created) || r.HasEnded() || !r.Started.IsZero() || r.Name() != parent+"/runs/r" {
			t.Errorf("%+v", r)
		}
		at := l.now.Add(time.Hour)
		changed, err := l.Update(t.Context(), r.UID, func(_ context.Context, _ *sqldb.Tx, r *Run) error {
			r.State, r.AgentKey, r.Cancel, r.Generation, r.Revoked = computev1.Run_STATE_LOST, "key", true, 1, true
			r.Started, r.Ended, r.Heartbeat, r.CanceledAt = at, at.Add(1e6), at.Add(2e6), at.Add(3e6)
			r.Outcome.Message, r.Outcome.ExitCode = "message-canary", -1
			return nil
		}, nil)
		must(t, err)
		got, err := l.Run(t.Context(), l.ws, "r")
		must(t, err)
		if got.Version != 2 || changed.Version != 2 || got.State != computev1.Run_STATE_LOST || got.AgentKey != "key" || !got.Cancel || !got.Revoked || got.Generation != 1 ||
			!got.Started.Equal(at) || !got.Ended.Equal(at.Add(1e6)) || !got.Heartbeat.Equal(at.Add(2e6)) || !got.CanceledAt.Equal(at.Add(3e6)) ||
			got.Outcome.GetMessage() != "message-canary" || got.Outcome.GetExitCode() != -1 || !got.HasEnded() {
			t.Errorf("%+v", got)
		}
		_, err = l.Run(t.Context(), resource.NewUID("ws"), "r")
		want(t, "another workspace", err, codes.NotFound, 0)
		_, err = l.InsertRun(t.Context(), l.spec("r"), "", nothing)
		want(t, "the same id", err, codes.AlreadyExists, 0)

		var spec, outcome []byte
		must(t, l.db.Reader().QueryRowContext(t.Context(), "SELECT spec, outcome FROM runs").Scan(&spec, &outcome))
		if s := string(spec) + string(outcome); strings.Contains(s, "canary") || strings.Contains(s, "runs/") {
			t.Error("D2: the run is stored in clear")
		}
	})
}

// A change that fails, or has no record, changes nothing; of two that start from the same state one is refused.
func TestUpdate(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		r := l.submit("r")
		failing := errors.New("failing")
		set := func(_ context.Context, _ *sqldb.Tx, r *Run) error {
			r.State = computev1.Run_STATE_STARTING
			return nil
		}
		for name, do := range map[string]func() error{
			"change": func() error {
				_, err := l.Update(ctx, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *Run) error { _ = set(ctx, tx, r); return failing }, nothing)
				return err
			},
			"record": func() error {
				_, err := l.Update(ctx, r.UID, set, func(context.Context, *sqldb.Tx) error { return failing })
				return err
			},
		} {
			if err := do(); !errors.Is(err, failing) {
				t.Errorf("%s: %v", name, err)
			}
			if got, err := l.RunByUID(ctx, r.UID); err != nil || got.State != computev1.Run_STATE_QUEUED || got.Version != 1 {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
		_, err := l.Update(ctx, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *Run) error {
			_, err := tx.ExecContext(ctx, "UPDATE runs SET version = version + 1 WHERE uid = $1", r.UID) // as from elsewhere
			return err
		}, nothing)
		want(t, "changed in between", err, codes.Aborted, faultv1.Reason_CONFLICT)
		_, err = l.Update(ctx, resource.NewUID("run"), set, nothing)
		want(t, "no such run", err, codes.NotFound, 0)

		var wg sync.WaitGroup
		var mu sync.Mutex
		moved := 0
		for range 8 {
			wg.Go(func() {
				_, err := l.Update(ctx, r.UID, func(_ context.Context, _ *sqldb.Tx, r *Run) error {
					if r.State != computev1.Run_STATE_QUEUED {
						return failing
					}
					r.State = computev1.Run_STATE_STARTING
					return nil
				}, nothing)
				if err == nil {
					mu.Lock()
					moved++
					mu.Unlock()
				}
			})
		}
		if wg.Wait(); moved != 1 {
			t.Errorf("taken out of the queue %d times", moved)
		}
	})
}

// A request id gives the run of then for a day, to its submitter only.
func TestRequestReplay(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		insert := func(id, request, submitter string) (*Run, error) {
			r := l.spec(id)
			r.Submitter = submitter
			return l.InsertRun(t.Context(), r, request, nothing)
		}
		first, err := insert("r1", "req", "usr_1")
		must(t, err)
		if again, err := insert("r2", "req", "usr_1"); err != nil || again.UID != first.UID {
			t.Errorf("again: %+v, %v", again, err)
		}
		if other, err := insert("r2", "req", "usr_2"); err != nil || other.UID == first.UID {
			t.Errorf("another submitter: %+v, %v", other, err)
		}
		if _, err := insert("r1", "other", "usr_1"); !fault.Is(err, codes.AlreadyExists) {
			t.Errorf("the id under another request: %v", err)
		}
		l.now = l.now.Add(24 * time.Hour)
		if later, err := insert("r3", "req", "usr_1"); err != nil || later.UID == first.UID {
			t.Errorf("a day later: %+v, %v", later, err)
		}
		for _, id := range []string{"r4", "r5"} { // no request id is none in common
			if r, err := insert(id, "", "usr_1"); err != nil || r.Spec.GetRunId() != id {
				t.Errorf("%s: %+v, %v", id, r, err)
			}
		}
	})
}

func TestLog(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		const limit = 20
		r := l.to(l.submit("r"), computev1.Run_STATE_RUNNING)
		for _, tc := range []struct {
			name   string
			start  int64
			data   string
			stored int64
			full   bool
			code   codes.Code
		}{
			{"first", 0, "0123", 4, false, codes.OK},
			{"the same again", 0, "0123", 4, false, codes.OK},
			{"a part of it again", 1, "12", 4, false, codes.OK},
			{"overlap", 2, "2345", 6, false, codes.OK},
			{"gap", 7, "789", 0, false, codes.OutOfRange},
			{"nothing", 6, "", 6, false, codes.OK},
			{"up to before the limit", 6, "6789abcdefghi", 19, false, codes.OK},
			{"over the limit", 19, "jXXXX", 20, true, codes.OK},
			{"after the limit", 20, "YYY", 20, true, codes.OK},
		} {
			stored, full, err := l.AppendLog(t.Context(), r, tc.start, []byte(tc.data), limit, l.now)
			want(t, tc.name, err, tc.code, 0)
			if err == nil && (stored != tc.stored || full != tc.full) {
				t.Errorf("%s: stored %d, full %v", tc.name, stored, full)
			}
		}
		const all = "0123456789abcdefghij"
		for offset := range int64(len(all) + 2) {
			for _, n := range []int{1, 100} {
				var got []byte
				at := offset
				for {
					pieces, err := l.ReadLog(t.Context(), r, at, n)
					must(t, err)
					for _, p := range pieces {
						if p.GetOffset() != at {
							t.Fatalf("from %d by %d: a piece at %d, not %d", offset, n, p.GetOffset(), at)
						}
						got = append(got, p.GetData()...)
						at += int64(len(p.GetData()))
					}
					if len(pieces) < n {
						break
					}
				}
				if string(got) != all[min(offset, int64(len(all))):] {
					t.Errorf("from %d by %d: %q", offset, n, got)
				}
			}
		}
		l.to(r, computev1.Run_STATE_COMPLETED)
		_, _, err := l.AppendLog(t.Context(), r, 0, []byte("late"), limit, l.now)
		want(t, "after the end", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	})
}

// A change of the run at the same time as its log loses neither.
func TestLogBesideUpdate(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		r := l.to(l.submit("r"), computev1.Run_STATE_RUNNING)
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range int64(20) {
				if _, _, err := l.AppendLog(t.Context(), r, i, []byte("x"), 100, l.now); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 20 {
				if _, err := l.Update(t.Context(), r.UID, func(_ context.Context, _ *sqldb.Tx, r *Run) error { return nil }, nil); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Wait()
		got, err := l.RunByUID(t.Context(), r.UID)
		if must(t, err); got.LogBytes != 20 || got.Version != r.Version+20 {
			t.Errorf("%d bytes, version %d after %d", got.LogBytes, got.Version, r.Version)
		}
	})
}

// D2: a log or run whose rows were moved, cut or changed is said to be damaged.
func TestDamage(t *testing.T) {
	for _, tc := range []struct{ name, tamper string }{
		{"a piece is gone", "DELETE FROM log_chunks WHERE start = 0"},
		{"a piece is longer than it is", "UPDATE log_chunks SET length = 100 WHERE start = 4"},
		{"pieces swapped", "UPDATE log_chunks SET data = (SELECT o.data FROM log_chunks o WHERE o.start <> log_chunks.start AND o.run_uid = log_chunks.run_uid)"},
		{"of another run", "UPDATE log_chunks SET data = (SELECT o.data FROM log_chunks o WHERE o.start = log_chunks.start AND o.run_uid <> log_chunks.run_uid)"},
		{"runs swapped", "UPDATE runs SET spec = (SELECT o.spec FROM runs o WHERE o.uid <> runs.uid)"},
		{"outcome for spec", "UPDATE runs SET spec = outcome"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, func(t *testing.T, l *lab) {
				for _, id := range []string{"a", "b"} {
					r := l.to(l.submit(id), computev1.Run_STATE_RUNNING)
					for i := range int64(2) {
						_, _, err := l.AppendLog(t.Context(), r, 4*i, []byte("data"), 100, l.now)
						must(t, err)
					}
				}
				l.exec(tc.tamper)
				r, err := l.Run(t.Context(), l.ws, "a")
				if err == nil {
					_, err = l.ReadLog(t.Context(), r, 0, 10)
				}
				want(t, "read", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
			})
		})
	}
}

func TestOutputs(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		r := l.to(l.submit("r"), computev1.Run_STATE_RUNNING)
		put := func(path, blob string, size int64) (string, error) {
			l.now = l.now.Add(time.Second)
			return l.PutOutput(ctx, r, Output{Path: path, Size: size, Digest: []byte(path + blob), Blob: blob, Created: l.now}, 2, 100, nil)
		}
		for _, tc := range []struct {
			name, path, blob string
			size             int64
			replaced         string
			code             codes.Code
		}{
			{"first", "a", "blob1", 60, "", codes.OK},
			{"the same again", "a", "blob1", 60, "", codes.OK},
			{"in its place", "a", "blob2", 100, "blob1", codes.OK},
			{"no bytes left", "b", "blob3", 1, "", codes.ResourceExhausted},
			{"smaller", "a", "blob4", 60, "blob2", codes.OK},
			{"a byte too many", "b", "blob3", 41, "", codes.ResourceExhausted},
			{"a size that wraps", "b", "blob3", 1<<63 - 1, "", codes.ResourceExhausted},
			{"just as many", "path-canary", "blob3", 40, "", codes.OK},
			{"too many files", "c", "blob5", 0, "", codes.ResourceExhausted},
		} {
			replaced, err := put(tc.path, tc.blob, tc.size)
			if want(t, tc.name, err, tc.code, 0); replaced != tc.replaced {
				t.Errorf("%s: replaced %q", tc.name, replaced)
			}
		}
		list, err := l.Outputs(ctx, r)
		if must(t, err); len(list) != 2 || list[0].Path != "a" || list[0].Size != 60 || list[0].Blob != "blob4" || !bytes.Equal(list[0].Digest, []byte("ablob4")) || list[1].Path != "path-canary" {
			t.Errorf("%+v", list)
		}
		if o, err := l.Output(ctx, r, "path-canary"); err != nil || o.Size != 40 {
			t.Errorf("%+v, %v", o, err)
		}
		_, err = l.Output(ctx, r, "absent")
		want(t, "absent", err, codes.NotFound, 0)
		var entry []byte
		must(t, l.db.Reader().QueryRowContext(ctx, "SELECT entry FROM outputs WHERE blob = 'blob3'").Scan(&entry))
		if bytes.Contains(entry, []byte("canary")) {
			t.Error("D2: the path is stored in clear")
		}
		l.exec("UPDATE outputs SET blob = CASE blob WHEN 'blob3' THEN 'blob4' ELSE 'blob3' END")
		_, err = l.Output(ctx, r, "a")
		want(t, "the blob of another output", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
		l.to(r, computev1.Run_STATE_COMPLETED)
		_, err = put("a", "late", 1)
		want(t, "after the end", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	})
}

func TestLists(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		states := []computev1.Run_State{1, 2, 3, 4, 5, 6, 7, 8, 1}
		var all []*Run
		for i, s := range states {
			r := l.submit("r" + string(rune('0'+i)))
			if s != computev1.Run_STATE_QUEUED {
				r = l.to(r, s)
			}
			all = append(all, r)
		}
		ids := func(list []*Run) string {
			var out []string
			for _, r := range list {
				out = append(out, r.Spec.GetRunId())
			}
			return strings.Join(out, " ")
		}
		var got []*Run
		var cur Cursor
		for {
			page, next, err := l.ListRuns(ctx, l.ws, 0, false, cur, 2)
			must(t, err)
			got, cur = append(got, page...), next
			if len(page) < 2 {
				break
			}
		}
		if ids(got) != "r8 r7 r6 r5 r4 r3 r2 r1 r0" {
			t.Errorf("newest first: %s", ids(got))
		}
		queued, _, err := l.ListRuns(ctx, l.ws, computev1.Run_STATE_QUEUED, false, Cursor{}, 10)
		if must(t, err); ids(queued) != "r8 r0" {
			t.Errorf("queued: %s", ids(queued))
		}
		on, err := l.QueuedOn(ctx, l.cmp, 10)
		if must(t, err); ids(on) != "r0 r8" {
			t.Errorf("oldest first: %s", ids(on))
		}
		active, err := l.Active(ctx)
		if must(t, err); ids(active) != "r1 r2 r3" {
			t.Errorf("active: %s", ids(active))
		}
		n, err := l.ActiveOn(ctx, l.cmp)
		if must(t, err); n != 3 {
			t.Errorf("%d active", n)
		}
		ended, err := l.NotRevoked(ctx, time.Now())
		if must(t, err); len(ended) != 4 {
			t.Errorf("to be revoked: %s", ids(ended))
		}
		l.exec("UPDATE runs SET spec = outcome WHERE uid = $1", ended[0].UID) // noted whether it opens or not
		must(t, l.MarkTold(ctx, ended[0].UID, false))
		must(t, l.MarkTold(ctx, ended[1].UID, false))
		must(t, l.MarkTold(ctx, ended[2].UID, true)) // which is still to be killed
		left, err := l.NotRevoked(ctx, time.Now())
		if must(t, err); ids(left) != ids(ended[2:]) {
			t.Errorf("still to be revoked: %s", ids(left))
		}
		want(t, "delete a target that is waited for", l.DeleteCompute(ctx, l.cmp, nothing), codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
		free := l.target("free")
		want(t, "delete a free one", l.DeleteCompute(ctx, free.UID, nothing), codes.OK, 0)
		want(t, "delete it again", l.DeleteCompute(ctx, free.UID, nothing), codes.NotFound, 0)
		want(t, "the same name", l.InsertCompute(ctx, Compute{UID: resource.NewUID("cmp"), Workspace: l.ws, ID: "c"}, nothing), codes.AlreadyExists, 0)

		// What is damaged stops only itself.
		l.exec("UPDATE runs SET spec = outcome WHERE uid = $1 OR uid = $2", all[0].UID, all[1].UID)
		on, err = l.QueuedOn(ctx, l.cmp, 10)
		if must(t, err); ids(on) != "r8" {
			t.Errorf("queued beside a damaged one: %s", ids(on))
		}
		active, err = l.Active(ctx)
		if must(t, err); ids(active) != "r2 r3" {
			t.Errorf("active beside a damaged one: %s", ids(active))
		}
		uids, err := l.ActiveUIDs(ctx)
		if must(t, err); !slices.Contains(uids, all[1].UID) || len(uids) != 3 {
			t.Errorf("a damaged one has an agent all the same: %v", uids)
		}
	})
}

// D1: of a purged workspace nothing is left, and its key is gone.
func TestPurge(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		r := l.to(l.submit("r"), computev1.Run_STATE_RUNNING)
		_, _, err := l.AppendLog(ctx, r, 0, []byte("log"), 10, l.now)
		must(t, err)
		_, err = l.PutOutput(ctx, r, Output{Path: "a", Blob: "b"}, 1, 1, nil)
		must(t, err)
		other := &lab{Store: l.Store, t: t, ws: resource.NewUID("ws"), now: l.now}
		other.cmp = other.target("c").UID
		kept := other.submit("r")
		failing := errors.New("failing")
		if err := l.Purge(ctx, l.ws, func(context.Context, *sqldb.Tx) error { return failing }); !errors.Is(err, failing) {
			t.Fatal(err)
		}
		if _, err := l.Run(ctx, l.ws, "r"); err != nil {
			t.Errorf("a purge without record has happened: %v", err)
		}
		for range 2 {
			must(t, l.Purge(ctx, l.ws, nothing))
		}
		for table, n := range map[string]int{"runs": 1, "computes": 1, "log_chunks": 0, "outputs": 0} {
			var got int
			must(t, l.db.Reader().QueryRowContext(ctx, "SELECT COUNT(*) FROM "+table).Scan(&got))
			if got != n {
				t.Errorf("%d rows in %s", got, table)
			}
		}
		if _, err := l.RunByUID(ctx, kept.UID); err != nil {
			t.Errorf("the other workspace: %v", err)
		}
		_, err = l.InsertRun(ctx, l.spec("late"), "", nothing)
		want(t, "late", err, codes.FailedPrecondition, faultv1.Reason_KEY_DISABLED)
	})
}
