package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// method is what is known of a method before any call comes.
type method struct {
	*rule.Method
	chain    *Chain
	log      *slog.Logger
	observe  *observe.MethodObserver
	most     int           // bytes of one request message
	timeout  time.Duration // 0: none
	always   bool          // AUDIT_ALWAYS
	summary  bool          // AUDIT_SUMMARY of a stream
	joined   bool          // AUDIT_SUMMARY of unary calls
	internal bool          // callers
	foreign  bool          // a contract of others that asks for no caller: health, reflection
	watch    bool          // ended by Drain
	single   bool          // unary
	key      string        // of the limiter, where the rule sets a rate
}

func (c *Chain) method(service, name string) (*method, error) {
	full := "/" + service + "/" + name
	r, ok := c.cfg.Rules.Lookup(full)
	if !ok {
		return nil, fmt.Errorf("rpc: %s has no rule, so %s does not start", full, c.cfg.Service)
	}
	m := &method{
		Method: r, chain: c, log: c.cfg.Logger.With("method", full),
		most: c.cfg.Limits.MaxRequestBytes, key: full,
		always: r.Rule.GetAudit() == rulev1.Audit_AUDIT_ALWAYS,
		watch:  Watch(r), internal: len(r.Rule.GetCallers()) > 0, foreign: r.Rule.GetPublic() && !strings.HasPrefix(full, "/redoubt."),
	}
	unary := !r.ClientStream && !r.ServerStream
	m.single = unary
	m.summary, m.joined = !unary && r.Rule.GetAudit() == rulev1.Audit_AUDIT_SUMMARY, unary && r.Rule.GetAudit() == rulev1.Audit_AUDIT_SUMMARY
	if n := r.Rule.GetMaxRequestBytes(); n > 0 {
		m.most = int(n)
	}
	if unary {
		m.timeout = c.cfg.Limits.Timeout
	}
	if s := r.Rule.GetMaxSeconds(); s > 0 {
		m.timeout = time.Duration(s) * time.Second
	}
	if c.cfg.RED != nil {
		m.observe = c.cfg.RED.Method(service, name)
	}
	if m.foreign {
		return m, nil
	}
	if c.cfg.Recorder == nil {
		return nil, fmt.Errorf("rpc: %s needs a Recorder for its audit, and the chain has none", full)
	}
	if !r.Rule.GetPublic() && !m.internal && (c.cfg.Verifier == nil || c.cfg.Engine == nil || c.cfg.Proofs == nil || c.cfg.Issuer == "") {
		return nil, fmt.Errorf("rpc: %s needs a caller, and the chain lacks Verifier, Proofs, Engine or Issuer", full)
	}
	return m, nil
}

type registrar struct {
	chain *Chain
	next  grpc.ServiceRegistrar
}

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods = slices.Clone(desc.Methods)
	for i := range d.Methods {
		m, err := r.chain.method(d.ServiceName, d.Methods[i].MethodName)
		if err != nil {
			panic(err)
		}
		d.Methods[i].Handler = m.unary(desc.Methods[i].Handler)
	}
	d.Streams = slices.Clone(desc.Streams)
	for i := range d.Streams {
		m, err := r.chain.method(d.ServiceName, d.Streams[i].StreamName)
		if err != nil {
			panic(err)
		}
		d.Streams[i].Handler = m.stream(desc.Streams[i].Handler)
	}
	r.next.RegisterService(&d, impl)
}

// unary puts the chain in front of a unary handler. Headers are judged before the message is decoded.
func (m *method) unary(next grpc.MethodHandler) grpc.MethodHandler {
	return func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (resp any, err error) {
		c := m.open(ctx)
		defer func() {
			if p := recover(); p != nil {
				err = c.panicked(p)
			}
			if err = c.finish(err); err != nil {
				resp = nil
			}
		}()
		if err := c.pass(); err != nil {
			return nil, err
		}
		return next(srv, c, func(v any) error {
			c.in = inbound{msg: v, most: m.most}
			if err := dec(&c.in); err != nil {
				return err
			}
			if c.in.err != nil {
				return c.in.err
			}
			msg := v.(proto.Message)
			if err := c.admit(msg); err != nil || !m.joined {
				return err
			}
			c.count++
			c.digest.add(msg)
			return nil
		}, nil)
	}
}

// stream puts the same chain in front of a stream.
func (m *method) stream(next grpc.StreamHandler) grpc.StreamHandler {
	return func(srv any, ss grpc.ServerStream) (err error) {
		ctx, end := m.draining(ss.Context())
		defer end()
		c := m.open(ctx)
		defer func() {
			if p := recover(); p != nil {
				err = c.panicked(p)
			}
			err = c.finish(err)
		}()
		if err := c.pass(); err != nil {
			return err
		}
		g := &guarded{ServerStream: ss, call: c}
		if err := next(srv, g); err != nil {
			return err
		}
		return g.closed()
	}
}

// open makes the call. Everything that it needs of the method is there already.
func (m *method) open(ctx context.Context) *Call {
	return &Call{Context: ctx, Method: m.Method, m: m, start: m.chain.cfg.Now()}
}

// pass takes the call through the links that need no message.
func (c *Call) pass() error {
	for i := range c.m.chain.links {
		if err := c.m.chain.links[i].pass(c); err != nil {
			return err
		}
	}
	return nil
}

// admit judges a decoded message: its form, and whether the caller may.
func (c *Call) admit(msg proto.Message) error {
	if err := c.validate(msg); err != nil {
		return err
	}
	return c.authorize(msg)
}
