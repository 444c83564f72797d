package rpc

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// finish closes the call: its record, its status, its log line, its numbers. Nothing is answered before it.
func (c *Call) finish(err error) error {
	var known *fault.Error
	if err != nil && errors.Is(err, io.EOF) && !errors.As(err, &known) { // what a handler has named is not the caller's stream
		err = fault.InvalidArgument("the stream ended before its first message")
	}
	if c.m.watch {
		err = c.drainedFault(err)
	}
	if ctxErr := c.Context.Err(); err != nil && ctxErr != nil && fault.Code(err) == codes.Internal {
		err = ctxErr // a driver's own word for a call that was given up
	}
	said := err // what is recorded
	if said == nil {
		said = c.answer
	}
	if e := c.settle(said); e != nil {
		err, said = e, e
	}
	// Last of all, since the record may have taken its time. What a change did was let pass at its commit, and its answer tells of that.
	if err == nil && c.m.single && !c.audited {
		if err = c.effect(func() error { return nil }); err != nil {
			err = cmp.Or(c.settle(err), err)
		}
	}
	if c.cancel != nil {
		c.cancel()
	}
	if c.entered {
		c.m.chain.open.Leave(c.Principal)
	}
	took := c.m.chain.cfg.Now().Sub(c.start)
	code := fault.Code(said)
	if c.m.observe != nil {
		c.m.observe.Observe(code, took)
	}
	if c.span != nil {
		if said != nil && c.span.IsRecording() {
			c.span.SetStatus(otelcodes.Error, fault.CodeName(code))
			c.span.SetAttributes(attribute.String("redoubt.reason", fault.ReasonOf(said).String()))
		}
		c.span.End()
	}
	c.write(said, code, took)
	if err == nil {
		return nil
	}
	return fault.ToStatus(err, c.m.chain.domain, c.RequestID).Err()
}

// settle sees to it that what must be recorded is, before the answer. An error here replaces the answer.
func (c *Call) settle(err error) error {
	r := c.m.chain.cfg.Recorder
	if r == nil || c.m.foreign {
		if err == nil && c.ground.On != nil {
			return fault.Internal(nil, "a call rests on a state, and nobody records it")
		}
		return nil
	}
	refused := c.refused(err)
	rests := err == nil && (c.ground.On != nil || c.gave != "")
	if rests && (c.audited || !c.m.always) {
		return fault.Internal(nil, "a call rests on a state or joins others, and has no record to be decided with")
	}
	switch {
	case err == nil && c.audited:
		return nil // in the transaction of the change
	case err == nil && !c.m.always && !c.m.joined && (!c.m.summary || c.count == 0):
		return nil
	case err != nil && !c.m.always && !c.m.summary && !refused:
		return nil
	}
	c.event = nil
	ev := c.record()
	ev.Code = fault.CodeName(fault.Code(err))
	switch {
	case err == nil:
		succeeded(ev)
	case refused:
		ev.Result = telemetryv1.ActivityEvent_RESULT_DENIED
		ev.Reason = fault.ReasonOf(err).String()
	default:
		ev.Result = telemetryv1.ActivityEvent_RESULT_FAILED
		ev.Reason = fault.ReasonOf(err).String()
	}
	if err != nil && !c.named(ev) {
		r.Aggregate(ev)
		return nil
	}
	// The caller may be gone; what happened is recorded all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), 3*time.Second)
	defer cancel()
	record := r.Record
	if rests && c.gave != "" {
		sum := sha256.Sum256([]byte(c.gave))
		ev.Digest = sum[:]
	}
	switch {
	case err == nil && (c.m.joined || c.gave != ""):
		record = func(ctx context.Context, ev *audit.Event) error { return r.RecordBurst(ctx, ev, c.ground) }
	case rests:
		record = func(ctx context.Context, ev *audit.Event) error { return r.RecordOn(ctx, ev, c.ground) }
	}
	e := record(ctx, ev)
	var gone *audit.Withdrawn
	if errors.As(e, &gone) {
		return cmp.Or(c.settle(gone.Err), gone.Err)
	}
	if e != nil {
		return fault.Wrap(errors.Join(e, err), codes.Unavailable, faultv1.Reason_AUDIT_UNAVAILABLE, "the record of this call could not be stored, so it has no answer; repeat it when the storage of %s is well again", c.m.chain.cfg.Service)
	}
	return nil
}

// named reports whether the refusal of a caller is recorded by itself. Those of strangers are counted. So are those of somebody who holds a
// token and may not use it, where there are too many of them: that takes nothing from whose token it is, and fills no log.
func (c *Call) named(ev *audit.Event) bool {
	if c.PeerService != "" && c.PeerService != Gateway {
		return true
	}
	if c.suspect != nil {
		return c.m.chain.suspects.Allow(c.suspect.Subject+" "+c.suspect.Run, c.start) == 0
	}
	return ev.GetPrincipal() != "" && !c.onlyTried()
}

// onlyTried reports whether all that is known of the caller is whom he tried to be.
func (c *Call) onlyTried() bool {
	return c.tried != "" && c.who == "" && c.Principal == "" && c.suspect == nil
}

// refused reports whether err is a refusal, which the activity log keeps for every method.
func (c *Call) refused(err error) bool {
	if err == nil {
		return false
	}
	switch fault.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return true
	}
	return c.denied
}

func succeeded(ev *audit.Event) {
	ev.Result, ev.Code = telemetryv1.ActivityEvent_RESULT_SUCCEEDED, codes.OK.String()
}

// record makes the event of this call.
func (c *Call) record() *audit.Event {
	if c.event != nil {
		return c.event
	}
	ev := &audit.Event{
		Uid: resource.NewUID("evt"), Time: timestamppb.New(c.start), Service: c.m.chain.cfg.Service, Method: c.Method.FullName,
		Action: c.Method.Rule.GetAction(), Peer: c.Peer, RequestId: c.RequestID, TraceId: c.traceID, Address: c.Address, Count: 1,
		Principal: c.Principal, Scope: resource.Root,
	}
	if !c.Scope.Name.IsZero() {
		ev.Scope, ev.ScopeUid = c.Scope.Name.String(), c.Scope.UID
		ev.SubscriptionUid, ev.ResourceGroupUid, ev.WorkspaceUid = c.Scope.SubscriptionUID, c.Scope.ResourceGroupUID, c.Scope.WorkspaceUID
	}
	if c.Claims != nil {
		ev.PrincipalType, ev.RunUid = c.Claims.PrincipalType, c.Claims.Run
		for a := c.Claims.Actor; a != nil; a = a.Actor {
			ev.Actors = append(ev.Actors, a.Subject)
		}
	}
	if c.suspect != nil {
		ev.Principal, ev.PrincipalType, ev.RunUid = c.suspect.Subject, c.suspect.PrincipalType, c.suspect.Run
	}
	if c.who != "" {
		ev.Principal, ev.PrincipalType = c.who, c.whoType
	}
	if c.onlyTried() {
		ev.Principal, ev.PrincipalType = c.tried, c.triedAs
	}
	if c.count > 0 {
		ev.Count, ev.Digest = c.count, c.digest.sum()
	}
	home := c.Claims != nil && c.Claims.HomeIssuer != ""
	if len(c.details) > 0 || home {
		ev.Details = make(map[string]string, len(c.details)/2+2)
		for i := 0; i+1 < len(c.details); i += 2 {
			ev.Details[c.details[i]] = c.details[i+1]
		}
	}
	if home { // after the details, which must not say another
		ev.Details["home_iss"], ev.Details["home_sub"] = c.Claims.HomeIssuer, c.Claims.HomeSubject
	}
	c.event = ev
	return ev
}

// write logs the call: denials, errors, changes and slow calls always, of the other reads one in n.
func (c *Call) write(err error, code codes.Code, took time.Duration) {
	l := &c.m.chain.cfg.Limits
	level := slog.LevelInfo
	switch {
	case code == codes.Internal || code == codes.DataLoss || code == codes.Unknown:
		level = slog.LevelError
	case err == nil && !c.m.always && !c.audited && took < l.Slow && !c.m.chain.reads.every(l.LogReads):
		return
	}
	if !c.m.log.Enabled(c, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("request_id", c.RequestID), slog.String("code", fault.CodeName(code)), slog.Duration("took", took),
		slog.String("peer", c.Peer), slog.String("principal", c.Principal), slog.String("address", c.Address))
	if !c.Scope.Name.IsZero() {
		attrs = append(attrs, slog.String("scope_uid", c.Scope.UID))
	}
	if err != nil {
		attrs = append(attrs, slog.String("reason", fault.ReasonOf(err).String()))
		if level == slog.LevelError {
			attrs = append(attrs, slog.String("error", err.Error()))
		}
	}
	c.m.log.LogAttrs(c, level, "call", attrs...)
}

// panicked turns a panic of a handler into an error; the stack goes to the log only.
func (c *Call) panicked(p any) error {
	c.m.log.LogAttrs(c, slog.LevelError, "panic", slog.String("request_id", c.RequestID), slog.String("panic", fmt.Sprint(p)), slog.String("stack", string(debug.Stack())))
	return fault.Internal(fmt.Errorf("panic: %v", p), "internal fault; the request id finds it in the log")
}

// digester hashes what passed in a stream: each message's length and bytes, in order.
type digester struct {
	h   hash.Hash
	buf []byte
}

func (d *digester) add(m proto.Message) {
	if d.h == nil {
		d.h = sha256.New()
	}
	var err error
	d.buf, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(d.buf[:0], m)
	if err != nil {
		return
	}
	n := len(d.buf)
	d.h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	d.h.Write(d.buf)
}

func (d *digester) sum() []byte {
	if d.h == nil {
		return nil
	}
	return d.h.Sum(nil)
}
