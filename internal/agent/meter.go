package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"sync"

	"google.golang.org/protobuf/proto"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// mostBatches is how many batches may wait for telemetry.
const mostBatches = 64

// meter takes what a run measures to telemetry, and says of each batch when it is stored.
type meter struct {
	link *link
	name string

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a batch comes, or the one before the next is answered
	wait    []*batch      // in the order in which they came
	round   int           // the stream's number
	gone    error         // nobody takes batches any more
}

// batch is answered when done is closed, by err.
type batch struct {
	req  *telemetryv1.LogRunDataRequest
	sent int // the number of the stream on which it was sent last
	done chan struct{}
	err  error
}

func newMeter(l *link, run string) *meter {
	return &meter{link: l, name: run, changed: make(chan struct{})}
}

func (m *meter) tell() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// batchID of a batch. Metrics and parameters that come again are the same ones, so that a client that repeats a request whose
// answer it did not get stores nothing twice; a tag may be set to what it was before.
func batchID(req *telemetryv1.LogRunDataRequest) (string, error) {
	if len(req.GetTags()) > 0 {
		return rand.Text(), nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// store hands a batch over, and waits until it is stored or refused. When ctx ends the batch is on its way all the same.
func (m *meter) store(ctx context.Context, req *telemetryv1.LogRunDataRequest) error {
	id, err := batchID(req)
	if err != nil {
		return fault.InvalidArgument("the batch cannot be sent: %v", err)
	}
	req.BatchId = id
	b, err := m.enqueue(req)
	if err != nil {
		return err
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return fault.Unavailable("the platform is away; what was sent is kept and stored when it is back")
	}
}

func (m *meter) enqueue(req *telemetryv1.LogRunDataRequest) (*batch, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone != nil {
		return nil, m.gone
	}
	for _, b := range m.wait {
		if b.req.GetBatchId() == req.GetBatchId() {
			return b, nil
		}
	}
	if len(m.wait) >= mostBatches {
		return nil, fault.Unavailable("the platform is away, and too much waits for it; repeat the request later")
	}
	b := &batch{req: req, done: make(chan struct{})}
	m.wait = append(m.wait, b)
	m.tell()
	return b, nil
}

// answer ends the batch with this id.
func (m *meter) answer(id string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, b := range m.wait {
		if b.req.GetBatchId() == id {
			b.err = err
			close(b.done)
			m.wait = append(m.wait[:i:i], m.wait[i+1:]...)
			m.tell()
			return
		}
	}
}

// drain waits until nothing waits.
func (m *meter) drain(ctx context.Context) error {
	for {
		m.mu.Lock()
		n, changed := len(m.wait), m.changed
		m.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// run sends batches until ctx ends, over as many streams as it takes. A refusal ends a stream and does not say which batch it
// is for: then they are sent one by one, until the one that is refused by itself is found.
func (m *meter) run(ctx context.Context) {
	var b pauses
	alone, refused := false, 0
	for ctx.Err() == nil {
		if !m.pending(ctx) {
			break
		}
		progress, suspect, err := m.stream(ctx, alone)
		if progress {
			b.reset()
			refused = 0
		}
		switch kind := kindOf(err); {
		case ctx.Err() != nil:
		case err == nil:
			alone = false
		case kind == over:
			m.discard(fault.FromStatus(err))
			return
		case kind == transient:
			m.link.log.Debug("the metrics' stream broke", "error", reasonText(err))
			_ = pause(ctx, b.next(err))
		case !alone:
			alone = true
		case kind == refusal && refused < mostRefusal:
			refused++
			_ = pause(ctx, b.next(err))
		default:
			m.answer(suspect, fault.FromStatus(err))
			alone, refused = false, 0
		}
	}
	m.discard(fault.Unavailable("the run is ending"))
}

// discard refuses what waits and what follows.
func (m *meter) discard(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = err
	for _, b := range m.wait {
		b.err = err
		close(b.done)
	}
	m.wait = nil
	m.tell()
}

func (m *meter) pending(ctx context.Context) bool {
	for {
		m.mu.Lock()
		n, changed := len(m.wait), m.changed
		m.mu.Unlock()
		if n > 0 {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// stream sends what waits over one stream, alone: each batch only when the one before it was answered. suspect is the batch that
// was sent last.
func (m *meter) stream(ctx context.Context, alone bool) (progress bool, suspect string, err error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fresh := m.link.fresh()
	s, err := m.link.metrics.LogRunData(life)
	if err != nil {
		cancel()
		return false, "", err
	}
	var heard sync.WaitGroup
	broken := make(chan error, 1)
	answers := 0 // under mu
	defer func() {
		settle(s, &heard, cancel)
		progress = answers > 0
	}()
	heard.Go(func() {
		for {
			res, err := s.Recv()
			if err != nil {
				broken <- err
				return
			}
			m.mu.Lock()
			answers++
			m.mu.Unlock()
			m.answer(res.GetBatchId(), nil)
		}
	})
	m.mu.Lock()
	m.round++
	m.mu.Unlock()
	name := m.name
	for {
		req, more, changed := m.next(alone)
		if alone && !more {
			return false, "", nil // what was refused is found, or has passed
		}
		if req != nil {
			suspect = req.GetBatchId()
			if name != "" {
				req = proto.CloneOf(req)
				req.Run, name = name, ""
			}
			if err := s.Send(req); errors.Is(err, io.EOF) {
				return false, suspect, <-broken
			} else if err != nil {
				return false, suspect, err
			}
			continue
		}
		select {
		case <-changed:
		case err := <-broken:
			return false, suspect, err
		case <-fresh:
			return false, suspect, nil
		case <-ctx.Done():
			return false, suspect, ctx.Err()
		}
	}
}

// next is the first batch that was not sent on this stream, or nil for none now; more says whether any waits.
func (m *meter) next(alone bool) (req *telemetryv1.LogRunDataRequest, more bool, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, b := range m.wait {
		if b.sent != m.round {
			if alone && i > 0 {
				break
			}
			b.sent = m.round
			return b.req, true, m.changed
		}
	}
	return nil, len(m.wait) > 0, m.changed
}
