package history_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history"
)

// TestMain makes the properties' usual number of cases small enough for every change; -rapid.checks takes more.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// TestPagesAreTheSortedHistory compares pages with a sorted slice, for points in any order and any range.
func TestPagesAreTheSortedHistory(t *testing.T) {
	t.Parallel()
	l := openLab(t)
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		run := history.Run{UID: fmt.Sprintf("run_%d", runs), WorkspaceUID: "ws_one"}
		spread := rapid.SampledFrom([]int64{0, 3, 1000}).Draw(rt, "spread")
		n := rapid.SampledFrom([]int{0, 1, 30, 400, 2500}).Draw(rt, "n")
		seed := rapid.Uint64().Draw(rt, "seed")
		draw := func() int64 { // a cheap source, for many points
			seed = seed*6364136223846793005 + 1442695040888963407
			return int64(seed>>33) % (spread + 1)
		}
		var all []history.Point
		var ms []history.Metric
		for i := range n {
			m := metric("loss", draw()-spread/2, draw(), float64(i))
			all = append(all, m.Point)
			if ms = append(ms, m); len(ms) == 1000 || i == n-1 || draw() == spread && spread > 0 && len(ms) > 200 {
				l.log(run, batch(ms...))
				ms = nil
				if draw()%2 == 0 {
					l.clock.Add(history.ChunkAge.Microseconds())
				}
			}
		}
		r := history.Everything()
		if rapid.Bool().Draw(rt, "by step") {
			r.FirstStep, r.LastStep = draw()-spread/2, draw()
		}
		if rapid.Bool().Draw(rt, "by time") {
			r.FirstTime, r.LastTime = draw(), draw()
		}
		var want []history.Point
		for _, p := range all {
			if p.Step >= r.FirstStep && p.Step <= r.LastStep && p.Time >= r.FirstTime && p.Time <= r.LastTime {
				want = append(want, p)
			}
		}
		// Of equal step and time, in the order of arrival, which the value tells here.
		slices.SortFunc(want, history.Point.Compare)
		size := rapid.SampledFrom([]int{1, 7, 100, 1024, 50_000}).Draw(rt, "page")
		if size < 100 && len(want) > 400 {
			size = 100
		}
		var got []history.Point
		var after *history.Place
		for {
			points, next, err := l.History(t.Context(), run, "loss", r, after, size)
			if err != nil {
				rt.Fatal(err)
			}
			if len(points) > size || next != nil && len(points) < size {
				rt.Fatalf("a page of %d points, asked for %d", len(points), size)
			}
			got = append(got, points...)
			if after = next; after == nil {
				break
			}
		}
		if !same(got, want) {
			rt.Fatalf("got %d points, want %d: %v, %v", len(got), len(want), got, want)
		}
	})
}

// TestWatchMissesAndDoublesNothing has writers whose connection breaks before or after their batch is stored and who send it again, as
// another process too, and watches that begin and end at any time. Every watch sees every point once; so does the history (H5).
func TestWatchMissesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		l := openLab(t)
		defer func() {
			l.all.Close()
			if err := l.db.Close(); err != nil {
				rt.Error(err)
			}
		}()
		writers := rapid.IntRange(1, 4).Draw(rt, "writers")
		batches := rapid.IntRange(1, 12).Draw(rt, "batches")
		size := rapid.SampledFrom([]int{1, 3, 300, 1000}).Draw(rt, "size")
		keys := rapid.IntRange(1, 150).Draw(rt, "keys")
		breaks := rapid.SliceOfN(rapid.IntRange(0, 3), writers*batches, writers*batches).Draw(rt, "breaks")
		total := writers * batches * size
		if total > 6000 {
			size, total = 300, writers*batches*300
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()

		var wg sync.WaitGroup
		seen := func(metrics []history.Metric, counts map[string]int) {
			for _, m := range metrics {
				counts[fmt.Sprintf("%s %d", m.Key, m.Step)]++
			}
		}
		watch := func() {
			w, err := l.Watch(ctx, runA)
			if err != nil {
				rt.Error(err)
				return
			}
			defer w.Close()
			counts := map[string]int{}
			for n := 0; n < total; {
				metrics, err := w.Next(ctx, nil)
				if err != nil {
					rt.Errorf("watch: %v after %d of %d points", err, n, total)
					return
				}
				n += len(metrics)
				seen(metrics, counts)
			}
			for point, n := range counts {
				if n != 1 {
					rt.Errorf("%s was given %d times", point, n)
				}
			}
			if len(counts) != total {
				rt.Errorf("%d points, want %d", len(counts), total)
			}
		}
		wg.Go(watch) // from the beginning
		for w := range writers {
			wg.Go(func() {
				for b := range batches {
					var ms []history.Metric
					for i := range size {
						step := int64((w*batches+b)*size + i)
						ms = append(ms, metric(fmt.Sprintf("m%d", step%int64(keys)), step, int64(b), math.NaN()))
					}
					send := &history.Batch{ID: fmt.Sprintf("w%d-%d", w, b), Metrics: ms}
					switch breaks[w*batches+b] {
					case 1: // broken before it was sent, or while it was on its way
						broken, cancel := context.WithCancel(ctx)
						cancel()
						_ = l.Log(broken, runA, send)
					case 2: // stored, and the answer was lost
						if err := l.Log(ctx, runA, send); err != nil {
							rt.Error(err)
						}
					case 3:
						l.clock.Add(history.ChunkAge.Microseconds() / 2)
					}
					if err := l.Log(ctx, runA, send); err != nil {
						rt.Error(err)
					}
					if w == 0 && b == batches/2 {
						wg.Go(watch) // from the middle
					}
				}
			})
		}
		wg.Wait()
		watch() // from the end
		counts := map[string]int{}
		for k := range keys {
			key := fmt.Sprintf("m%d", k)
			for _, p := range l.history(runA, key) {
				seen([]history.Metric{{Key: key, Point: p}}, counts)
			}
		}
		for point, n := range counts {
			if n != 1 {
				rt.Errorf("%s is stored %d times", point, n)
			}
		}
		if len(counts) != total {
			rt.Errorf("%d points are stored, want %d", len(counts), total)
		}
	})
}

func TestWatchEndsWithItsContext(t *testing.T) {
	l := openLab(t)
	w, err := l.Watch(t.Context(), runA)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Next(ctx, nil); !errors.Is(err, context.Canceled) || fault.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
}

// FuzzDecodePoints feeds the decoder what no encoder wrote.
func FuzzDecodePoints(f *testing.F) {
	f.Add([]byte{1}, int64(1))
	f.Add(history.EncodePoints([]history.Point{{1, 2, 3}, {math.MinInt64, math.MaxInt64, math.NaN()}}), int64(2))
	f.Fuzz(func(t *testing.T, b []byte, n int64) {
		points, err := history.DecodePoints(b, n)
		if err == nil && int64(len(points)) != n {
			t.Errorf("%d points, want %d", len(points), n)
		}
	})
}

// BenchmarkLog is the time per point, from Log to the answer, at 10^5 points and more.
func BenchmarkLog(b *testing.B) {
	for _, c := range []struct{ writers, size, keys int }{{1, 1, 1}, {1, 100, 10}, {1, 1000, 10}, {16, 10, 10}, {16, 1000, 10}} {
		b.Run(fmt.Sprintf("writers=%d/batch=%d", c.writers, c.size), func(b *testing.B) {
			l := newLab(b, sqldbtest.Open(b, sets()...))
			var wg sync.WaitGroup
			b.ResetTimer()
			for w := range c.writers {
				wg.Go(func() {
					run := history.Run{UID: fmt.Sprintf("run_%d", w), WorkspaceUID: "ws_one"}
					for i := 0; i < b.N/c.writers; {
						var ms []history.Metric
						for range min(c.size, b.N/c.writers-i) {
							ms = append(ms, metric(fmt.Sprintf("m%d", i%c.keys), int64(i/c.keys), int64(i), float64(i)))
							i++
						}
						l.clock.Store(time.Now().UnixMicro())
						if err := l.Log(b.Context(), run, &history.Batch{ID: fmt.Sprint(i), Metrics: ms}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "points/s")
		})
	}
}

// BenchmarkHistory reads a page of 1,000 points out of 10^5.
func BenchmarkHistory(b *testing.B) {
	l := newLab(b, sqldbtest.Open(b, sets()...))
	for i := range 100 {
		var ms []history.Metric
		for j := range 1000 {
			ms = append(ms, metric("loss", int64(i*1000+j), int64(i*1000+j), 1))
		}
		l.log(runA, batch(ms...))
	}
	b.ResetTimer()
	for i := range b.N {
		after := &history.Place{Step: int64(i%99) * 1000, Time: math.MaxInt64}
		if points, _, err := l.History(b.Context(), runA, "loss", history.Everything(), after, 1000); err != nil || len(points) != 1000 {
			b.Fatalf("%d points: %v", len(points), err)
		}
	}
}
