package observe

import (
	"bytes"
	"context"
	"encoding"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// LogConfig of a Logger. The zero value writes text of level info and above to standard error, buffered.
type LogConfig struct {
	// Writer gets whole lines, from one goroutine at a time. nil means os.Stderr. It is not closed.
	Writer io.Writer
	// Level is the least level that is written; nil means info. A *slog.LevelVar can be changed later.
	Level slog.Leveler
	// JSON writes one JSON object a line, instead of key=value.
	JSON bool
	// Unbuffered writes each line at once: for a command that a person waits for.
	Unbuffered bool
	// Now is the clock of the lines; nil means time.Now.
	Now func() time.Time
}

// Logger is a slog.Logger that must be closed, or the last lines are lost.
type Logger struct {
	*slog.Logger
	buffer *buffer
}

// NewLogger starts a Logger.
func NewLogger(cfg LogConfig) *Logger {
	if cfg.Writer == nil {
		cfg.Writer = os.Stderr
	}
	if cfg.Level == nil {
		cfg.Level = slog.LevelInfo
	}
	b := newBuffer(cfg.Writer, cfg.Unbuffered, cfg.JSON)
	options := &slog.HandlerOptions{Level: cfg.Level}
	var inner slog.Handler
	if cfg.JSON {
		inner = slog.NewJSONHandler(b, options)
	} else {
		inner = slog.NewTextHandler(b, options)
	}
	return &Logger{Logger: slog.New(&handler{inner: inner, buffer: b, now: cfg.Now}), buffer: b}
}

// Flush writes what is buffered and waits for it. It returns the last error of the Writer since the flush before.
func (l *Logger) Flush() error { return l.buffer.flush() }

// Close flushes and ends, waiting at most 2 s for a Writer that hangs. What is logged afterwards is written at once.
// It may be called again.
func (l *Logger) Close() error { return l.buffer.close() }

// Dropped is how many lines were lost because the Writer failed or did not keep up.
func (l *Logger) Dropped() uint64 { return l.buffer.dropped.Load() }

// handler replaces what must not be shown, sends errors out at once, and leaves the rest to slog's own. It looks at the
// attributes itself, since ReplaceAttr costs half a microsecond a line.
type handler struct {
	inner  slog.Handler
	buffer *buffer
	now    func() time.Time
	hide   bool // inside a group whose name names a secret
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.inner.Enabled(ctx, l) }

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	if h.now != nil {
		r.Time = h.now()
	}
	clean := true
	r.Attrs(func(a slog.Attr) bool {
		clean = !h.hide && harmless(a)
		return clean
	})
	if !clean {
		c := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
		r.Attrs(func(a slog.Attr) bool {
			c.AddAttrs(replace(a, h.hide))
			return true
		})
		r = c
	}
	err := h.inner.Handle(ctx, r)
	if r.Level >= slog.LevelError {
		h.buffer.hurry()
	}
	return err
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c, safe := *h, make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		safe[i] = replace(a, h.hide)
	}
	c.inner = h.inner.WithAttrs(safe)
	return &c
}

func (h *handler) WithGroup(name string) slog.Handler {
	c := *h
	c.inner, c.hide = h.inner.WithGroup(name), h.hide || secretKey(name)
	return &c
}

// harmless reports whether a can be shown as it is. It is the quick way through replace.
func harmless(a slog.Attr) bool {
	switch a.Value.Kind() {
	case slog.KindAny, slog.KindLogValuer, slog.KindGroup:
		return false
	default:
		return !secretKey(a.Key)
	}
}

// replace is the second net: keys that name a secret, and values that could hold anything. The third is in the buffer,
// which sees the finished line.
func replace(a slog.Attr, hide bool) slog.Attr {
	a.Value = a.Value.Resolve()
	hide = hide || secretKey(a.Key)
	switch a.Value.Kind() {
	case slog.KindGroup:
		group := a.Value.Group()
		safe := make([]slog.Attr, len(group))
		for i, x := range group {
			safe[i] = replace(x, hide)
		}
		return slog.Attr{Key: a.Key, Value: slog.GroupValue(safe...)}
	case slog.KindAny:
	default:
		if !hide {
			return a
		}
	}
	if hide {
		return slog.String(a.Key, redact.Mask)
	}
	switch v := a.Value.Any().(type) {
	case nil, error, slog.Level:
	case []string, []int, []int64, []uint64, []float64, []bool:
	case []byte: // a body, a key: the handlers would print it
		return slog.String(a.Key, fmt.Sprintf("(%d bytes)", len(v)))
	case proto.Message, *bytes.Buffer, *strings.Builder: // Stringers that show all they hold
		return slog.String(a.Key, fmt.Sprintf("(%T)", v))
	case encoding.TextMarshaler:
	case fmt.Stringer:
		return slog.String(a.Key, fmt.Sprint(v)) // survives a nil pointer, unlike v.String()
	default:
		return slog.String(a.Key, fmt.Sprintf("(%T)", v))
	}
	return a
}
