package rpc

import (
	"context"
	"errors"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
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
	return g.call.again()
}

// SendMsg implements grpc.ServerStream. Nothing is sent before the first message was admitted.
func (g *guarded) SendMsg(v any) error {
	if e := g.barred.Load(); e != nil {
		return *e
	}
	if !g.admitted.Load() {
		return g.bar(fault.InvalidArgument("the stream was to be answered before its first message"))
	}
	if onceForAll() {
		return g.ServerStream.SendMsg(v)
	}
	if err := g.call.again(); err != nil {
		return g.bar(err)
	}
	if g.call.view.Load() == nil {
		return g.ServerStream.SendMsg(v)
	}
	return g.send(v)
}

// send has a message pass the fence. While the reader is slow the caller's right is looked at again with each change of the security
// state: a change neither waits for him, nor does he get what was decided before it.
func (g *guarded) send(m any) error {
	f := g.call.m.chain.cfg.Fence
	view, err := g.enter()
	if err != nil {
		return g.bar(err)
	}
	sent := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				sent <- g.call.panicked(p)
			}
		}()
		sent <- g.ServerStream.SendMsg(m)
	}()
	for {
		select {
		case err := <-sent:
			f.Leave(view)
			g.call.forget()
			return err
		case <-view.Superseded():
		}
		if err = g.call.again(); err == nil {
			var next *fence.View
			if next, err = g.enter(); err == nil {
				f.Leave(view)
				view = next
				continue
			}
		}
		go func() { late := <-sent; f.Leave(view); _ = late }() // the message ends with the stream, which the handler ends now
		return g.bar(err)
	}
}

// enter opens a section on the view that the call is decided on, after deciding again as often as it has to.
func (g *guarded) enter() (*fence.View, error) {
	for range decideAgain {
		view := g.call.view.Load()
		err := g.call.m.chain.cfg.Fence.Enter(view)
		if err == nil {
			return view, nil
		}
		if !errors.Is(err, fence.ErrStale) {
			return nil, err
		}
		if err := g.call.again(); err != nil {
			return nil, err
		}
	}
	return nil, tooFast()
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
