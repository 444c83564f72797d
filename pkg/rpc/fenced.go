package rpc

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
)

const (
	// decideAgain is how often an effect is decided again while the security state changes under it.
	decideAgain = 16
	// mostAsked is how many of a call's questions are remembered. A call that asked more is repeated by its caller when the state changes.
	mostAsked = 256
)

// question is something that the caller was found to be allowed.
type question struct {
	scope  authz.Scope
	action string
	data   bool
}

// Finish has an effect pass the fence: the commit of a transaction, as sqldb.Config.Finish. What is done outside a call, or in one that
// rests on no security state, passes.
func Finish(ctx context.Context, commit func() error) error {
	if c, ok := ctx.Value(callKey{}).(*Call); ok {
		return c.effect(commit)
	}
	return commit()
}

// look takes the view that the call is decided on. It comes before the first decision.
func (c *Call) look() error {
	f := c.m.chain.cfg.Fence
	if f == nil {
		return nil
	}
	v, err := f.View()
	if err != nil {
		return err
	}
	c.view.Store(v)
	return nil
}

// effect has something take effect that was decided in this call, once. If the security state has changed since, it is decided again.
func (c *Call) effect(commit func() error) error {
	v := c.view.Load()
	if v == nil {
		return commit()
	}
	for range decideAgain {
		if err := c.m.chain.cfg.Fence.Finish(v, commit); !errors.Is(err, fence.ErrStale) {
			return err
		}
		if err := c.again(); err != nil {
			return err
		}
		v = c.view.Load()
	}
	return tooFast()
}

func tooFast() error {
	return fault.New(codes.Unavailable, faultv1.Reason_CONFLICT, "rights and revocations change faster than this call could be decided; repeat it")
}

// again decides everything that the call rests on with the present state.
func (c *Call) again() error {
	f := c.m.chain.cfg.Fence
	if f == nil || c.view.Load() == nil {
		return c.still()
	}
	v, err := f.View()
	if err != nil {
		return err
	}
	if err := c.still(); err != nil {
		return err
	}
	c.view.Store(v)
	return nil
}

// remember keeps a question whose answer was yes.
func (c *Call) remember(q question) {
	if c.m.chain.cfg.Fence == nil && c.m.single {
		return // nobody asks again
	}
	c.asking.Lock()
	defer c.asking.Unlock()
	if len(c.asked) >= mostAsked {
		c.crowd = true
		return
	}
	c.asked = append(c.asked, q)
}

// forget drops what a message of a stream that is sent rested on besides the stream itself.
func (c *Call) forget() {
	c.asking.Lock()
	defer c.asking.Unlock()
	if n := 1 + len(c.Uses); len(c.asked) > n {
		c.asked = slices.Clone(c.asked[:n]) // another goroutine may read the rest
	}
	c.crowd = false
}

// Hold decides something that the effects of the call rest on besides the rights of its caller, and has it decided again, if the security
// state changes before them. check reads nothing but what is current when it is called. Its error comes back.
func (c *Call) Hold(check func() error) error {
	_, err := c.hold(check)
	return err
}

// hold is Hold, with what lets go of it.
func (c *Call) hold(check func() error) (release func(), err error) {
	if c.m != nil && c.view.Load() == nil {
		if err := c.look(); err != nil {
			return nil, err
		}
	}
	if err := check(); err != nil {
		return nil, err
	}
	h := &holding{check}
	c.asking.Lock()
	defer c.asking.Unlock()
	c.held = append(slices.Clone(c.held), h) // another goroutine may read the rest
	return func() {
		c.asking.Lock()
		defer c.asking.Unlock()
		c.held = slices.DeleteFunc(slices.Clone(c.held), func(o *holding) bool { return o == h })
	}, nil
}

// holding is something that a call rests on.
type holding struct{ check func() error }

// Decide decides something that takes effect later, in nobody's call or in a call of someone whom it is not about: work in the background,
// in the name of who asked for it once. What is committed in the context that comes back is let pass by the fence, if check still finds what
// it has found now. In a call the call holds it too, until release. f is nil where there is no fence. What check says comes back.
func Decide(ctx context.Context, f *fence.Fence, check func() error) (decided context.Context, release func(), err error) {
	if c, ok := ctx.Value(callKey{}).(*Call); ok {
		release, err = c.hold(check)
		return ctx, release, err
	}
	c := &Call{Context: ctx, m: &method{chain: &Chain{cfg: Config{Fence: f}}}}
	release, err = c.hold(check)
	return c, release, err
}

// still reports whether the call may go on: its caller's token has neither ended nor been revoked, he still has the rights that it rests
// on, and what it holds is so.
func (c *Call) still() error {
	c.asking.Lock()
	asked, crowd, held := c.asked, c.crowd, c.held
	c.asking.Unlock()
	for _, h := range held {
		if err := h.check(); err != nil {
			return err
		}
	}
	if c.Claims == nil {
		return nil
	}
	cfg := &c.m.chain.cfg
	audience, forwarded := cfg.Issuer, c.PeerService != "" && c.PeerService != Gateway
	if forwarded {
		audience = c.m.chain.self
	}
	if _, err := c.verify(c.token, audience, forwarded); err != nil {
		return err
	}
	if c.Method.Rule.GetSelf() && len(asked) == 0 {
		return nil
	}
	if err := cfg.Engine.Fresh(cfg.Now()); err != nil {
		return err
	}
	if crowd {
		return fault.New(codes.Unavailable, faultv1.Reason_CONFLICT, "rights changed while this call gathered what you may see; repeat it")
	}
	for i := range asked {
		q := &asked[i]
		// The scope is found anew: a resource that is gone has no uid to be authorized on.
		scope, ok := cfg.Engine.Resolve(q.scope.Name)
		if !ok || scope.UID != q.scope.UID {
			return NotFound(q.scope.Name.String())
		}
		if d := cfg.Engine.Decide(authz.Query{Principal: c.Principal, Action: q.action, Data: q.data, Scope: scope, Run: c.run(), Consumer: c.consumer()}); !d.Allowed {
			reason := d.Reason
			if reason == faultv1.Reason_REASON_UNSPECIFIED {
				reason = faultv1.Reason_AUTHZ_ACTION_MISSING
			}
			return fault.New(codes.PermissionDenied, reason, "the right that this call rests on is gone: %s", q.action).With("action", q.action).With("scope", q.scope.Name.String())
		}
	}
	return nil
}
