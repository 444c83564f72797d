package rpc

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// watchAgain is after how long who watched is asked to come back, to another instance.
const watchAgain = 100 * time.Millisecond

var errDraining = errors.New("rpc: the server is being stopped")

// Watch reports whether a method's stream has no end of its own, so that a server which is to stop ends it: it sends to its caller
// alone, and is no download.
func Watch(m *rule.Method) bool {
	name := m.FullName[strings.LastIndexByte(m.FullName, '/')+1:]
	return m.ServerStream && !m.ClientStream && !strings.HasPrefix(name, "Download")
}

// Drain ends the watches that are open, and those that are begun later: with UNAVAILABLE, and a hint to come back soon. All other calls
// go on. It is for a server that other instances have taken the place of, right before its GracefulStop.
func (c *Chain) Drain() { c.drain() }

// draining gives a watch's context its end.
func (m *method) draining(ctx context.Context) (context.Context, func()) {
	if !m.watch {
		return ctx, func() {}
	}
	life, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.chain.drained, func() { cancel(errDraining) })
	return life, func() { stop(); cancel(nil) }
}

// drainedFault is what a watch ends with that was drained, whatever its handler made of the end of its context.
func (c *Call) drainedFault(err error) error {
	if !errors.Is(context.Cause(c.Context), errDraining) {
		return err
	}
	switch fault.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return err
	}
	return fault.Unavailable("this instance of %s is being stopped; watch again", c.m.chain.cfg.Service).Retry(watchAgain)
}
