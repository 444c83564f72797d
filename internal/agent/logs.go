package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

// mostLogMessage is how much of the log one message holds.
const mostLogMessage = 64 << 10

// logs is the run's log on its way: what is written waits in memory until compute has stored it. When too much waits, writes block,
// or, of a lossy log, what comes is dropped and the log says how much. The two streams of a command are one log, in the order in
// which they arrived.
type logs struct {
	link  *link
	name  string
	most  int
	lossy bool // set before the first write

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
	stored  int64         // offset of wait[0]: everything before it is stored
	wait    []byte
	full    bool // the log has reached its limit: what follows is dropped
	gone    bool // nobody takes it any more
	written bool // the last byte written, if any, ended a line
	lost    int64
}

func newLogs(l *link, run string, offset int64, most int) *logs {
	return &logs{link: l, name: run, most: most, changed: make(chan struct{}), stored: offset, written: true}
}

// tell wakes all who wait. The caller holds mu.
func (l *logs) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Write implements io.Writer, for both streams of the command. It never fails: what nobody takes is dropped.
func (l *logs) Write(b []byte) (int, error) {
	n := len(b)
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(b) > 0 {
		if l.gone || l.full {
			return n, nil
		}
		room := min(l.most-len(l.wait), len(b))
		if l.lossy && !l.found(len(b)) {
			return n, nil
		}
		if room <= 0 {
			changed := l.changed
			l.mu.Unlock()
			<-changed
			l.mu.Lock()
			continue
		}
		l.wait = append(l.wait, b[:room]...)
		l.written = b[room-1] == '\n'
		b = b[room:]
		l.tell()
	}
	return n, nil
}

// found reports whether a lossy log has room for n bytes, after the word of what was lost before. The caller holds mu.
func (l *logs) found(n int) bool {
	word := ""
	if l.lost > 0 {
		word = fmt.Sprintf("\nredoubt: %d bytes of output were dropped, for the platform was away or too slow\n", l.lost)
	}
	if l.most-len(l.wait) < len(word)+n {
		l.lost += int64(n)
		return false
	}
	l.wait, l.lost = append(l.wait, word...), 0
	return true
}

// note writes a line of the agent's own into the log.
func (l *logs) note(format string, args ...any) {
	l.mu.Lock()
	fresh := l.written
	l.mu.Unlock()
	line := "redoubt: " + fmt.Sprintf(format, args...) + "\n"
	if !fresh {
		line = "\n" + line
	}
	_, _ = l.Write([]byte(line))
}

// discard drops what waits and what follows.
func (l *logs) discard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone, l.wait = true, nil
	l.tell()
}

// drain waits until everything is stored, and returns the length of the log.
func (l *logs) drain(ctx context.Context) (int64, error) {
	for {
		l.mu.Lock()
		done, length, changed := len(l.wait) == 0 || l.full, l.stored, l.changed
		l.mu.Unlock()
		if done {
			return length, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// run sends the log until ctx ends, over as many streams as it takes.
func (l *logs) run(ctx context.Context) {
	var b pauses
	for ctx.Err() == nil {
		if !l.pending(ctx) {
			return
		}
		progress, err := l.stream(ctx)
		if progress {
			b.reset()
		}
		switch {
		case ctx.Err() != nil:
		case err == nil: // to be opened again
		case kindOf(err) == over:
			return // the heartbeat hears it too, and ends the run
		default:
			l.link.log.Debug("the log's stream broke", "error", reasonText(err))
			_ = pause(ctx, b.next(err))
		}
	}
	l.discard()
}

// pending waits for something to send.
func (l *logs) pending(ctx context.Context) bool {
	for {
		l.mu.Lock()
		some, changed := len(l.wait) > 0 && !l.full, l.changed
		l.mu.Unlock()
		if some {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// stream sends the log over one stream, from where it is stored. A small piece waits until the one before it is stored, so
// that a command that writes byte by byte costs a message for each answer and not for each byte.
func (l *logs) stream(ctx context.Context) (progress bool, err error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fresh := l.link.fresh()
	s, err := l.link.runs.AppendLogs(life)
	if err != nil {
		cancel()
		return false, err
	}
	var heard sync.WaitGroup
	broken := make(chan error, 1)
	heard.Go(func() {
		for {
			res, err := s.Recv()
			if err != nil {
				broken <- err
				return
			}
			l.acknowledge(res)
		}
	})
	l.mu.Lock()
	start := l.stored
	l.mu.Unlock()
	defer func() {
		settle(s, &heard, cancel)
		l.mu.Lock()
		progress = l.stored > start
		l.mu.Unlock()
	}()
	name, sent := l.name, start
	for {
		l.mu.Lock()
		sent = max(sent, l.stored)
		piece := l.wait[min(int(sent-l.stored), len(l.wait)):]
		open := sent > l.stored // something is on its way
		changed, full := l.changed, l.full
		if len(piece) > mostLogMessage {
			piece = piece[:mostLogMessage]
		} else if open && len(piece) < mostLogMessage {
			piece = nil
		}
		piece = append([]byte(nil), piece...)
		l.mu.Unlock()
		if full {
			return false, nil
		}
		if len(piece) > 0 {
			if err := s.Send(&computev1.AppendLogsRequest{Name: name, Offset: sent, Data: piece}); err != nil && !errors.Is(err, io.EOF) {
				return false, err
			} else if err != nil {
				return false, <-broken
			}
			name, sent = "", sent+int64(len(piece))
			continue
		}
		select {
		case <-changed:
		case err := <-broken:
			return false, err
		case <-fresh:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

func (l *logs) acknowledge(res *computev1.AppendLogsResponse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(max(res.GetStored()-l.stored, 0), int64(len(l.wait)))
	if l.wait = l.wait[n:]; len(l.wait) == 0 {
		l.wait = nil
	}
	l.stored += n
	if res.GetFull() && !l.full {
		l.full, l.wait = true, nil
		l.stored = max(l.stored, res.GetStored())
	}
	l.tell()
}
