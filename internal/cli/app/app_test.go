package app

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestExitCodes(t *testing.T) {
	wire := func(code codes.Code, reason faultv1.Reason) error {
		return fault.ToStatus(fault.New(code, reason, "no"), "redoubt.test", "r").Err()
	}
	cases := []struct {
		name string
		err  error
		want int
	}{
		{"local", errors.New("disk"), ExitLocal},
		{"local fault, even of that code", fault.PermissionDenied("file"), ExitLocal},
		{"interrupted", context.Canceled, ExitLocal},
		{"refused", wire(codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND), ExitRefused},
		{"away", wire(codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE), ExitRefused},
		{"their fault", wire(codes.Internal, faultv1.Reason_INTERNAL_FAULT), ExitRefused},
		{"denied", wire(codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING), ExitDenied},
		{"not known", wire(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED), ExitDenied},
		{"denied, wrapped", fmt.Errorf("upload: %w", wire(codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)), ExitDenied},
		{"their deadline", wire(codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED), ExitTimeout},
		{"our deadline", context.DeadlineExceeded, ExitTimeout},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := exitCode(c.err, client.Describe(c.err)); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestFlagOverEnvironmentOverFile(t *testing.T) {
	home := t.TempDir()
	d := settings.Open(filepath.Join(home, ".config", "redoubt"))
	err := d.Write(&settings.File{CurrentContext: "a", Contexts: []settings.Context{{Name: "a", Server: "https://file-a"}, {Name: "b", Server: "https://file-b"}}})
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name         string
		context, srv string // flags
		env          map[string]string
		want         string
	}{
		{"file", "", "", nil, "https://file-a"},
		{"context by environment", "", "", map[string]string{"REDOUBT_CONTEXT": "b"}, "https://file-b"},
		{"context by flag", "a", "", map[string]string{"REDOUBT_CONTEXT": "b"}, "https://file-a"},
		{"server by environment", "", "", map[string]string{"REDOUBT_ADDR": "https://env"}, "https://env"},
		{"server by flag", "", "https://flag", map[string]string{"REDOUBT_ADDR": "https://env"}, "https://flag"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a := &App{Env: func(k string) string {
				if k == "HOME" {
					return home
				}
				return c.env[k]
			}, ContextName: c.context, Server: c.srv}
			if err := a.Complete(); err != nil {
				t.Fatal(err)
			}
			got, err := a.Chosen()
			if err != nil || got.Server != c.want {
				t.Errorf("got %q, %v", got.Server, err)
			}
		})
	}
}
