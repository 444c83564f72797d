//go:build !linux

package sandbox

import (
	"context"
	"net"
	"os"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func noIsolation() error {
	return fault.New(codes.FailedPrecondition, faultv1.Reason_TARGET_NO_ISOLATION, "only Linux can isolate runs: attach a target that runs it")
}

// MaybeStage does nothing: only Linux has stages.
func MaybeStage() {}

// Check fails with TARGET_NO_ISOLATION.
func Check(context.Context) error { return noIsolation() }

// Start fails with TARGET_NO_ISOLATION.
func Start(context.Context, Config) (*Process, error) { return nil, noIsolation() }

// Process is never made here.
type Process struct{}

// Listener gives nil.
func (*Process) Listener() net.Listener { return nil }

// Outputs gives nil.
func (*Process) Outputs() *os.Root { return nil }

// Isolation gives the zero value.
func (*Process) Isolation() Isolation { return Isolation{} }

// Pid gives 0.
func (*Process) Pid() int { return 0 }

// Kill does nothing.
func (*Process) Kill() {}

// Done gives nil.
func (*Process) Done() <-chan struct{} { return nil }

// Wait fails with TARGET_NO_ISOLATION.
func (*Process) Wait(context.Context) (Exit, error) { return Exit{}, noIsolation() }

// Close does nothing.
func (*Process) Close() {}
