package rpc

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// guarded is a stream whose messages are judged one by one: the first as a unary request would be, later ones for size and
// form and for naming no other scope; and before each message in either direction the caller's token and right are looked at
// again, so that a stream does not outlive them.
type guarded struct {
	grpc.ServerStream
	call     *Call
	admitted atomic.Bool
	barred   atomic.Pointer[error] // why no message passes any more
	in       inbound
}

// bar ends the stream for its handler: what it does with the error does not matter.
func (g *guarded) bar(err error) error {
	g.barred.CompareAndSwap(nil, &err)
	return err
}

// closed is what a stream ends with whose handler saw no fault: a refusal that it overlooked, or that nothing was ever authorized.
func (g *guarded) closed() error {
	if e := g.barred.Load(); e != nil {
		return *e
	}
	if !g.admitted.Load() && !g.call.m.foreign {
		return fault.InvalidArgument("the stream ended before its first message")
	}
	return nil
}

// Context implements grpc.ServerStream.
func (g *guarded) Context() context.Context { return g.call }

// RecvMsg implements grpc.ServerStream.
func (g *guarded) RecvMsg(v any) error {
	if e := g.barred.Load(); e != nil {
		return *e
	}
	g.in = inbound{msg: v, most: g.call.m.most}
	if err := g.ServerStream.RecvMsg(&g.in); err != nil {
		return err
	}
	if g.in.err != nil {
		return g.bar(g.in.err)
	}
	msg := v.(proto.Message)
	if err := g.judge(msg); err != nil {
		return g.bar(err)
	}
	if g.call.m.summary {
		g.call.count++
		g.call.digest.add(msg)
	}
	return nil
}

// judge decides on one message of the caller's.
func (g *guarded) judge(msg proto.Message) error {
	if !g.admitted.Load() {
		if err := g.call.admit(msg); err != nil {
			return err
		}
		g.admitted.Store(true)
		return nil
	}
	if err := g.call.validate(msg); err != nil {
		return err
	}
	if err := g.sameScope(msg); err != nil {
		return err
	}
	return g.call.still()
}

// SendMsg implements grpc.ServerStream. Nothing is sent before the first message was admitted.
func (g *guarded) SendMsg(v any) error {
	if e := g.barred.Load(); e != nil {
		return *e
	}
	if !g.admitted.Load() {
		return g.bar(fault.InvalidArgument("the stream was to be answered before its first message"))
	}
	if err := g.call.still(); err != nil {
		return g.bar(err)
	}
	return g.ServerStream.SendMsg(v)
}

// sameScope refuses a later message that names a resource other than the one that was authorized.
func (g *guarded) sameScope(msg proto.Message) error {
	if !g.call.Method.ClientStream || g.call.Scope.Name.IsZero() {
		return nil
	}
	name, err := g.call.Method.ScopeText(msg)
	if err != nil || name == "" {
		return err
	}
	if name != g.call.Scope.Name.String() {
		return fault.InvalidArgument("only the first message of a stream names the resource").Field(g.call.Method.Rule.GetScope(), "leave it empty, or equal to that of the first message")
	}
	return nil
}

// still reports whether the caller of an open stream may go on: his token has neither ended nor been revoked, and he still has
// the right that the stream was opened with.
func (c *Call) still() error {
	if c.Claims == nil {
		return nil
	}
	cfg := &c.m.chain.cfg
	audience := cfg.Issuer
	if c.PeerService != "" && c.PeerService != Gateway {
		audience = c.m.chain.self
	}
	if _, err := cfg.Verifier.Verify(c.Context, c.token, audience); err != nil {
		return err
	}
	r := c.Method.Rule
	if r.GetSelf() {
		return nil
	}
	if err := cfg.Engine.Fresh(cfg.Now()); err != nil {
		return err
	}
	// The scope is found anew: a resource that is gone has no uid to be authorized on.
	scope, ok := cfg.Engine.Resolve(c.Scope.Name)
	if !ok || scope.UID != c.Scope.UID {
		return NotFound(c.Scope.Name.String())
	}
	if d := cfg.Engine.Decide(authz.Query{Principal: c.Principal, Action: r.GetAction(), Data: r.GetData(), Scope: scope, Run: c.run()}); !d.Allowed {
		reason := d.Reason
		if reason == faultv1.Reason_REASON_UNSPECIFIED {
			reason = faultv1.Reason_AUTHZ_ACTION_MISSING
		}
		return fault.New(codes.PermissionDenied, reason, "the right that this stream was opened with is gone: %s", r.GetAction()).With("action", r.GetAction()).With("scope", c.Scope.Name.String())
	}
	return nil
}
