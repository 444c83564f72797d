package history

import (
	"container/heap"
	"context"
	"database/sql"
	"errors"
	"math"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history/internal/store/db"
)

// Data is what a run has, in the order of names.
type Data struct {
	Latest []Metric
	Params []Text
	Tags   []Text
}

// Data reads the latest points, the parameters and the tags of a run. A run that has none gives none.
func (s *Store) Data(ctx context.Context, run Run) (Data, error) {
	box, err := s.key(ctx, run)
	if err != nil {
		return Data{}, err
	}
	var d Data
	err = s.read(ctx, run, func(ctx context.Context, q *db.Queries) error {
		d, err = dataOf(ctx, q, box)
		return err
	})
	return d, err
}

// EachData gives to fn what each of some runs of a workspace has, all of one snapshot, until it returns false. What runs of another
// workspace have is passed over.
func (s *Store) EachData(ctx context.Context, workspaceUID string, uids []string, fn func(uid string, d Data) bool) error {
	one, err := s.key(ctx, Run{WorkspaceUID: workspaceUID})
	if err != nil {
		return err
	}
	return s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		for _, uid := range uids {
			box := &box{one.key, Run{UID: uid, WorkspaceUID: workspaceUID}}
			there, err := owned(ctx, q, box.run)
			if fault.Is(err, codes.NotFound) {
				there = false
			} else if err != nil {
				return err
			}
			var d Data
			if there {
				if d, err = dataOf(ctx, q, box); err != nil {
					return err
				}
			}
			if !fn(uid, d) {
				return nil
			}
		}
		return nil
	})
}

func dataOf(ctx context.Context, q *db.Queries, box *box) (Data, error) {
	var d Data
	latest, err := q.ListLatest(ctx, db.ListLatestParams{RunUID: box.run.UID, AfterRev: -1, AfterMac: []byte{}, Most: math.MaxInt32})
	if err != nil {
		return d, err
	}
	for _, row := range latest {
		m, err := box.openLatest(row.KeyMac, latestOf(row))
		if err != nil {
			return d, err
		}
		d.Latest = append(d.Latest, m)
	}
	texts, err := q.ListTexts(ctx, box.run.UID)
	if err != nil {
		return d, err
	}
	for _, row := range texts {
		t, err := box.openText(textKind(row.Kind), row.KeyMac, row.Sealed)
		switch {
		case err != nil:
			return d, err
		case textKind(row.Kind) == kindParam:
			d.Params = append(d.Params, t)
		default:
			d.Tags = append(d.Tags, t)
		}
	}
	slices.SortFunc(d.Latest, func(a, b Metric) int { return strings.Compare(a.Key, b.Key) })
	for _, texts := range [][]Text{d.Params, d.Tags} {
		slices.SortFunc(texts, func(a, b Text) int { return strings.Compare(a.Key, b.Key) })
	}
	return d, nil
}

// read runs fn on a snapshot, unless the run's rows are another workspace's; a run without rows is fine.
func (s *Store) read(ctx context.Context, run Run, fn func(ctx context.Context, q *db.Queries) error) error {
	return s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		there, err := owned(ctx, q, run)
		if err != nil || !there {
			return err
		}
		return fn(ctx, q)
	})
}

// owned reports whether a run has rows, and refuses another workspace's.
func owned(ctx context.Context, q *db.Queries, run Run) (bool, error) {
	row, err := q.GetRun(ctx, run.UID)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	case err != nil:
		return false, err
	case row.WorkspaceUID != run.WorkspaceUID:
		return false, errNoRun()
	}
	return true, nil
}

// Range selects points; bounds are inclusive. The zero value selects those of step and time 0: use Everything.
type Range struct{ FirstStep, LastStep, FirstTime, LastTime int64 }

// Everything selects all points.
func Everything() Range {
	return Range{math.MinInt64, math.MaxInt64, math.MinInt64, math.MaxInt64}
}

func (r Range) holds(p Point) bool {
	return r.FirstStep <= p.Step && p.Step <= r.LastStep && r.FirstTime <= p.Time && p.Time <= r.LastTime
}

// Place is where a point stands. In the order of places, points are sorted by step, then by time, then by arrival.
type Place struct{ Step, Time, Chunk, Index int64 }

func (p Place) compare(o Place) int {
	return slices.Compare([]int64{p.Step, p.Time, p.Chunk, p.Index}, []int64{o.Step, o.Time, o.Chunk, o.Index})
}

// located is a point with its place.
type located struct {
	Place
	value float64
}

// largestFirst is a heap of the smallest points seen so far, the largest of them on top.
type largestFirst []located

func (h largestFirst) Len() int           { return len(h) }
func (h largestFirst) Less(i, j int) bool { return h[i].compare(h[j].Place) > 0 }
func (h largestFirst) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *largestFirst) Push(x any)        { *h = append(*h, x.(located)) }
func (h *largestFirst) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// chunksAtOnce is how many chunks one query of History reads.
const chunksAtOnce = 64

// History reads at most most points of one metric that come after a place (nil for the beginning), in the order of places, and the
// place of the last of them if there are more. Points that arrive later and stand before that place are not in a later page.
// Memory is bounded by most, whatever the order in which the points arrived.
func (s *Store) History(ctx context.Context, run Run, key string, r Range, after *Place, most int) ([]Point, *Place, error) {
	box, err := s.key(ctx, run)
	if err != nil {
		return nil, nil, err
	}
	if after != nil {
		r.FirstStep = max(r.FirstStep, after.Step)
	}
	id := box.keyMAC(key)
	var best largestFirst
	err = s.read(ctx, run, func(ctx context.Context, q *db.Queries) error {
		arg := db.ListChunksParams{
			RunUID: run.UID, KeyMac: id[:], FirstStep: r.FirstStep, LastStep: r.LastStep, FirstTime: r.FirstTime, LastTime: r.LastTime,
			AfterStep: math.MinInt64, AfterTime: math.MinInt64, AfterSeq: -1, Most: chunksAtOnce,
		}
		for {
			rows, err := q.ListChunks(ctx, arg)
			if err != nil {
				return err
			}
			for _, row := range rows {
				// Chunks come in the order of their smallest possible point.
				if len(best) > most && (Place{row.StepMin, row.TimeMin, math.MinInt64, 0}).compare(best[0].Place) > 0 {
					return nil
				}
				points, err := box.openChunk(id[:], chunkRow{row.Seq, row.StepMin, row.StepMax, row.TimeMin, row.TimeMax, row.Points, row.Sealed})
				if err != nil {
					return err
				}
				best.offer(points, row.Seq, r, after, most+1)
			}
			if len(rows) < chunksAtOnce {
				return nil
			}
			last := rows[len(rows)-1]
			arg.AfterStep, arg.AfterTime, arg.AfterSeq = last.StepMin, last.TimeMin, last.Seq
		}
	})
	if err != nil {
		return nil, nil, err
	}
	slices.SortFunc(best, func(a, b located) int { return a.compare(b.Place) })
	var next *Place
	if len(best) > most {
		best = best[:most]
		next = &best[most-1].Place
	}
	points := make([]Point, len(best))
	for i, l := range best {
		points[i] = Point{l.Step, l.Time, l.value}
	}
	return points, next, nil
}

// offer keeps the n smallest of what is in the heap and those points of a chunk that are asked for.
func (h *largestFirst) offer(points []Point, chunk int64, r Range, after *Place, n int) {
	for i, p := range points {
		l := located{Place{p.Step, p.Time, chunk, int64(i)}, p.Value}
		switch {
		case !r.holds(p), after != nil && l.compare(*after) <= 0:
		case len(*h) < n:
			heap.Push(h, l)
		case l.compare((*h)[0].Place) < 0:
			(*h)[0] = l
			heap.Fix(h, 0)
		}
	}
}
