package history_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history"
)

func TestClosedStore(t *testing.T) {
	l := openLab(t)
	w, err := l.Watch(t.Context(), runA)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := w.Next(t.Context(), nil)
		for err == nil { // what was stored before the end comes first
			_, err = w.Next(t.Context(), nil)
		}
		want(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
	})
	for range 50 {
		wg.Go(func() {
			if err := l.Log(t.Context(), runA, batch(metric("loss", 1, 1, 1))); err != nil {
				want(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
			}
		})
	}
	l.all.Close()
	wg.Wait()
	want(t, l.Log(t.Context(), runA, batch(metric("loss", 1, 1, 1))), codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
}

// TestPurge: what is gone stays gone, and nobody else's goes with it (H1, goal 42).
func TestPurge(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		l := newLab(t, db)
		full := &history.Batch{ID: "b", Metrics: []history.Metric{metric("loss", 1, 1, 1)}, Params: []history.Text{{"p", "v"}}, Tags: []history.Text{{"t", "v"}}}
		for i := range 20 {
			l.log(history.Run{UID: fmt.Sprintf("run_%d", i), WorkspaceUID: "ws_one"}, full)
		}
		l.log(runC, full)
		for range 2 {
			if err := l.Purge(t.Context(), "ws_one"); err != nil {
				t.Fatal(err)
			}
		}
		for _, table := range []string{"run_data", "metric_latest", "metric_chunk", "run_batch"} {
			if n := l.count("SELECT COUNT(*) FROM " + table); n != 1 {
				t.Errorf("%d rows in %s", n, table)
			}
		}
		if n := l.count("SELECT COUNT(*) FROM run_text"); n != 2 {
			t.Errorf("%d rows in run_text", n)
		}
		want(t, l.Log(t.Context(), runA, full), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
		want(t, l.Log(t.Context(), history.Run{UID: "run_1", WorkspaceUID: "ws_one"}, full), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
		if d := l.data(runC); len(d.Latest) != 1 || len(d.Params) != 1 || len(d.Tags) != 1 {
			t.Errorf("another workspace's data: %+v", d)
		}
	})
}

// TestCiphertext searches the files for what a tenant wrote (D2, goal 31).
func TestCiphertext(t *testing.T) {
	config := sqldbtest.SQLite(t, sets()...)
	l := newLab(t, sqldbtest.OpenConfig(t, config))
	l.log(runA, &history.Batch{
		ID: "canary-batch", Metrics: []history.Metric{metric("canary-metric", 1, 1, 1)},
		Params: []history.Text{{"canary-param", "canary-value"}}, Tags: []history.Text{{"canary-tag", "canary-text"}},
	})
	files, err := filepath.Glob(config.Path + "*")
	if err != nil || len(files) < 2 {
		t.Fatalf("files %v (%v)", files, err)
	}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(content), "canary") {
			t.Errorf("%s holds what a tenant wrote", filepath.Base(name))
		}
		if name == config.Path+"-wal" && !strings.Contains(string(content), "run_a") {
			t.Error("the search would find nothing")
		}
	}
}

// TestTampering changes rows as someone with the database would: what opens is what was stored there (goal 22).
func TestTampering(t *testing.T) {
	setup := func(t *testing.T) *lab {
		l := openLab(t)
		for _, run := range []history.Run{runA, runB} {
			l.log(run, &history.Batch{
				Metrics: []history.Metric{metric("loss", 1, 10, 1), metric("loss", 2, 20, 2), metric("acc", 5, 50, 5), metric("acc", 6, 60, 6)},
				Params:  []history.Text{{"p", "1"}, {"q", "2"}}, Tags: []history.Text{{"p", "3"}},
			})
		}
		return l
	}
	cases := []struct{ name, change string }{
		{"a chunk of another run", "UPDATE metric_chunk SET sealed = (SELECT c.sealed FROM metric_chunk c WHERE c.run_uid = 'run_b' AND c.key_mac = metric_chunk.key_mac) WHERE run_uid = 'run_a'"},
		{"chunks swapped", "UPDATE metric_chunk SET sealed = (SELECT c.sealed FROM metric_chunk c WHERE c.run_uid = metric_chunk.run_uid AND c.key_mac <> metric_chunk.key_mac)"},
		{"the step range", "UPDATE metric_chunk SET step_max = step_max + 1"},
		{"the time range", "UPDATE metric_chunk SET time_min = time_min - 1"},
		{"the number of points", "UPDATE metric_chunk SET points = points - 1"},
		{"a chunk's number", "UPDATE metric_chunk SET seq = seq + 1"},
		{"a bit of a chunk", "UPDATE metric_chunk SET sealed = substr(sealed, 1, 40) || x'5a' || substr(sealed, 42)"},
		{"latest of another run", "UPDATE metric_latest SET sealed = (SELECT c.sealed FROM metric_latest c WHERE c.run_uid = 'run_b' AND c.key_mac = metric_latest.key_mac) WHERE run_uid = 'run_a'"},
		{"latest's rev", "UPDATE metric_latest SET rev = rev + 1"},
		{"latest under another name", "UPDATE metric_latest SET key_mac = randomblob(32)"},
		{"texts swapped", "UPDATE run_text SET sealed = (SELECT c.sealed FROM run_text c WHERE c.run_uid = run_text.run_uid AND c.kind = 1 AND c.key_mac <> run_text.key_mac) WHERE kind = 1"},
		{"a tag as a param", "UPDATE run_text SET kind = 3 - kind"},
		{"a text of another run", "UPDATE run_text SET sealed = (SELECT c.sealed FROM run_text c WHERE c.run_uid = 'run_b' AND c.kind = run_text.kind AND c.key_mac = run_text.key_mac) WHERE run_uid = 'run_a'"},
		{"a chunk removed", "DELETE FROM metric_chunk"},
		{"a run given to another workspace", "UPDATE run_data SET workspace_uid = 'ws_two'"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := setup(t)
			l.exec(c.change)
			_, dataErr := l.Data(t.Context(), runA)
			_, _, historyErr := l.History(t.Context(), runA, "loss", history.Everything(), nil, 10)
			w, err := l.Watch(t.Context(), runA)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, watchErr := w.Next(ctx, nil)
			if dataErr == nil && historyErr == nil && (watchErr == nil || errors.Is(watchErr, context.DeadlineExceeded)) {
				t.Error("nobody noticed")
			}
		})
	}
	// Another workspace does not reach the run by its uid.
	l := setup(t)
	thief := history.Run{UID: "run_a", WorkspaceUID: "ws_two"}
	_, err := l.Data(t.Context(), thief)
	want(t, err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	want(t, l.Log(t.Context(), thief, batch(metric("loss", 1, 1, 1))), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	// An older state of a metric's row, put back, does not open: its rev is bound, and the row's is the newer one.
	l.exec("CREATE TABLE old AS SELECT * FROM metric_latest")
	l.log(runA, batch(metric("loss", 9, 90, 9)))
	l.exec("UPDATE metric_latest SET sealed = (SELECT o.sealed FROM old o WHERE o.run_uid = metric_latest.run_uid AND o.key_mac = metric_latest.key_mac)")
	_, err = l.Data(t.Context(), runA)
	want(t, err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
}
