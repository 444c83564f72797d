package history

import (
	"context"
	"time"

	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history/internal/store/db"
)

const (
	// watchPoints is how many points Next gives at most.
	watchPoints = 1000
	// watchKeys is how many metrics one query takes up.
	watchKeys = 100
	// watchPoll is how often a watch looks without being woken, for what another instance has stored.
	watchPoll = 2 * time.Second
)

// Watch follows the points of a run from the first on. What is stored already and what comes later is found in the same way, from the
// place up to which each metric was given, so nothing is missed or doubled in between, and nothing waits in memory for a slow
// reader. It is not safe for concurrent use.
type Watch struct {
	s     *Store
	run   Run
	box   *box
	wake  <-chan struct{}
	end   func()
	given map[mac]*given
	// Every metric whose row stands at or before (rev, mac) was given up to its end. A row that changes moves behind it.
	rev int64
	mac []byte
}

// given says how far a metric was given: so many points of a chunk, and all chunks before it.
type given struct {
	name          string
	chunk, points int64
}

// Watch begins. It must be closed.
func (s *Store) Watch(ctx context.Context, run Run) (*Watch, error) {
	box, err := s.key(ctx, run)
	if err != nil {
		return nil, err
	}
	w := &Watch{s: s, run: run, box: box, given: make(map[mac]*given), rev: -1, mac: []byte{}}
	w.wake, w.end = s.subscribe(run.UID)
	return w, nil
}

// Close ends the watch.
func (w *Watch) Close() { w.end() }

// Next gives the next points, at least one. It waits until there are some, or ctx ends, or stop or the store is closed.
func (w *Watch) Next(ctx context.Context, stop <-chan struct{}) ([]Metric, error) {
	for {
		metrics, err := w.collect(ctx)
		if err != nil || len(metrics) > 0 {
			return metrics, err
		}
		timer := time.NewTimer(watchPoll)
		select {
		case <-w.wake:
		case <-timer.C:
		case <-ctx.Done():
			err = ctx.Err()
		case <-stop:
			err = errClosing()
		case <-w.s.stop:
			err = errClosing()
		}
		timer.Stop()
		if err != nil {
			return nil, err
		}
	}
}

// collect reads what was not given yet, watchPoints at most.
func (w *Watch) collect(ctx context.Context) (metrics []Metric, err error) {
	err = w.s.read(ctx, w.run, func(ctx context.Context, q *db.Queries) error {
		for {
			rows, err := q.ListLatest(ctx, db.ListLatestParams{RunUID: w.run.UID, AfterRev: w.rev, AfterMac: w.mac, Most: watchKeys})
			if err != nil || len(rows) == 0 {
				return err
			}
			for _, row := range rows {
				more, err := w.follow(ctx, q, row, watchPoints-len(metrics))
				if err != nil {
					return err
				}
				if metrics = append(metrics, more...); len(metrics) == watchPoints {
					return nil // perhaps not all of this metric
				}
				w.rev, w.mac = row.Rev, row.KeyMac
			}
		}
	})
	return metrics, err
}

// follow gives the next points of one metric, most at most.
func (w *Watch) follow(ctx context.Context, q *db.Queries, row db.ListLatestRow, most int) ([]Metric, error) {
	id := mac(row.KeyMac)
	g := w.given[id]
	if g == nil {
		latest, err := w.box.openLatest(row.KeyMac, latestOf(row))
		if err != nil {
			return nil, err
		}
		g = &given{name: latest.Key, chunk: 1}
		w.given[id] = g
	}
	var metrics []Metric
	for len(metrics) < most && (g.chunk < row.ChunkSeq || g.points < row.ChunkPoints) {
		chunk, err := q.GetChunk(ctx, db.GetChunkParams{RunUID: w.run.UID, KeyMac: row.KeyMac, Seq: g.chunk})
		if err != nil {
			return nil, err
		}
		points, err := w.box.openChunk(row.KeyMac, chunkRow{g.chunk, chunk.StepMin, chunk.StepMax, chunk.TimeMin, chunk.TimeMax, chunk.Points, chunk.Sealed})
		if err != nil {
			return nil, err
		}
		if g.points > int64(len(points)) || g.chunk == row.ChunkSeq && row.ChunkPoints != int64(len(points)) {
			return nil, errDamaged("the history of a metric")
		}
		for _, p := range points[g.points:] {
			if len(metrics) == most {
				return metrics, nil
			}
			metrics = append(metrics, Metric{g.name, p})
			g.points++
		}
		if g.chunk < row.ChunkSeq {
			g.chunk, g.points = g.chunk+1, 0
		}
	}
	return metrics, nil
}
