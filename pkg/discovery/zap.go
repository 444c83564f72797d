package discovery

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// ZapLogger sends what etcd's client and server log, from warnings on, to logger. A nil logger drops it.
func ZapLogger(logger *slog.Logger) *zap.Logger { return zapFrom(logger, zapcore.WarnLevel) }

func zapFrom(logger *slog.Logger, lowest zapcore.Level) *zap.Logger {
	if logger == nil {
		return zap.NewNop()
	}
	return zap.New(core{logger, lowest})
}

type core struct {
	log    *slog.Logger
	lowest zapcore.Level
}

func (c core) Enabled(l zapcore.Level) bool {
	return l >= c.lowest && c.log.Enabled(context.Background(), level(l))
}

func level(l zapcore.Level) slog.Level {
	if l >= zapcore.ErrorLevel {
		return slog.LevelError
	}
	return slog.LevelWarn
}

func (c core) With(fields []zapcore.Field) zapcore.Core {
	return core{c.log.With(attrs(fields)...), c.lowest}
}

func (c core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.Log(context.Background(), level(e.Level), "etcd: "+e.Message, attrs(fields)...)
	return nil
}

func (c core) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	out := make([]any, 0, 2*len(m.Fields))
	for _, f := range fields { // in their order
		if v, ok := m.Fields[f.Key]; ok {
			out = append(out, f.Key, v)
		}
	}
	return out
}
