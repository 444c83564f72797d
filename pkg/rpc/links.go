package rpc

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// AddressHeader is the metadata key in which the gateway says where a call came from. It is believed from no one else.
const AddressHeader = "x-redoubt-client-address"

// Gateway is the name of the one service that forwards the calls of strangers, and so counts as none itself.
const Gateway = "gateway"

func (c *Call) address() string {
	if c.peer.Kind == svid.KindService && c.peer.Name == Gateway && c.peer.TrustDomain == c.m.chain.cfg.TrustDomain {
		if v := metadata.ValueFromIncomingContext(c.Context, AddressHeader); len(v) == 1 {
			if _, err := netip.ParseAddr(v[0]); err == nil {
				return v[0]
			}
		}
	}
	if p, ok := peer.FromContext(c.Context); ok && p.Addr != nil {
		if a, ok := p.Addr.(*net.TCPAddr); ok {
			return a.AddrPort().Addr().Unmap().String()
		}
		if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
			return host
		}
	}
	return ""
}

// TraceHeader is the metadata key in which the gateway says which trace a call belongs to, where it records any. It is believed from no one
// else; the caller's own traceparent stands beside it.
const TraceHeader = "x-redoubt-traceparent"

// traced starts a span where the call is sampled, and carries the trace on where it is not. A service of the mesh is followed
// in its decision, the gateway by its own header; a stranger's traceparent is only linked to.
func (c *Call) traced() error {
	t := c.m.chain.cfg.Tracing
	if t == nil {
		return nil
	}
	var parent string
	if v := metadata.ValueFromIncomingContext(c.Context, "traceparent"); len(v) == 1 {
		parent = v[0]
	}
	in := t.Accept(parent, c.peer.Kind == svid.KindService && c.peer.Name != Gateway)
	if c.peer.Kind == svid.KindService && c.peer.Name == Gateway {
		if v := metadata.ValueFromIncomingContext(c.Context, TraceHeader); len(v) == 1 {
			in.Parent = t.Accept(v[0], true).Parent
		}
	}
	c.traceID = in.Parent.TraceID().String()
	if c.RequestID == "" {
		c.RequestID = c.traceID
		if in.Link.IsValid() { // the caller's own, by which he finds it
			c.RequestID = in.Link.TraceID().String()
		}
	}
	if !in.Sampled() {
		c.Context = in.Context(c.Context)
		return nil
	}
	c.Context, c.span = t.Start(c.Context, in, c.Method.FullName, trace.SpanKindServer, attribute.String("redoubt.request_id", c.RequestID))
	return nil
}

// limitAddress holds strangers to a rate. Services of the mesh are not strangers.
func (c *Call) limitAddress() error {
	if c.peer.Kind == svid.KindService && c.peer.Name != Gateway {
		return nil
	}
	if c.Address == "" {
		return nil
	}
	from := edge.Network(c.Address)
	if wait := c.m.chain.addresses.Allow(from, c.start); wait > 0 {
		return limited("address", wait)
	}
	// A public method has no principal: its own rate holds for the address.
	if r := c.Method.Rule.GetRate(); r > 0 && c.Method.Rule.GetPublic() {
		if wait := c.m.chain.addresses.AllowAt(c.m.key+" "+from, float64(r), c.start); wait > 0 {
			return limited("address", wait)
		}
	}
	return nil
}

func limited(whose string, wait time.Duration) error {
	return fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "too many calls from this %s; wait and repeat", whose).Retry(wait)
}

// bound gives a call without a deadline one, shortens one that is too long, and refuses what cannot be done in time.
func (c *Call) bound() error {
	now := time.Now() // a context's deadline is on the system's clock
	d, has := c.Context.Deadline()
	if has && d.Sub(now) < time.Millisecond {
		return fault.New(codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED, "the deadline leaves no time for this call; repeat it with a longer one")
	}
	if c.m.timeout == 0 || has && d.Sub(now) <= c.m.timeout {
		return nil
	}
	c.Context, c.cancel = context.WithTimeout(c.Context, c.m.timeout)
	return nil
}

// peerIdentity says which service is calling, and refuses it where the rule names others.
func (c *Call) peerIdentity() error {
	if c.m.chain.cfg.Enrolment {
		return nil
	}
	if c.m.foreign && c.Peer == "" { // the public listener of the gateway
		return nil
	}
	if c.peer.TrustDomain != c.m.chain.cfg.TrustDomain { // also where there is none: the configured one is not empty
		return fault.New(codes.Unauthenticated, faultv1.Reason_PEER_UNKNOWN, "the connection has no identity of trust domain %s", c.m.chain.cfg.TrustDomain)
	}
	if c.peer.Kind == svid.KindService {
		c.PeerService = c.peer.Name
	}
	if !c.m.internal {
		return nil
	}
	allowed := c.Method.Rule.GetCallers()
	named := slices.Contains(allowed, c.PeerService)
	if !anyPeer && (c.PeerService == "" || !named && (c.PeerService == Gateway || !slices.Contains(allowed, "*"))) {
		return fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "this method is for services of the mesh, and not for this one").With("peer", c.Peer)
	}
	return nil
}

// authenticate finds out for whom the call is made.
func (c *Call) authenticate() error {
	if c.Method.Rule.GetPublic() || c.m.internal || c.m.foreign {
		return nil
	}
	cfg := &c.m.chain.cfg
	if err := c.look(); err != nil { // before anything is decided
		return err
	}
	scheme, token := c.bearer()
	if token == "" {
		return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING, "sign in first: this method needs a token in the metadata key authorization")
	}
	// Another service speaks for someone only with a token that was exchanged for this one.
	audience := cfg.Issuer
	forwarded := c.PeerService != "" && c.PeerService != Gateway
	if forwarded {
		audience = c.m.chain.self
	}
	v, err := c.verify(token, audience, forwarded)
	if err != nil {
		c.suspect = authn.BearerOf(err)
		return err
	}
	c.suspect = &v.Claims // until he has shown that it is his
	if forwarded && (v.Actor == nil || v.Actor.Subject != c.Peer) {
		return fault.New(codes.Unauthenticated, faultv1.Reason_PEER_MAY_NOT_FORWARD, "the token was not exchanged by the service that sends it")
	}
	if !forwarded && c.PeerService == "" {
		if c.peer.Kind != svid.KindOperator || c.peer.Name != v.Subject {
			return fault.New(codes.Unauthenticated, faultv1.Reason_PEER_MAY_NOT_FORWARD, "the token is another one's than the certificate")
		}
	}
	if v.Bound() && !forwarded {
		if err := c.proof(scheme, token, v.Confirmation); err != nil {
			return err
		}
	} else if scheme == "dpop" {
		return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID, "the token is not bound to a key; send it as Bearer")
	}
	c.Claims, c.Principal, c.token, c.suspect = &v.Claims, v.Subject, token, nil
	if v.Run != "" && !c.Method.Rule.GetRun() {
		return fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN, "a run's token opens only what its run needs").With("run", v.Run)
	}
	return nil
}

// verify checks a token. One of a run that has ended is good where the rule says that the method delivers, while its agent may: it has to come from
// the agent itself, which proves its key.
func (c *Call) verify(token, audience string, forwarded bool) (*authn.Verified, error) {
	v := c.m.chain.cfg.Verifier
	if c.Method.Rule.GetDeliver() && !forwarded {
		return v.VerifyDelivery(c.Context, token, audience)
	}
	return v.Verify(c.Context, token, audience)
}

// proof checks that the sender of a bound token holds its key (RFC 9449).
func (c *Call) proof(scheme, token, jkt string) error {
	proof := metadata.ValueFromIncomingContext(c.Context, "dpop")
	if scheme != "dpop" || len(proof) != 1 {
		return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID, "this token is bound to a key: send it as DPoP with one proof in the metadata key dpop")
	}
	// A proof is good once. Whoever forwards this call must not repeat it by himself: the repetition would be refused, in place of the
	// answer that the sender can do something with. This is how a server says so to gRPC's own repeats.
	_ = grpc.SetTrailer(c.Context, metadata.Pairs("grpc-retry-pushback-ms", "-1")) // fails where there is no transport
	return c.m.chain.cfg.Proofs.Check(proof[0], "POST", c.m.chain.cfg.PublicURL+c.Method.FullName, token, jkt)
}

// bearer reads the authorization metadata; more than one value counts as none.
func (c *Call) bearer() (scheme, token string) {
	v := metadata.ValueFromIncomingContext(c.Context, "authorization")
	if len(v) != 1 {
		return "", ""
	}
	scheme, token, ok := strings.Cut(v[0], " ")
	if !ok || token == "" {
		return "", ""
	}
	switch {
	case strings.EqualFold(scheme, "bearer"):
		return "bearer", token
	case strings.EqualFold(scheme, "dpop"):
		return "dpop", token
	}
	return "", ""
}

func (c *Call) limitPrincipal() error {
	if c.Principal == "" {
		return nil
	}
	if wait := c.m.chain.callers.Allow(c.Principal, c.start); wait > 0 {
		return limited("principal", wait)
	}
	if r := c.Method.Rule.GetRate(); r > 0 {
		if wait := c.m.chain.callers.AllowAt(c.m.key+" "+c.Principal, float64(r), c.start); wait > 0 {
			return limited("principal", wait)
		}
	}
	if !c.m.chain.open.Enter(c.Principal) {
		return fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "too many calls of this principal are under way; end some, or wait").Retry(time.Second)
	}
	c.entered = true
	return nil
}

// validate holds the message to the constraints in its contract.
func (c *Call) validate(msg proto.Message) error {
	err := c.m.chain.validate.Validate(msg)
	if err == nil {
		return nil
	}
	var v *protovalidate.ValidationError
	if !errors.As(err, &v) {
		return fault.Internal(err, "the request could not be checked")
	}
	f := fault.InvalidArgument("the request is not valid; the details name the fields")
	for i, violation := range v.Violations {
		if i == 16 {
			break
		}
		f = f.Field(protovalidate.FieldPathString(violation.Proto.GetField()), violation.Proto.GetMessage())
	}
	return f
}

// authorize decides whether the caller may do this, on the scope and on everything else that the request refers to.
func (c *Call) authorize(msg proto.Message) error {
	r := c.Method.Rule
	if r.GetPublic() || c.m.internal || c.m.foreign {
		return nil
	}
	e := c.m.chain.cfg.Engine
	if err := e.Fresh(c.m.chain.cfg.Now()); err != nil {
		return err
	}
	if r.GetSelf() {
		return nil
	}
	scope, err := c.Method.ScopeName(msg)
	if err != nil {
		return err
	}
	c.Uses, c.asked = c.Uses[:0], c.own[:0]
	if c.Scope, err = c.decide(scope, r.GetAction(), r.GetData()); err != nil {
		return err
	}
	for _, u := range c.Method.Uses(msg) {
		n, err := u.Parse()
		if err != nil {
			return err
		}
		s, err := c.decide(n, u.Action, u.Data)
		if err != nil {
			return err
		}
		c.Uses = append(c.Uses, s)
	}
	return c.stepUp()
}

// stepUp asks for a fresh sign-in of who has a second factor, where the rule does and everything else allows the call.
func (c *Call) stepUp() error {
	r := c.Method.Rule
	if r.GetStepUp() == 0 || len(r.GetStepUpAt()) > 0 && !slices.Contains(r.GetStepUpAt(), c.Scope.Name.Kind().String()) {
		return nil
	}
	need := func(format string, args ...any) error {
		return fault.New(codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED, format, args...).
			With("max_age", strconv.Itoa(int(r.GetStepUp()))).With("acr_values", authn.ACRMFA)
	}
	switch claims := c.Claims; {
	case claims.PrincipalType != authn.User && r.GetStepUpPrograms():
		return nil
	case claims.PrincipalType != authn.User:
		return fault.New(codes.PermissionDenied, faultv1.Reason_STEP_UP_REQUIRED, "this is done by people alone: a program cannot be asked for a second factor")
	case claims.AuthTime.IsZero() || claims.Run != "":
		return need("this is done by people who sign in, and not by what works for them; sign in with `redoubt login` and repeat it")
	case claims.ACR == authn.ACRPassword: // of a user of whom no factor is asked
		return nil
	case claims.ACR != authn.ACRMFA || c.start.Sub(claims.AuthTime) > time.Duration(r.GetStepUp())*time.Second:
		return need("this needs a sign-in of the last %v: sign in again with `redoubt login` and repeat it", time.Duration(r.GetStepUp())*time.Second)
	}
	return nil
}

// decide asks the engine. Whoever may not know that a resource exists reads the same as if it did not (AIP-211).
func (c *Call) decide(n resource.Name, action string, data bool) (authz.Scope, error) {
	e, name := c.m.chain.cfg.Engine, n.String()
	scope, known := e.Resolve(n)
	if !known {
		return authz.Scope{Name: n}, NotFound(name)
	}
	d := e.Decide(authz.Query{Principal: c.Principal, Action: action, Data: data, Scope: scope, Run: c.run(), Consumer: c.consumer()})
	switch {
	case d.Allowed:
		c.remember(question{scope: scope, action: action, data: data})
		return scope, nil
	case !d.MayKnow:
		c.hidden(scope)
		return scope, NotFound(name)
	case d.Reason == faultv1.Reason_AUTHZ_OUTSIDE_RUN:
		return scope, fault.New(codes.PermissionDenied, d.Reason, "a run's token opens only what its run needs").With("action", action).With("scope", name)
	}
	return scope, fault.New(codes.PermissionDenied, d.Reason, "the action %s is missing at %s; someone with authorization/roleAssignments/write there can give you a role that has it", action, name).
		With("action", action).With("scope", name)
}

// hidden remembers that a refusal which reads as absence is one, for the record.
func (c *Call) hidden(scope authz.Scope) {
	c.Scope = scope
	c.denied = true
}

// NotFound is the one answer for what does not exist and for what the caller may not know of.
func NotFound(name string) error {
	if len(name) > 256 {
		name = name[:256] + "…"
	}
	return fault.NotFound("%s does not exist, or you may not see it", name).With("resource", name)
}
