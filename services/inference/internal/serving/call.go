package serving

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

// call is one request on its way. One goroutine has it.
type call struct {
	s        *Server
	begin    time.Time // of the wall clock and the monotonic one: deadlines are sockets'
	protocol string
	id       string
	trace    observe.Incoming
	span     trace.Span

	endpoint *endpoint
	// who decides anew for a state of the endpoint that came later.
	who    func(*endpoint) (caller, *refusal)
	caller caller

	wanted     string // the deployment that was asked for by its id
	fits       func(*Deployment) bool
	deployment *Deployment
	deadline   time.Time

	body     *pool.Body
	reserved int64
	pooled   bool  // body is of s.bodies
	whole    bool  // all of it has come
	size     int64 // of what came, unpacked

	conn     *pool.Conn
	rec      *record
	logged   bool
	model    int // status of the model
	received int64
}

// newCall begins a call: traceparent is the caller's word, requestID too.
func (s *Server) newCall(protocol, requestID, traceparent string) *call {
	c := &call{s: s, begin: time.Now(), protocol: protocol, trace: s.cfg.Tracing.Accept(traceparent, false)}
	if validID(requestID) {
		c.id = requestID
	} else {
		c.id = c.trace.Parent.TraceID().String()
	}
	c.rec, _ = s.records.Get().(*record)
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

// end gives back what the call holds. The answer is on its way by then.
func (c *call) end() {
	if c.conn != nil {
		c.conn.Release()
	}
	if c.span != nil {
		c.span.End()
	}
	if c.pooled && c.body.Cap() <= smallBody {
		c.s.bodies.Put(c.body)
	}
	if c.reserved > 0 {
		c.s.inFlight.Add(-c.reserved)
	}
	c.rec.Reset()
	c.s.records.Put(c.rec)
}

// admit decides whether the caller may come in.
func (c *call) admit(who func(*endpoint) (caller, *refusal)) *refusal {
	c.who = who
	var r *refusal
	c.caller, r = who(c.endpoint)
	return r
}

// choose settles which deployment answers.
func (c *call) choose() *refusal {
	d, r := c.pick(c.endpoint)
	if r != nil {
		return r
	}
	c.deployment = d
	return nil
}

func (c *call) pick(e *endpoint) (*Deployment, *refusal) {
	if c.wanted != "" {
		d, ok := e.Deployments[c.wanted]
		if !ok {
			return nil, refuse(http.StatusNotFound, codes.NotFound, faultv1.Reason_DEPLOYMENT_MISSING, "the endpoint has no deployment of the name that was asked for")
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
			n = c.s.cfg.IntN(total)
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
	return nil, refuse(http.StatusNotFound, codes.NotFound, faultv1.Reason_DEPLOYMENT_MISSING,
		"the endpoint has no deployment that traffic goes to: deploy a model to it, or give a deployment a share of the traffic")
}

func unknownModel() *refusal {
	return notFound("the endpoint serves no such model or version")
}

// stillMay looks at the endpoint once more, now that the request has come whole or has waited: what was changed in the meantime counts.
func (c *call) stillMay() *refusal {
	now, _ := c.s.endpoint(c.endpoint.UID)
	if now == c.endpoint {
		return nil
	}
	var r *refusal
	if c.caller, r = c.who(now); r != nil {
		return r
	}
	c.endpoint = now
	if d, ok := now.Deployments[c.deployment.ID]; ok && d.UID == c.deployment.UID && (c.wanted != "" || now.hasTraffic(d.ID)) {
		c.deployment = d
		return nil
	}
	d, r := c.pick(now)
	if r != nil {
		return r
	}
	c.deployment = d
	return nil
}

func (e *endpoint) hasTraffic(id string) bool {
	for _, share := range e.Traffic {
		if share.Deployment == id && share.Percent > 0 {
			return true
		}
	}
	return false
}

// forward sends the request to a worker and gives the head of its answer. The worker is the call's until end.
func (c *call) forward(ctx context.Context, req *pool.Request) (*pool.Response, *refusal) {
	if c.trace.Sampled() {
		ctx, c.span = c.s.cfg.Tracing.Start(ctx, c.trace, "score", trace.SpanKindServer, attribute.String("redoubt.endpoint", c.endpoint.UID))
	}
	req.ID, req.Traceparent, req.Body = c.id, observe.FormatTraceparent(c.trace.Parent), c.body
	start := time.Now()
	c.deadline = start.Add(c.deployment.timeout())
	for {
		conn, err := c.s.pool.Acquire(ctx, c.deployment.UID, c.deadline)
		if err == nil {
			c.conn = conn
		}
		was := c.deployment
		if r := c.stillMay(); r != nil {
			return nil, r
		}
		switch {
		case err == nil && c.deployment.UID == was.UID:
		case err == nil:
			conn.Release()
			c.conn = nil
			continue
		case errors.Is(err, pool.ErrRetired) && c.deployment.UID != was.UID:
			continue
		default:
			return nil, c.unserved(ctx, err)
		}
		if limit := c.deployment.bodyLimit(); c.size > limit {
			return nil, tooLarge(limit)
		}
		setDuration(&c.rec.queued, time.Since(start))
		c.rec.Queued = &c.rec.queued
		c.rec.ReplicaUid = conn.Run()
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
		return nil, exchangeFailed(err)
	}
}

// unserved says why there was no worker.
func (c *call) unserved(ctx context.Context, err error) *refusal {
	switch {
	case errors.Is(err, pool.ErrFull):
		return again(refuse(http.StatusServiceUnavailable, codes.ResourceExhausted, faultv1.Reason_QUEUE_FULL,
			"as many requests wait for this deployment as may: come back later, or give it more workers"), time.Second)
	case errors.Is(err, pool.ErrLate):
		return again(refuse(http.StatusGatewayTimeout, codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED,
			"no worker came free within the deployment's request timeout: come back later, or give it more workers"), time.Second)
	case ctx.Err() != nil:
		return gone()
	}
	return noReplica()
}

func (d *Deployment) bodyLimit() int64 {
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

// log hands over the record of the call. It is called once, before the last byte of the answer.
func (c *call) log(status int, responseBytes int64, r *refusal) {
	if c.logged {
		return
	}
	c.logged = true
	e := c.endpoint
	if e == nil {
		c.s.unknown.Add(1)
		return
	}
	rec := c.rec
	took := time.Since(c.begin)
	setDuration(&rec.duration, took)
	at := c.s.cfg.Now().Add(-took)
	rec.time.Seconds, rec.time.Nanos = at.Unix(), int32(at.Nanosecond())
	rec.Duration, rec.Time = &rec.duration, &rec.time
	rec.ComputeType, rec.WorkspaceUid, rec.EndpointUid = computeType(e.Kind), e.WorkspaceUID, e.UID
	rec.RequestId, rec.Protocol = c.id, c.protocol
	traceID := c.trace.Parent.TraceID()
	if rec.TraceId = c.id; len(c.id) != 2*len(traceID) || c.id != traceID.String() {
		rec.TraceId = traceID.String()
	}
	rec.StatusCode, rec.ModelStatusCode = int32(status), int32(c.model)
	rec.Auth, rec.Principal = c.caller.label, c.caller.principal
	if c.deployment != nil {
		rec.Deployment = c.deployment.ID
	}
	rec.RequestBytes, rec.ResponseBytes = c.received, responseBytes
	if r != nil {
		rec.Reason = fault.ReasonOf(r.Error).String()
	}
	c.s.cfg.Log.Append(&rec.ScoringRequest)
}
