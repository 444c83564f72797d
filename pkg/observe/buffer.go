package observe

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	flushBytes = 64 << 10
	flushEvery = 100 * time.Millisecond
	// maxPending bounds what waits for a writer that does not keep up. Beyond it whole lines are dropped.
	maxPending = 1 << 20
	// closeWait bounds how long the end of a process waits for a writer that hangs.
	closeWait = 2 * time.Second
)

var errHangs = errors.New("observe: the log's writer hangs, lines are lost")

// buffer collects lines and writes them from a goroutine of its own: 100 ms after the first, at 64 KiB, at an error.
type buffer struct {
	w       io.Writer
	direct  bool
	json    bool // how to tell about dropped lines
	dropped atomic.Uint64

	mu      sync.Mutex
	pending []byte
	lines   uint64 // in pending
	told    uint64 // how many dropped lines the log has told about
	closed  bool

	out   sync.Mutex // held while writing; taken before mu
	spare []byte
	err   error // of the writer, since the last flush; under out

	wake chan struct{} // there is something to write, soon
	now  chan struct{} // there is something to write, at once
	quit chan struct{}
	done chan struct{}
}

func newBuffer(w io.Writer, direct, json bool) *buffer {
	b := &buffer{
		w: w, direct: direct, json: json, wake: make(chan struct{}, 1), now: make(chan struct{}, 1),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	if direct {
		close(b.done)
	} else {
		go b.run()
	}
	return b
}

// Write takes one whole line: slog's handlers make one call a record.
func (b *buffer) Write(line []byte) (int, error) {
	n := len(line)
	line = maskLine(line)
	b.mu.Lock()
	if len(b.pending)+len(line) > maxPending {
		b.dropped.Add(1)
		b.mu.Unlock()
		return n, nil
	}
	first := len(b.pending) == 0
	b.pending = append(b.pending, line...)
	b.lines++
	full := len(b.pending) >= flushBytes
	direct := b.direct || b.closed
	b.mu.Unlock()
	switch {
	case direct:
		b.write()
	case full:
		b.hurry()
	case first:
		signal(b.wake)
	}
	return n, nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// hurry has the lines so far written without waiting for it.
func (b *buffer) hurry() { signal(b.now) }

func (b *buffer) run() {
	defer close(b.done)
	for {
		select {
		case <-b.wake:
			t := time.NewTimer(flushEvery)
			select {
			case <-t.C:
			case <-b.now:
				t.Stop()
			case <-b.quit:
				t.Stop()
				return
			}
		case <-b.now:
		case <-b.quit:
			return
		}
		b.write()
	}
}

// write hands all pending lines to the writer.
func (b *buffer) write() {
	b.out.Lock()
	defer b.out.Unlock()
	b.mu.Lock()
	data, lines := b.pending, b.lines
	b.pending, b.lines = b.spare[:0], 0
	var lost uint64
	if d := b.dropped.Load(); d > b.told {
		lost, b.told = d-b.told, d
	}
	b.mu.Unlock()
	if len(data) > 0 {
		if _, err := b.w.Write(data); err != nil {
			b.err = err
			b.dropped.Add(lines)
		}
	}
	if lost > 0 {
		format := "level=WARN msg=\"log lines were dropped\" lines=%d\n"
		if b.json {
			format = "{\"level\":\"WARN\",\"msg\":\"log lines were dropped\",\"lines\":%d}\n"
		}
		_, _ = fmt.Fprintf(b.w, format, lost)
	}
	b.spare = data[:0]
	if cap(b.spare) > 4*flushBytes {
		b.spare = nil
	}
}

func (b *buffer) flush() error {
	b.write()
	b.out.Lock()
	defer b.out.Unlock()
	err := b.err
	b.err = nil
	return err
}

func (b *buffer) close() error {
	b.mu.Lock()
	first := !b.closed
	b.closed = true
	b.mu.Unlock()
	if first && !b.direct {
		close(b.quit)
	}
	flushed := make(chan error, 1)
	go func() {
		<-b.done
		flushed <- b.flush()
	}()
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case err := <-flushed:
		return err
	case <-t.C:
		return errHangs
	}
}
