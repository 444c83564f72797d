package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// Call is one call on its way through a service, and the context of its handler. Handlers read it; the links write it. It must
// not be kept after the handler has returned.
type Call struct {
	context.Context
	// Method is the method with its rule.
	Method *rule.Method
	// RequestID is the caller's x-request-id, or the trace id; it stands in errors, logs and the activity log.
	RequestID string
	// Peer is the SPIFFE ID at the other end of the connection, "" on the enrolment listener.
	Peer string
	// PeerService is the name of the service that Peer is, or "".
	PeerService string
	// Address is where the call came from, as far as it is known: the client's, where the gateway says so.
	Address string
	// Claims of the caller's token, nil where the method needs none.
	Claims *authn.Claims
	// Principal is the uid of who is asking, "" where the method needs nobody.
	Principal string
	// Scope is the resource that the rule's scope field names, as the engine knows it.
	Scope authz.Scope
	// Uses are the further resources, in the order of the rule and of the message.
	Uses []authz.Scope

	suspect *authn.Claims // of a genuine token whose sender was refused: whose it is, for the record

	m       *method
	peer    svid.ID // of Peer, zero where that is none of ours
	in      inbound
	start   time.Time
	cancel  context.CancelFunc
	token   string // as it came; exchanged for calls onward
	traceID string
	span    trace.Span
	event   *audit.Event // nil until something is recorded
	details []string
	denied  bool // refused by the engine, though it reads as absence
	audited bool
	entered bool         // counted among the principal's open calls
	ground  audit.Ground // set by RestOn
	gave    string       // set by Joins
	answer  error        // set by Refuse
	who     string       // set by Identify
	whoType string
	tried   string // set by Tried
	triedAs string
	count   int64
	digest  digester

	view   atomic.Pointer[fence.View] // that the call was decided on; nil where it rests on none
	asking sync.Mutex
	asked  []question  // that were answered with yes; guarded by asking
	crowd  bool        // there were more than are remembered; guarded by asking
	held   []*holding  // guarded by asking
	own    [2]question // what asked begins with, so that most calls need no more
}

type callKey struct{}

// Value implements context.Context.
func (c *Call) Value(key any) any {
	if _, ok := key.(callKey); ok {
		return c
	}
	return c.Context.Value(key)
}

// From gives the call that a handler's context belongs to. Outside a handler it returns a call that may do nothing: no
// principal, no peer, no method.
func From(ctx context.Context) *Call {
	if c, ok := ctx.Value(callKey{}).(*Call); ok {
		return c
	}
	return &Call{Context: ctx}
}

// Detail adds to the record of this call. Values are never secrets; they are cut at 512 bytes.
func (c *Call) Detail(key, value string) {
	if len(value) > 512 {
		value = strings.ToValidUTF8(value[:512], "") // half a character could not be stored, and would cost the call its record
	}
	c.details = append(c.details, key, value)
}

// Identify tells the chain who the caller turned out to be, where the method is public: sign-in.
func (c *Call) Identify(principal, principalType string) { c.who, c.whoType = principal, principalType }

// Tried tells the chain which account a caller tried to be, where the method is public and he could not prove it. If the call is refused it is counted with
// those at the same account; who called stays unknown.
func (c *Call) Tried(principal, principalType string) { c.tried, c.triedAs = principal, principalType }

// Refuse tells the chain that the answer of this call is a refusal, though it is an answer: a page that a person reads. The call is recorded
// and logged as if it had failed with err.
func (c *Call) Refuse(err error) { c.answer = err }

// RestOn has the call succeed only if what it was decided on is so in the transaction of its record: as an effect passes the fence, and against
// the database itself, so that nothing is read but in that transaction. If it is not, its error is the call's. The method must be one that is
// always recorded.
func (c *Call) RestOn(g audit.Ground) { c.ground = g }

// Joins has the call share its event with those of a burst (audit.Outbox.RecordBurst) if it succeeds: calls of the last minute that are like it in
// all that is recorded, but for what each call has of its own. gave is the id of what this one gave, whose SHA-256 goes into the event's digest. The
// method must be one that is always recorded.
func (c *Call) Joins(gave string) { c.gave = gave }

// Audit writes the record of this call inside the transaction of its change: both are stored, or neither. The details come in
// pairs of key and value.
func (c *Call) Audit(ctx context.Context, tx *sqldb.Tx, details ...string) error {
	for i := 0; i+1 < len(details); i += 2 {
		c.Detail(details[i], details[i+1])
	}
	if c.m == nil || c.m.chain.cfg.Recorder == nil {
		return fault.Internal(nil, "a change outside a call has no record")
	}
	if c.audited { // a transaction that is run again writes its record again
		c.event = nil
	}
	ev := c.record()
	succeeded(ev)
	var err error
	c.audited, err = c.append(ctx, tx, ev)
	return err
}

// May reports whether the caller may do something on a resource: for lists, which are filtered row by row.
func (c *Call) May(action string, data bool, name resource.Name) bool {
	if c.Claims == nil || c.m == nil {
		return false
	}
	scope, ok := c.m.chain.cfg.Engine.Resolve(name)
	may := ok && c.m.chain.cfg.Engine.Decide(authz.Query{Principal: c.Principal, Action: action, Data: data, Scope: scope, Run: c.run(), Consumer: c.consumer()}).Allowed
	if may {
		c.remember(question{scope: scope, action: action, data: data})
	}
	return may
}

// consumer reports whether the caller is of that trust class.
func (c *Call) consumer() bool { return c.Claims != nil && c.Claims.HomeClass == authn.Consumer }

// run is the limit that a run token sets, or nil.
func (c *Call) run() *authz.Run {
	if c.Claims == nil || c.Claims.Run == "" {
		return nil
	}
	return &authz.Run{UID: c.Claims.Run, WorkspaceUID: c.Claims.Workspace, Actions: c.Claims.Actions}
}

// identify is the first link: the id under which this call is found again.
func (c *Call) identify() error {
	if v := metadata.ValueFromIncomingContext(c.Context, "x-request-id"); len(v) == 1 && validRequestID(v[0]) {
		c.RequestID = v[0]
	}
	if c.m.chain.cfg.Tracing == nil || c.Method == nil { // else the next link finds the call's trace
		c.untraced()
	}
	if p, ok := svid.PeerFrom(c.Context); ok && !c.m.chain.cfg.Enrolment {
		c.Peer = p
		c.peer, _ = svid.ParseID(p)
	}
	c.Address = c.address()
	return nil
}

// untraced takes the caller's trace id, or makes one.
func (c *Call) untraced() {
	if v := metadata.ValueFromIncomingContext(c.Context, "traceparent"); len(v) == 1 {
		if sc, ok := observe.ParseTraceparent(v[0]); ok {
			c.traceID = sc.TraceID().String()
		}
	}
	if c.traceID == "" {
		var b [16]byte
		_, _ = rand.Read(b[:]) // crypto/rand never fails
		c.traceID = hex.EncodeToString(b[:])
	}
	if c.RequestID == "" {
		c.RequestID = c.traceID
	}
}

func validRequestID(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		b := s[i]
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && b != '-' && b != '_' && b != '.' {
			return false
		}
	}
	return true
}
