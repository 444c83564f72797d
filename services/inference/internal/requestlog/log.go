package requestlog

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
)

// Defaults of Config.
const (
	DefaultSegmentBytes = 4 << 20
	DefaultMaxBytes     = 256 << 20
)

// turnWait is how long Append waits for another's write before its record is dropped.
const turnWait = 20 * time.Millisecond

// keyEvery is how often the keyring is asked whether the key is still in force.
const keyEvery = time.Minute

// Client is the part of telemetry that takes what is logged.
type Client interface {
	IngestRequests(ctx context.Context, in *telemetryv1.IngestRequestsRequest, opts ...grpc.CallOption) (*telemetryv1.IngestRequestsResponse, error)
}

// Config of a Log. Dir, Own and Client are required.
type Config struct {
	// Dir is the spool's folder; it is made.
	Dir string
	// Own has the key that records are sealed under: the service's own.
	Own *envelope.Keyring
	// Client delivers to telemetry.
	Client Client
	// Instance is the name of this instance of inference, for the source's name.
	Instance string
	// Now gives records without a time theirs; nil means time.Now.
	Now func() time.Time
	// Logger takes what an operator should know; nil discards.
	Logger *slog.Logger
	// OnDropped is told how many more records were dropped, for a counter; it must not block. nil tells nobody.
	OnDropped func(n int64)
	// SegmentBytes ends a segment, MaxBytes bounds all of them; 0 means the defaults.
	SegmentBytes, MaxBytes int64
}

// Log is safe for concurrent use.
type Log struct {
	cfg  Config
	key  atomic.Pointer[envelope.Key]
	bufs sync.Pool
	lock *os.File
	wake chan struct{}
	// waiting is about how many records Relay has not looked at.
	waiting atomic.Int64
	dropped atomic.Int64

	// gate is held by whoever looks at or changes what follows. A channel, since one can stop waiting for it.
	gate     chan struct{}
	closed   bool
	segments []*segment // oldest first; the last one may be open
	file     *os.File   // of the last segment; nil where there is none to write to
	next     int64      // the number of the next record
	bytes    int64      // of all segments
	frame    []byte

	// Relay's alone.
	state  state
	opened int64 // the last number that was there when the log was opened
	saved  time.Time
	told   int64 // how many dropped records telemetry knows of
	met    bool  // telemetry has said how far it is
	acked  int64 // telemetry has everything up to here
	place  cursor
}

// Open opens the spool and goes on where it ended. A full disk does not keep it from being opened: records are dropped until there is space.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if cfg.Dir == "" || cfg.Own == nil || cfg.Client == nil {
		return nil, errors.New("requestlog: Dir, Own and Client are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.SegmentBytes <= 0 {
		cfg.SegmentBytes = DefaultSegmentBytes
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	l := &Log{cfg: cfg, wake: make(chan struct{}, 1), gate: make(chan struct{}, 1)}
	l.bufs.New = func() any { return new([]byte) }
	key, err := cfg.Own.Key(ctx, envelope.ServiceOwner)
	if err != nil {
		return nil, err
	}
	l.key.Store(key)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, errDir(cfg.Dir, err)
	}
	if l.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := l.load(ctx); err != nil {
		_ = l.lock.Close()
		return nil, err
	}
	return l, nil
}

// load reads what an earlier process has left.
func (l *Log) load(ctx context.Context) error {
	found, err := findSegments(l.cfg.Dir)
	if err != nil {
		return err
	}
	l.state, err = readState(l.cfg.Dir)
	switch {
	case err == nil && (len(found) > 0 || l.state.Last == 0):
	case err == nil || errors.Is(err, fs.ErrNotExist):
		// The first start; or segments are missing, and nobody can say which number comes next.
		l.state = newState(l.cfg.Instance)
	default:
		l.cfg.Logger.WarnContext(ctx, "it cannot be read how far the log of requests was delivered; what is spooled is delivered under a new source", "error", err)
		l.state = newState(l.cfg.Instance)
	}
	l.next = 1
	for _, s := range found {
		if err := s.scan(); err != nil {
			return err
		}
		l.next = max(l.next, s.end())
		l.bytes += s.size
		l.segments = append(l.segments, s)
	}
	l.opened = l.next - 1
	l.dropped.Store(l.state.Dropped)
	if err := l.rotate(); err != nil {
		l.cfg.Logger.WarnContext(ctx, "the log of requests cannot be written to; requests are answered, and their records dropped", "error", err)
	}
	l.state.Last = l.opened
	l.saveState(ctx)
	return nil
}

// Append puts a record on its way, and does not keep r, whose texts it may cut. One without workspace or endpoint belongs to nobody's log, and
// is left out.
func (l *Log) Append(r *telemetryv1.ScoringRequest) {
	if r.GetWorkspaceUid() == "" || r.GetEndpointUid() == "" {
		return
	}
	buf := l.bufs.Get().(*[]byte)
	defer l.bufs.Put(buf)
	var ok bool
	if *buf, ok = encode((*buf)[:0], r, l.cfg.Now); !ok || !l.enterSoon() {
		l.drop(1)
		return
	}
	err := l.write(*buf)
	l.leave()
	if err != nil {
		l.drop(1)
		return
	}
	if l.waiting.Add(1) == maxBatch {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// enterSoon takes the gate, unless somebody holds it for long.
func (l *Log) enterSoon() bool {
	select {
	case l.gate <- struct{}{}:
		return true
	default:
	}
	t := time.NewTimer(turnWait)
	defer t.Stop()
	select {
	case l.gate <- struct{}{}:
		return true
	case <-t.C:
		return false
	}
}

// enter takes the gate.
func (l *Log) enter(ctx context.Context) error {
	select {
	case l.gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *Log) leave() { <-l.gate }

var (
	errClosed = errors.New("requestlog: the log is closed")
	errFull   = errors.New("requestlog: the spool is full")
)

// write seals a record under the next number and appends it. The caller is inside the gate.
func (l *Log) write(plain []byte) error {
	if l.closed {
		return errClosed
	}
	frame := int64(frameHeader + len(plain) + envelope.Overhead)
	if l.bytes+frame > l.cfg.MaxBytes {
		return errFull
	}
	if l.file == nil || l.last().count > 0 && l.last().size+frame > l.cfg.SegmentBytes {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	s := l.last()
	sealed, err := l.key.Load().Seal(s.aad(l.next), plain)
	if err != nil {
		return err
	}
	l.frame = appendFrame(l.frame[:0], sealed)
	if _, err := l.file.Write(l.frame); err != nil {
		// What was written of it must not stand before the next record.
		if e := l.file.Truncate(s.size); e != nil {
			_ = l.file.Close()
			l.file = nil
		}
		return err
	}
	s.size += int64(len(l.frame))
	l.bytes += int64(len(l.frame))
	s.count++
	l.next++
	return nil
}

// last is the segment that is written to, where file is open.
func (l *Log) last() *segment { return l.segments[len(l.segments)-1] }

// rotate begins the segment of the next record. The caller is inside the gate, or alone. When it fails, the last segment is written on, if
// it still can be.
func (l *Log) rotate() error {
	s, file, err := createSegment(l.cfg.Dir, l.next)
	if err != nil {
		return err
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	if n := len(l.segments); n > 0 && l.segments[n-1].first == l.next { // no record was ever whole in it, and its file was begun anew
		l.bytes -= l.segments[n-1].size
		l.segments = l.segments[:n-1]
	}
	l.file = file
	l.bytes += s.size
	l.segments = append(l.segments, s)
	return nil
}

func (l *Log) drop(n int64) {
	l.dropped.Add(n)
	if l.cfg.OnDropped != nil {
		l.cfg.OnDropped(n)
	}
}

// Dropped is how many records the source has lost since it began, restarts included.
func (l *Log) Dropped() int64 { return l.dropped.Load() }

// Close gives the spool back. Relay must have ended; what is appended later is dropped.
func (l *Log) Close() error {
	l.gate <- struct{}{}
	defer l.leave()
	if l.closed {
		return nil
	}
	l.closed = true
	l.saveState(context.Background())
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
	return l.lock.Close()
}
