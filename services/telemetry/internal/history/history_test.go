package history_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history"
)

func sets() []sqldb.MigrationSet {
	return []sqldb.MigrationSet{envelope.Migrations(), history.Migrations()}
}

var (
	runA = history.Run{UID: "run_a", WorkspaceUID: "ws_one"}
	runB = history.Run{UID: "run_b", WorkspaceUID: "ws_one"}
	runC = history.Run{UID: "run_c", WorkspaceUID: "ws_two"}
)

// lab is a store on a real database, with a clock of its own.
type lab struct {
	t     testing.TB
	seal  *seal.Seal
	db    *sqldb.DB
	keys  *envelope.Keyring
	all   *history.Stores
	clock atomic.Int64 // microseconds
	*history.Store
}

func newLab(t testing.TB, db *sqldb.DB) *lab {
	t.Helper()
	s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, seal: s, db: db}
	l.clock.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro())
	l.start()
	return l
}

// start opens the stores as a process that has just started would.
func (l *lab) start() {
	l.t.Helper()
	var err error
	if l.keys, err = envelope.New(envelope.Config{Source: envelope.SealSource(l.seal, "telemetry"), DB: l.db}); err != nil {
		l.t.Fatal(err)
	}
	all, err := history.Open(history.Config{Shared: l.db, Keys: l.keys, Now: func() time.Time { return time.UnixMicro(l.clock.Load()) }})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(all.Close)
	l.all, l.Store = all, all.Store("")
}

func openLab(t testing.TB) *lab { return newLab(t, sqldbtest.Open(t, sets()...)) }

func (l *lab) log(run history.Run, b *history.Batch) {
	l.t.Helper()
	if err := l.Log(l.t.Context(), run, b); err != nil {
		l.t.Fatalf("log: %v", err)
	}
}

func (l *lab) data(run history.Run) history.Data {
	l.t.Helper()
	d, err := l.Data(l.t.Context(), run)
	if err != nil {
		l.t.Fatalf("data: %v", err)
	}
	return d
}

func (l *lab) history(run history.Run, key string) []history.Point {
	l.t.Helper()
	points, next, err := l.History(l.t.Context(), run, key, history.Everything(), nil, 50_000)
	if err != nil || next != nil {
		l.t.Fatalf("history: %v, next %v", err, next)
	}
	return points
}

func (l *lab) count(query string, args ...any) (n int64) {
	l.t.Helper()
	if err := l.db.Reader().QueryRowContext(l.t.Context(), query, args...).Scan(&n); err != nil {
		l.t.Fatal(err)
	}
	return n
}

func (l *lab) exec(text string, args ...any) {
	l.t.Helper()
	err := l.db.Write(l.t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, text, args...)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func metric(key string, step, time int64, value float64) history.Metric {
	return history.Metric{Key: key, Point: history.Point{Step: step, Time: time, Value: value}}
}

func batch(metrics ...history.Metric) *history.Batch { return &history.Batch{Metrics: metrics} }

// same compares bit by bit, so that NaN equals itself and -0 is not 0.
func same(a, b []history.Point) bool {
	return slices.EqualFunc(a, b, func(p, q history.Point) bool {
		return p.Step == q.Step && p.Time == q.Time && math.Float64bits(p.Value) == math.Float64bits(q.Value)
	})
}

func want(t *testing.T, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	if fault.Code(err) != code || fault.ReasonOf(err) != reason {
		t.Errorf("got %v, want %v %v", err, code, reason)
	}
}

func TestValuesComeBackBitByBit(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		l := newLab(t, db)
		odd := math.Float64frombits(0x7ff8dead_beef0001) // a NaN with something in it
		var points []history.Point
		for i, v := range []float64{0, math.Copysign(0, -1), 1.5, math.NaN(), odd, math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64} {
			points = append(points, history.Point{Step: int64(i), Time: int64(1000 - i), Value: v})
		}
		points = append(points, history.Point{Step: math.MaxInt64, Time: math.MinInt64, Value: 1}, history.Point{Step: math.MinInt64, Time: math.MaxInt64, Value: 2})
		var ms []history.Metric
		for _, p := range points {
			ms = append(ms, history.Metric{Key: "loss", Point: p})
		}
		l.log(runA, batch(ms...))
		slices.SortStableFunc(points, func(a, b history.Point) int { return a.Compare(b) })
		if got := l.history(runA, "loss"); !same(got, points) {
			t.Errorf("got %v, want %v", got, points)
		}
	})
}

func TestLatest(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	cases := []struct {
		name   string
		points []history.Point
		want   int // index of the latest
	}{
		{"the greater step", []history.Point{{2, 1, 0}, {1, 9, 9}}, 0},
		{"then the later time", []history.Point{{1, 5, 9}, {1, 6, 0}}, 1},
		{"then the greater value", []history.Point{{1, 5, 1}, {1, 5, 2}, {1, 5, 0}}, 1},
		{"NaN is below every number", []history.Point{{1, 5, nan}, {1, 5, math.Inf(-1)}}, 1},
		{"a later NaN is later", []history.Point{{1, 5, 1}, {2, 5, nan}}, 1},
		{"infinity above", []history.Point{{1, 5, inf}, {1, 5, math.MaxFloat64}}, 0},
		{"negative steps", []history.Point{{-5, 1, 1}, {-4, 1, 1}, {-6, 9, 9}}, 1},
	}
	l := openLab(t)
	for i, c := range cases {
		for _, how := range []string{"one batch", "many"} {
			key := fmt.Sprintf("%d %s", i, how)
			var ms []history.Metric
			for _, p := range c.points {
				ms = append(ms, history.Metric{Key: key, Point: p})
			}
			if how == "many" {
				for _, m := range ms {
					l.log(runA, batch(m))
				}
			} else {
				l.log(runA, batch(ms...))
			}
			for _, m := range l.data(runA).Latest {
				if m.Key == key && !same([]history.Point{m.Point}, c.points[c.want:c.want+1]) {
					t.Errorf("%s, %s: got %v, want %v", c.name, how, m.Point, c.points[c.want])
				}
			}
		}
	}
}

func TestParamsKeepTheirFirstValueAndTagsDoNot(t *testing.T) {
	l := openLab(t)
	l.log(runA, &history.Batch{Params: []history.Text{{"lr", "0.1"}}, Tags: []history.Text{{"note", "a"}}})
	l.log(runA, &history.Batch{Params: []history.Text{{"lr", "0.1"}, {"empty", ""}}, Tags: []history.Text{{"note", "b"}, {"lr", "a tag of that name"}}})
	err := l.Log(t.Context(), runA, &history.Batch{
		ID: "x", Metrics: []history.Metric{metric("loss", 1, 1, 1)}, Params: []history.Text{{"new", "1"}, {"lr", "0.2"}}, Tags: []history.Text{{"note", "c"}},
	})
	want(t, err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	d := l.data(runA)
	if !slices.Equal(d.Params, []history.Text{{"empty", ""}, {"lr", "0.1"}}) || !slices.Equal(d.Tags, []history.Text{{"lr", "a tag of that name"}, {"note", "b"}}) || d.Latest != nil {
		t.Errorf("got %+v", d)
	}
	// A batch that was refused may come again, put right, under its id.
	l.log(runA, &history.Batch{ID: "x", Params: []history.Text{{"lr", "0.1"}}})
	l.log(runB, &history.Batch{Params: []history.Text{{"lr", "0.2"}}}) // another run's
	if d := l.data(runC); d.Latest != nil || d.Params != nil || d.Tags != nil {
		t.Errorf("a run without data has %+v", d)
	}
}

func TestARepeatedBatchIsStoredOnce(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		l := newLab(t, db)
		b := &history.Batch{ID: "b1", Metrics: []history.Metric{metric("loss", 1, 1, math.NaN())}, Tags: []history.Text{{"k", "v"}}}
		var wg sync.WaitGroup
		for range 20 { // some of them in one transaction
			wg.Go(func() {
				if err := l.Log(t.Context(), runA, b); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		l.all.Close()
		l.start()
		l.log(runA, b)
		if n := len(l.history(runA, "loss")); n != 1 {
			t.Errorf("%d points", n)
		}
		other := &history.Batch{ID: "b1", Metrics: []history.Metric{metric("loss", 2, 1, 1)}}
		want(t, l.Log(t.Context(), runA, other), codes.InvalidArgument, faultv1.Reason_REQUEST_ID_REUSED)
		l.log(runB, other)                          // ids are a run's own
		l.log(runA, batch(metric("loss", 2, 1, 1))) // without an id
		l.log(runA, batch(metric("loss", 2, 1, 1))) // stored again
		l.log(runA, &history.Batch{ID: "empty"})    // nothing, under an id
		l.log(runA, &history.Batch{ID: "empty"})    //
		l.clock.Add(history.BatchMemory.Microseconds() + 1)
		if err := l.Forget(t.Context(), l.db.Write); err != nil {
			t.Fatal(err)
		}
		if n := l.count("SELECT COUNT(*) FROM run_batch"); n != 0 {
			t.Errorf("%d ids are remembered after their time", n)
		}
		if n := len(l.history(runA, "loss")); n != 3 {
			t.Errorf("%d points", n)
		}
	})
}

func TestLimitsOfABatch(t *testing.T) {
	many := func(n int) (ms []history.Metric) {
		for range n {
			ms = append(ms, metric("loss", 1, 1, 1))
		}
		return ms
	}
	texts := func(n, size int) (ts []history.Text) {
		for i := range n {
			ts = append(ts, history.Text{Key: fmt.Sprintf("k%d", i), Value: strings.Repeat("v", size)})
		}
		return ts
	}
	key := func(k string) *history.Batch { return batch(metric(k, 1, 1, 1)) }
	cases := []struct {
		name  string
		batch *history.Batch
		ok    bool
	}{
		{"1000 metrics", batch(many(1000)...), true},
		{"1001 metrics", batch(many(1001)...), false},
		{"1000 items", &history.Batch{Metrics: many(800), Params: texts(100, 1), Tags: texts(100, 1)}, true},
		{"1001 items", &history.Batch{Metrics: many(801), Params: texts(100, 1), Tags: texts(100, 1)}, false},
		{"101 params", &history.Batch{Params: texts(101, 1)}, false},
		{"101 tags", &history.Batch{Tags: texts(101, 1)}, false},
		{"param of 6000 bytes", &history.Batch{Params: texts(1, 6000)}, true},
		{"param of 6001 bytes", &history.Batch{Params: texts(1, 6001)}, false},
		{"tag of 8000 bytes", &history.Batch{Tags: texts(1, 8000)}, true},
		{"tag of 8001 bytes", &history.Batch{Tags: texts(1, 8001)}, false},
		{"a million bytes and more", &history.Batch{Params: texts(100, 6000), Tags: texts(100, 4100)}, false},
		{"a param twice", &history.Batch{Params: []history.Text{{"k", "v"}, {"k", "v"}}}, false},
		{"a tag twice", &history.Batch{Tags: []history.Text{{"k", "v"}, {"k", "w"}}}, false},
		{"a param not UTF-8", &history.Batch{Params: []history.Text{{"k", "\xff"}}}, false},
		{"key", key("train/loss_1.x-y z"), true},
		{"key of other letters", key("größe/損失"), true},
		{"key of 250 bytes", key(strings.Repeat("k", 250)), true},
		{"key of 251 bytes", key(strings.Repeat("k", 251)), false},
		{"empty key", key(""), false},
		{"absolute key", key("/loss"), false},
		{"key .", key("."), false},
		{"key ..", key(".."), false},
		{"key ../x", key("../x"), false},
		{"key a//b", key("a//b"), false},
		{"key a/", key("a/"), false},
		{"key a/./b", key("a/./b"), false},
		{"key a/../b", key("a/../b"), false},
		{"key with a colon", key("a:b"), false},
		{"key with NUL", key("a\x00b"), false},
		{"key with a newline", key("a\nb"), false},
		{"key not UTF-8", key("a\xff"), false},
		{"a bad param key", &history.Batch{Params: []history.Text{{"a:b", "v"}}}, false},
		{"a bad tag key", &history.Batch{Tags: []history.Text{{"", "v"}}}, false},
	}
	l := openLab(t)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			run := history.Run{UID: fmt.Sprintf("run_%d", i), WorkspaceUID: "ws_one"}
			err := l.Log(t.Context(), run, c.batch)
			if c.ok && err != nil {
				t.Errorf("refused: %v", err)
			}
			if !c.ok {
				want(t, err, codes.InvalidArgument, faultv1.Reason_METRIC_INVALID)
				var f *fault.Error
				if !errors.As(err, &f) || len(f.Violations()) != 1 {
					t.Errorf("no field is named: %v", err)
				}
				if n := l.count("SELECT COUNT(*) FROM run_data WHERE run_uid = $1", run.UID); n != 0 {
					t.Error("something was stored")
				}
			}
		})
	}
}

func TestLimitsOfARun(t *testing.T) {
	l := openLab(t)
	for i := range history.MaxRunMetrics / 1000 {
		var ms []history.Metric
		for j := range 1000 {
			ms = append(ms, metric(fmt.Sprintf("m%d", i*1000+j), 1, 1, 1))
		}
		l.log(runA, batch(ms...))
	}
	want(t, l.Log(t.Context(), runA, batch(metric("m0", 2, 2, 2), metric("one more", 1, 1, 1))), codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED)
	l.log(runA, batch(metric("m0", 3, 3, 3)))
	if d := l.data(runA); len(d.Latest) != history.MaxRunMetrics {
		t.Errorf("%d metrics", len(d.Latest))
	}
	if got := l.history(runA, "m0"); len(got) != 2 || got[1].Step != 3 {
		t.Errorf("a batch that was refused is there: %v", got)
	}
	for i := 0; ; i++ {
		var params []history.Text
		for j := range 100 {
			params = append(params, history.Text{Key: fmt.Sprintf("p%d-%d", i, j), Value: strings.Repeat("x", 6000)})
		}
		err := l.Log(t.Context(), runB, &history.Batch{Params: params})
		if err == nil && i < 4 {
			continue
		}
		want(t, err, codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED)
		if i != 3 { // 3 × 602 KiB are below 2 MiB
			t.Errorf("refused at batch %d", i)
		}
		break
	}
	l.log(runB, &history.Batch{Params: []history.Text{{"p0-0", strings.Repeat("x", 6000)}}, Tags: []history.Text{{"small", ""}}})
}

func TestChunks(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		l := newLab(t, db)
		var all []history.Point
		log := func(n int) {
			var ms []history.Metric
			for range n {
				m := metric("loss", int64(len(all)), int64(len(all)), float64(len(all)))
				ms, all = append(ms, m), append(all, m.Point)
			}
			l.log(runA, batch(ms...))
		}
		chunks := func(want ...int64) {
			t.Helper()
			rows, err := db.Reader().QueryContext(t.Context(), "SELECT points FROM metric_chunk ORDER BY seq")
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			var got []int64
			for rows.Next() {
				var n int64
				if err := rows.Scan(&n); err != nil {
					t.Fatal(err)
				}
				got = append(got, n)
			}
			if !slices.Equal(got, want) {
				t.Errorf("chunks of %v points, want %v", got, want)
			}
			if !same(l.history(runA, "loss"), all) {
				t.Error("the history is not what was logged")
			}
		}
		log(1)
		log(1)
		chunks(2)
		l.clock.Add(history.ChunkAge.Microseconds() - 1)
		log(1)
		chunks(3)
		l.clock.Add(1)
		log(1)
		chunks(3, 1)
		log(1000)
		log(1000)
		chunks(3, 1024, 977)
		l.all.Close()
		l.start() // another process goes on with the same chunk
		log(47)
		chunks(3, 1024, 1024)
		log(1)
		chunks(3, 1024, 1024, 1)
		l.clock.Add(-time.Hour.Microseconds()) // a clock that was set back
		log(1)
		chunks(3, 1024, 1024, 1, 1)
	})
}

// TestOneBatchDoesNotFailAnother: what is wrong with a batch, or with the key of its workspace, stays there, whoever shares its transaction.
func TestOneBatchDoesNotFailAnother(t *testing.T) {
	config := sqldbtest.SQLite(t, sets()...)
	var hold atomic.Bool
	entered, release := make(chan struct{}, 1), make(chan struct{})
	config.Finish = func(_ context.Context, commit func() error) error {
		if hold.CompareAndSwap(true, false) {
			entered <- struct{}{}
			<-release
		}
		return commit()
	}
	l := newLab(t, sqldbtest.OpenConfig(t, config))
	l.log(runA, &history.Batch{Params: []history.Text{{"lr", "1"}}})
	l.log(runC, batch(metric("loss", 1, 1, 1)))
	hold.Store(true)
	results := make([]error, 12)
	var wg sync.WaitGroup
	submit := func(i int, run history.Run, b *history.Batch) {
		wg.Go(func() { results[i] = l.Log(context.Background(), run, b) })
	}
	submit(0, runB, batch(metric("first", 1, 1, 1)))
	<-entered // the commit of the first one is under way: the others gather
	for i := 1; i < len(results); i++ {
		switch i % 3 {
		case 0:
			submit(i, runA, &history.Batch{Params: []history.Text{{"lr", "2"}}})
		case 1:
			submit(i, runB, batch(metric("loss", int64(i), 1, 1)))
		case 2:
			submit(i, runC, batch(metric("new", int64(i), 1, 1)))
		}
	}
	for l.Queued() < len(results)-1 {
		time.Sleep(time.Millisecond)
	}
	l.keys.Forget(runC.WorkspaceUID) // its key is no longer in force
	close(release)
	wg.Wait()
	for i, err := range results {
		switch {
		case i == 0 || i%3 == 1:
			if err != nil {
				t.Errorf("batch %d: %v", i, err)
			}
		case i%3 == 0:
			want(t, err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
		default:
			want(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
		}
	}
	if n := len(l.history(runB, "loss")); n != 4 {
		t.Errorf("%d points", n)
	}
	if n := len(l.history(runC, "new")); n != 0 {
		t.Errorf("%d points of the workspace without a key", n)
	}
}

func TestNothingIsAcknowledgedThatIsNotStored(t *testing.T) {
	config := sqldbtest.SQLite(t, sets()...)
	var fail atomic.Int64
	config.Finish = func(_ context.Context, commit func() error) error {
		switch fail.Load() {
		case 1:
			return fault.Unavailable("not now")
		case 2: // committed, and the result is lost
			_ = commit()
			return fault.Unavailable("nobody knows")
		}
		return commit()
	}
	l := newLab(t, sqldbtest.OpenConfig(t, config))
	l.log(runA, batch(metric("other", 1, 1, 1)))
	for how := range int64(2) {
		b := &history.Batch{ID: fmt.Sprint(how), Metrics: []history.Metric{metric("loss", how, 1, 1)}}
		fail.Store(how + 1)
		want(t, l.Log(t.Context(), runA, b), codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
		fail.Store(0)
		if n := int64(len(l.history(runA, "loss"))); n != 2*how {
			t.Errorf("%d points after failure %d", n, how)
		}
		l.log(runA, b)
	}
	if n := len(l.history(runA, "loss")); n != 2 {
		t.Errorf("%d points, want each once", n)
	}
}
