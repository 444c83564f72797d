package requestlog

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// maxBatch and maxBatchBytes bound a delivery.
	maxBatch      = 1000
	maxBatchBytes = 4 << 20
	// deliverEvery is how long records gather, unless there are enough for a batch before.
	deliverEvery   = 200 * time.Millisecond
	deliverTimeout = 30 * time.Second
	// saveEvery bounds how often the count of dropped records is written.
	saveEvery = 2 * time.Second
	// Waits for a telemetry that fails double from the first to the last.
	firstRetry, lastRetry = 50 * time.Millisecond, 10 * time.Second
)

// cursor is where the spool goes on: with the record seq, which stands at offset in segment; "" where that is not known.
type cursor struct {
	seq     int64
	segment string
	offset  int64
}

// Relay delivers until ctx ends, and returns its error. There is one Relay at a time.
func (l *Log) Relay(ctx context.Context) error {
	retry := firstRetry
	asked := l.cfg.Now()
	for {
		if now := l.cfg.Now(); now.Sub(asked) >= keyEvery || now.Before(asked) {
			asked = now
			l.renewKey(ctx)
		}
		more, err := l.deliver(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			l.cfg.Logger.WarnContext(ctx, "the log of requests could not be delivered; it waits in its spool", "error", err, "retry", retry)
			pause(ctx, nil, retry/2+rand.N(retry/2))
			retry = min(2*retry, lastRetry)
		case more:
			retry = firstRetry
		default:
			retry = firstRetry
			pause(ctx, l.wake, deliverEvery)
		}
	}
}

// pause waits for a wake, for d or for the end of ctx.
func pause(ctx context.Context, wake <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-t.C:
	}
}

// renewKey follows the keyring; where it gives none, the key that is there is used on.
func (l *Log) renewKey(ctx context.Context) {
	key, err := l.cfg.Own.Key(ctx, envelope.ServiceOwner)
	if err != nil {
		if ctx.Err() == nil {
			l.cfg.Logger.WarnContext(ctx, "the key of the request log could not be renewed", "error", err)
		}
		return
	}
	l.key.Store(key)
}

// deliver sends one batch, and reports whether there is likely more.
func (l *Log) deliver(ctx context.Context) (more bool, err error) {
	if !l.met {
		if err := l.meet(ctx); err != nil {
			return false, err
		}
	}
	l.waiting.Store(0)
	b, err := l.gather(ctx)
	if err != nil {
		return false, err
	}
	if len(b.requests) > 0 || l.dropped.Load() != l.told {
		if err := l.send(ctx, b.requests); err != nil {
			return false, err
		}
	}
	if b.lost > 0 {
		l.cfg.Logger.ErrorContext(ctx, "records of the request log are damaged or missing; they are counted as dropped", "records", b.lost)
		l.drop(b.lost)
		b.after.segment = "" // it is looked for anew
	}
	l.acked, l.place = b.after.seq-1, b.after
	if l.dropped.Load() != l.state.Dropped && l.cfg.Now().Sub(l.saved) >= saveEvery {
		l.saveState(ctx)
	}
	if err := l.remove(ctx, b.lost > 0); err != nil {
		return false, err
	}
	return b.full || b.lost > 0, nil
}

// meet asks telemetry how far it is, once. If it has more than was ever spooled, the spool is an older state of itself.
func (l *Log) meet(ctx context.Context) error {
	// Its own count is not told yet: what comes back is what earlier processes have told.
	res, err := l.ingest(ctx, nil, 0)
	if err != nil {
		return err
	}
	if stored := res.GetStoredSeq(); stored > l.opened {
		l.cfg.Logger.WarnContext(ctx, "telemetry has more of the request log than there is; the log goes on under a new source", "stored", stored, "spooled", l.opened)
		fresh := newState(l.cfg.Instance)
		l.state.Source = fresh.Source
		l.saveState(ctx)
	} else {
		l.acked = stored
		// What an earlier process could not write down any more, it may have told.
		if more := res.GetDropped() - l.state.Dropped; more > 0 {
			l.dropped.Add(more)
		}
	}
	l.met = true
	return nil
}

// send delivers a batch. One that telemetry does not take is halved, until what is wrong with it stands alone: that is dropped.
func (l *Log) send(ctx context.Context, batch []*telemetryv1.SequencedRequest) error {
	_, err := l.ingest(ctx, batch, l.dropped.Load())
	switch {
	case err == nil:
		return nil
	case len(batch) == 0 || !fault.Is(err, codes.InvalidArgument) || ctx.Err() != nil:
		return err
	case len(batch) == 1:
		l.cfg.Logger.ErrorContext(ctx, "telemetry does not take a record of the request log; it is dropped", "error", err)
		l.drop(1)
		return nil
	}
	half := len(batch) / 2
	if err := l.send(ctx, batch[:half]); err != nil {
		return err
	}
	return l.send(ctx, batch[half:])
}

func (l *Log) ingest(ctx context.Context, batch []*telemetryv1.SequencedRequest, dropped int64) (*telemetryv1.IngestRequestsResponse, error) {
	short, cancel := context.WithTimeout(ctx, deliverTimeout)
	defer cancel()
	res, err := l.cfg.Client.IngestRequests(short, &telemetryv1.IngestRequestsRequest{Source: l.state.Source, Requests: batch, Dropped: dropped})
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	l.told = dropped
	if n := len(batch); n > 0 && res.GetStoredSeq() < batch[n-1].GetSeq() {
		return nil, fault.Internal(nil, "telemetry answered, and has not stored what it was sent")
	}
	return res, nil
}

// batch is what is delivered at once.
type batch struct {
	requests []*telemetryv1.SequencedRequest
	bytes    int
	full     bool
	lost     int64  // records before after that cannot be delivered
	after    cursor // where the next batch begins
}

// gather reads the next batch.
func (l *Log) gather(ctx context.Context) (*batch, error) {
	segments, err := l.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	b := &batch{after: l.place}
	at := &b.after
	at.seq = max(at.seq, l.acked+1)
	for i, s := range segments {
		until := s.end()
		if i+1 < len(segments) { // what stood between the end of this one and the beginning of the next is missing
			until = max(until, segments[i+1].first)
		}
		if until <= at.seq {
			continue
		}
		if s.first > at.seq {
			if l.acked > 0 { // a segment is missing; else this is where the source begins
				b.lost += s.first - at.seq
			}
			at.seq = s.first
		}
		if err := l.read(s, b); err != nil || b.full {
			return b, err
		}
		b.lost += until - at.seq
		at.seq = until
	}
	return b, nil
}

// read takes the records of a segment from where the batch has come to, until the batch is full or nothing more can be read.
func (l *Log) read(s segment, b *batch) error {
	file, err := os.Open(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errDir(l.cfg.Dir, err)
	}
	defer func() { _ = file.Close() }()
	at := &b.after
	seq, r := s.first, newFrames(file, segmentHeader, s.size)
	if at.segment == s.id {
		seq, r = at.seq, newFrames(file, at.offset, s.size)
	}
	for ; seq < s.end(); seq++ {
		if b.full = len(b.requests) >= maxBatch || b.bytes >= maxBatchBytes; b.full {
			return nil
		}
		sealed, err := r.next()
		if errors.Is(err, errNoFrame) {
			return nil
		}
		if err != nil {
			return errDir(l.cfg.Dir, err)
		}
		if seq < at.seq {
			continue // telemetry has it
		}
		if req := l.open(s, seq, sealed); req != nil {
			b.requests = append(b.requests, &telemetryv1.SequencedRequest{Seq: seq, Request: req})
			b.bytes += len(sealed)
		} else {
			b.lost++
		}
		*at = cursor{seq: seq + 1, segment: s.id, offset: r.offset()}
	}
	return nil
}

// open reads one record; nil for one that is damaged.
func (l *Log) open(s segment, seq int64, sealed []byte) *telemetryv1.ScoringRequest {
	plain, err := l.key.Load().Open(s.aad(seq), sealed)
	if err != nil {
		return nil
	}
	req := new(telemetryv1.ScoringRequest)
	if err := proto.Unmarshal(plain, req); err != nil {
		return nil
	}
	return req
}

// snapshot is what there is of the segments now.
func (l *Log) snapshot(ctx context.Context) ([]segment, error) {
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.leave()
	out := make([]segment, len(l.segments))
	for i, s := range l.segments {
		out[i] = *s
	}
	return out, nil
}

// remove takes away the segments of which telemetry has everything. The last one stays: the next number is known by it. After a damage
// nothing more is written to the one that may have it.
func (l *Log) remove(ctx context.Context, damaged bool) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.leave()
	if damaged && l.file != nil && l.last().count > 0 {
		_ = l.rotate() // else it is tried when the segment is full
	}
	for len(l.segments) > 1 && l.segments[0].end() <= l.acked+1 {
		if err := os.Remove(l.segments[0].path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return errDir(l.cfg.Dir, err)
		}
		l.bytes -= l.segments[0].size
		l.segments = l.segments[1:]
	}
	return nil
}
