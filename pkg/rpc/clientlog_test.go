package rpc

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// E1: a peer's words may name what a tenant wrote: the log of a failed call has its reason alone. What the transport says stays.
func TestFailedCallsAreLoggedWithoutWords(t *testing.T) {
	for name, c := range map[string]struct {
		err        error
		has, hides string
	}{
		"a peer's refusal":  {fault.ToStatus(fault.NotFound("there is no secret-project"), "redoubt.test", "r").Err(), "RESOURCE_NOT_FOUND", "secret-project"},
		"a peer's fault":    {status.Error(codes.Internal, "secret-project broke"), "", "secret-project"},
		"the transport":     {status.Error(codes.Unavailable, "connection refused"), "connection refused", "grpc.error"},
		"an error of other": {status.Error(codes.Unknown, "secret-project"), "", "secret-project"},
	} {
		for _, level := range []logging.Level{logging.LevelDebug, logging.LevelError} {
			var out bytes.Buffer
			log := clientLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
			fields := append([]any{"grpc.code", "x", "grpc.error", c.err.Error(), "grpc.method", "M"}, errorFields(c.err)...)
			log.Log(t.Context(), level, "finished call", fields...)
			if s := out.String(); !strings.Contains(s, c.has) || strings.Contains(s, c.hides) || !strings.Contains(s, "grpc.method=M") {
				t.Errorf("%s: %s", name, s)
			}
		}
	}
}
