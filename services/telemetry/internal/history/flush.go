package history

import (
	"context"
	"time"

	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history/internal/store/db"
)

// flush writes everything that the batches have changed.
func (w *work) flush(ctx context.Context) error {
	for _, run := range w.runs {
		if !run.dirty {
			continue
		}
		run.row.Rev++
		for id, key := range run.keys {
			if key.dirty {
				if err := w.flushKey(ctx, run, id, key); err != nil {
					return err
				}
			}
		}
		for id, text := range run.texts {
			if !text.dirty {
				continue
			}
			sealed, err := run.box.sealText(id.kind, id.mac[:], text.Text)
			if err != nil {
				return err
			}
			if err := w.q.PutText(ctx, db.PutTextParams{RunUID: run.UID, Kind: int64(id.kind), KeyMac: id.mac[:], Sealed: sealed}); err != nil {
				return err
			}
		}
		for id, content := range run.batch {
			if err := w.q.PutBatch(ctx, db.PutBatchParams{RunUID: run.UID, BatchMac: id[:], ContentMac: content, CreateTime: w.now}); err != nil {
				return err
			}
		}
		if err := w.q.PutRun(ctx, db.PutRunParams{
			RunUID: run.UID, WorkspaceUID: run.WorkspaceUID, Rev: run.row.Rev, Keys: run.row.Keys, Texts: run.row.Texts,
			TextBytes: run.row.TextBytes, CreateTime: w.now,
		}); err != nil {
			return err
		}
	}
	return nil
}

// flushKey appends a metric's new points to its chunks and writes its latest point.
func (w *work) flushKey(ctx context.Context, run *runWork, id mac, key *keyWork) error {
	points, err := w.tail(ctx, run, id, key)
	if err != nil {
		return err
	}
	points = append(points, key.points...)
	for len(points) > 0 {
		n := min(len(points), ChunkPoints)
		if err := w.putChunk(ctx, run, id, key.row.ChunkSeq, points[:n]); err != nil {
			return err
		}
		key.row.ChunkPoints = int64(n)
		if points = points[n:]; len(points) > 0 {
			key.row.ChunkSeq++
			key.row.ChunkTime = w.now
		}
	}
	key.row.Rev = run.row.Rev
	sealed, err := run.box.sealLatest(id[:], key.row, key.latest)
	if err != nil {
		return err
	}
	return w.q.PutLatest(ctx, db.PutLatestParams{
		RunUID: run.UID, KeyMac: id[:], Rev: key.row.Rev, ChunkSeq: key.row.ChunkSeq, ChunkPoints: key.row.ChunkPoints,
		ChunkTime: key.row.ChunkTime, Sealed: sealed,
	})
}

// tail gives the points of the chunk that is to grow, or begins the next one.
func (w *work) tail(ctx context.Context, run *runWork, id mac, key *keyWork) ([]Point, error) {
	age := w.now - key.row.ChunkTime
	if key.row.ChunkSeq > 0 && key.row.ChunkPoints < ChunkPoints && age >= 0 && age < int64(ChunkAge/time.Microsecond) {
		row, err := w.q.GetChunk(ctx, db.GetChunkParams{RunUID: run.UID, KeyMac: id[:], Seq: key.row.ChunkSeq})
		if err != nil {
			return nil, err
		}
		points, err := run.box.openChunk(id[:], chunkRow{key.row.ChunkSeq, row.StepMin, row.StepMax, row.TimeMin, row.TimeMax, row.Points, row.Sealed})
		// What is damaged is left as it is, for whoever looks into it; new points go elsewhere.
		if err == nil && row.Points == key.row.ChunkPoints {
			return points, nil
		}
	}
	key.row.ChunkSeq++
	key.row.ChunkTime = w.now
	return nil, nil
}

func (w *work) putChunk(ctx context.Context, run *runWork, id mac, seq int64, points []Point) error {
	s := spanOf(points)
	row := chunkRow{seq: seq, stepMin: s.stepMin, stepMax: s.stepMax, timeMin: s.timeMin, timeMax: s.timeMax, points: int64(len(points))}
	sealed, err := run.box.sealChunk(id[:], row, points)
	if err != nil {
		return err
	}
	return w.q.PutChunk(ctx, db.PutChunkParams{
		RunUID: run.UID, KeyMac: id[:], Seq: seq, StepMin: s.stepMin, StepMax: s.stepMax, TimeMin: s.timeMin, TimeMax: s.timeMax,
		Points: row.points, Sealed: sealed,
	})
}
