package flow

import (
	"context"
	"errors"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// The bounds of a deployment where it says nothing.
const (
	defaultMaxBody = 10 << 20
	defaultTimeout = 30 * time.Second
)

// Call is one request on its way. One goroutine has it.
type Call struct {
	// Way is what all requests share.
	Way *Way
	// Begin is by the wall clock and the monotonic one: deadlines are sockets'.
	Begin time.Time
	// ID is the request's id.
	ID string
	// Endpoint is what the request names; nil where there is none.
	Endpoint *State
	// Who decides who the caller is, now and for a state of the endpoint that comes later.
	Who    func(*State) (Caller, *Refusal)
	Caller Caller
	// Wanted is the deployment that was asked for by its id, "" for the split.
	Wanted string
	// Deployment is the one that was chosen, nil before Choose.
	Deployment *Deployment
	// Body is what the worker gets.
	Body *pool.Body
	// Whole says that all of the body has come.
	Whole bool
	// Received is how many bytes of the body have come, and Size how many that was, unpacked.
	Received, Size int64
	// Record is what the log gets, and Logged says that it has it.
	Record *Record
	Logged bool

	protocol string
	trace    observe.Incoming
	span     trace.Span
	fits     func(*Deployment) bool
	deadline time.Time
	reserved int64
	pooled   bool // Body is of Way.bodies
	conn     *pool.Conn
	model    int // status of the model
}

// NewCall begins a call: traceparent is the caller's word, requestID too. End has to be called.
func (s *Way) NewCall(protocol, requestID, traceparent string) *Call {
	c := &Call{Way: s, Begin: time.Now(), protocol: protocol, trace: s.cfg.Tracing.Accept(traceparent, false)}
	if validID(requestID) {
		c.ID = requestID
	} else {
		c.ID = c.trace.Parent.TraceID().String()
	}
	c.Record, _ = s.records.Get().(*Record)
	return c
}

// validID is what a request id may be, as on every port of the mesh.
func validID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// End gives back what the call holds. The answer is on its way by then.
func (c *Call) End() {
	if c.conn != nil {
		c.conn.Release()
	}
	if c.span != nil {
		c.span.End()
	}
	if c.pooled && c.Body.Cap() <= smallBody {
		c.Way.bodies.Put(c.Body)
	}
	if c.reserved > 0 {
		c.Way.inFlight.Add(-c.reserved)
	}
	c.Record.Reset()
	c.Way.records.Put(c.Record)
}

// Admit decides whether the caller may come in.
func (c *Call) Admit(who func(*State) (Caller, *Refusal)) *Refusal {
	c.Who = who
	var r *Refusal
	c.Caller, r = who(c.Endpoint)
	return r
}

// Choose settles which deployment answers.
func (c *Call) Choose() *Refusal {
	d, r := c.pick(c.Endpoint)
	if r != nil {
		return r
	}
	c.Deployment = d
	return nil
}

func (c *Call) pick(e *State) (*Deployment, *Refusal) {
	if c.Wanted != "" {
		d, ok := e.Deployments[c.Wanted]
		if !ok {
			return nil, Refuse(http.StatusNotFound, codes.NotFound, faultv1.Reason_DEPLOYMENT_MISSING, "the endpoint has no deployment of the name that was asked for")
		}
		if c.fits != nil && !c.fits(d) {
			return nil, unknownModel()
		}
		return d, nil
	}
	total := e.total
	if c.fits != nil {
		total = 0
		for _, share := range e.Traffic {
			if d := e.Deployments[share.Deployment]; d != nil && c.fits(d) {
				total += share.Percent
			}
		}
	}
	if total > 0 {
		n := 0
		if len(e.Traffic) > 1 {
			n = c.Way.cfg.IntN(total)
		}
		for _, share := range e.Traffic {
			d := e.Deployments[share.Deployment]
			if d == nil || c.fits != nil && !c.fits(d) {
				continue
			}
			if n -= share.Percent; n < 0 {
				return d, nil
			}
		}
	}
	if c.fits != nil && e.total > 0 {
		return nil, unknownModel()
	}
	return nil, Refuse(http.StatusNotFound, codes.NotFound, faultv1.Reason_DEPLOYMENT_MISSING,
		"the endpoint has no deployment that traffic goes to: deploy a model to it, or give a deployment a share of the traffic")
}

func unknownModel() *Refusal {
	return NotFound("the endpoint serves no such model or version")
}

// stillMay looks at the endpoint once more, now that the request has come whole or has waited: what was changed in the meantime counts.
func (c *Call) stillMay() *Refusal {
	now, _ := c.Way.Endpoint(c.Endpoint.UID)
	if now == c.Endpoint {
		return nil
	}
	var r *Refusal
	if c.Caller, r = c.Who(now); r != nil {
		return r
	}
	c.Endpoint = now
	if d, ok := now.Deployments[c.Deployment.ID]; ok && d.UID == c.Deployment.UID && (c.Wanted != "" || now.hasTraffic(d.ID)) {
		c.Deployment = d
		return nil
	}
	d, r := c.pick(now)
	if r != nil {
		return r
	}
	c.Deployment = d
	return nil
}

// MayAnswer decides once more, before an answer or a piece of one leaves: what a credential asked for that was withdrawn meanwhile is not told any
// more. The worker has done its work by then.
func (c *Call) MayAnswer() *Refusal {
	if c.Endpoint == nil || c.Who == nil {
		return nil // nobody was let in, and nothing is told
	}
	now, _ := c.Way.Endpoint(c.Endpoint.UID)
	if now == c.Endpoint {
		return nil
	}
	_, r := c.Who(now)
	return r
}

func (e *State) hasTraffic(id string) bool {
	for _, share := range e.Traffic {
		if share.Deployment == id && share.Percent > 0 {
			return true
		}
	}
	return false
}

// Forward sends the request to a worker and gives the head of its answer. The worker is the call's until End.
func (c *Call) Forward(ctx context.Context, req *pool.Request) (*pool.Response, *Refusal) {
	if c.trace.Sampled() {
		ctx, c.span = c.Way.cfg.Tracing.Start(ctx, c.trace, "score", trace.SpanKindServer, attribute.String("redoubt.endpoint", c.Endpoint.UID))
	}
	req.ID, req.Traceparent, req.Body = c.ID, observe.FormatTraceparent(c.trace.Parent), c.Body
	start := time.Now()
	c.deadline = start.Add(c.Deployment.timeout())
	for {
		conn, err := c.Way.cfg.Pool.Acquire(ctx, c.Deployment.UID, c.deadline)
		if err == nil {
			c.conn = conn
		}
		was := c.Deployment
		if r := c.stillMay(); r != nil {
			return nil, r
		}
		switch {
		case err == nil && c.Deployment.UID == was.UID:
		case err == nil:
			conn.Release()
			c.conn = nil
			continue
		case errors.Is(err, pool.ErrRetired) && c.Deployment.UID != was.UID:
			continue
		default:
			return nil, c.unserved(ctx, err)
		}
		if limit := c.Deployment.BodyLimit(); c.Size > limit {
			return nil, TooLarge(limit)
		}
		setDuration(&c.Record.queued, time.Since(start))
		c.Record.Queued = &c.Record.queued
		c.Record.ReplicaUid = conn.Run()
		resp, err := conn.Exchange(req, c.deadline)
		switch {
		case err == nil:
			c.model = resp.Status
			return resp, nil
		case errors.Is(err, pool.ErrUnsent):
			conn.Close()
			conn.Release()
			c.conn = nil
			continue
		}
		return nil, ExchangeFailed(err)
	}
}

// unserved says why there was no worker.
func (c *Call) unserved(ctx context.Context, err error) *Refusal {
	switch {
	case errors.Is(err, pool.ErrFull):
		return Again(Refuse(http.StatusServiceUnavailable, codes.ResourceExhausted, faultv1.Reason_QUEUE_FULL,
			"as many requests wait for this deployment as may: come back later, or give it more workers"), time.Second)
	case errors.Is(err, pool.ErrLate):
		return Again(Refuse(http.StatusGatewayTimeout, codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED,
			"no worker came free within the deployment's request timeout: come back later, or give it more workers"), time.Second)
	case ctx.Err() != nil:
		return Gone()
	}
	return NoReplica()
}

// BodyLimit is how large a body may be, unpacked.
func (d *Deployment) BodyLimit() int64 {
	if d.MaxBodyBytes <= 0 {
		return defaultMaxBody
	}
	return d.MaxBodyBytes
}

func (d *Deployment) timeout() time.Duration {
	if d.Timeout <= 0 {
		return defaultTimeout
	}
	return d.Timeout
}

// Release gives the worker back, as soon as all of its answer has been read and nothing more is wanted of the Response.
func (c *Call) Release() {
	if c.conn != nil {
		c.conn.Release()
		c.conn = nil
	}
}

// Abandon closes the connection of the worker, whose answer nobody will read.
func (c *Call) Abandon() {
	if c.conn != nil {
		c.conn.Close()
		c.Release()
	}
}

// Ready settles on a deployment and tells whether a worker of it is connected.
func (c *Call) Ready() bool {
	return c.Choose() == nil && c.Way.Workers(c.Deployment.UID) > 0
}

// Versions are those of the model that the endpoint serves.
func (c *Call) Versions() []string {
	list := []string{}
	seen := make(map[string]struct{})
	for _, share := range c.Endpoint.Traffic {
		d := c.Endpoint.Deployments[share.Deployment]
		if d == nil || c.fits != nil && !c.fits(d) {
			continue
		}
		if _, ok := seen[d.ModelVersion]; !ok {
			seen[d.ModelVersion] = struct{}{}
			list = append(list, d.ModelVersion)
		}
	}
	return list
}

// Log hands over the record of the call. It is called once, before the last byte of the answer.
func (c *Call) Log(status int, responseBytes int64, r *Refusal) {
	if c.Logged {
		return
	}
	c.Logged = true
	e := c.Endpoint
	if e == nil {
		c.Way.CountUnknown()
		return
	}
	rec := c.Record
	took := time.Since(c.Begin)
	setDuration(&rec.duration, took)
	at := c.Way.cfg.Now().Add(-took)
	rec.time.Seconds, rec.time.Nanos = at.Unix(), int32(at.Nanosecond())
	rec.Duration, rec.Time = &rec.duration, &rec.time
	rec.ComputeType, rec.WorkspaceUid, rec.EndpointUid = computeType(e.Kind), e.WorkspaceUID, e.UID
	rec.RequestId, rec.Protocol = c.ID, c.protocol
	traceID := c.trace.Parent.TraceID()
	if rec.TraceId = c.ID; len(c.ID) != 2*len(traceID) || c.ID != traceID.String() {
		rec.TraceId = traceID.String()
	}
	rec.StatusCode, rec.ModelStatusCode = int32(status), int32(c.model)
	rec.Auth, rec.Principal = c.Caller.Label, c.Caller.Principal
	if c.Deployment != nil {
		rec.Deployment = c.Deployment.ID
	}
	rec.RequestBytes, rec.ResponseBytes = c.Received, responseBytes
	if r != nil {
		rec.Reason = fault.ReasonOf(r.Error).String()
	}
	c.Way.cfg.Log.Append(&rec.ScoringRequest)
}
