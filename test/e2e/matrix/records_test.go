package matrix

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func prover(t *testing.T) *authn.Prover {
	t.Helper()
	p, err := authn.NewProver(newKey(t), nil)
	must(t, err)
	return p
}

// kind is what anonymous refusals are counted by.
type kind struct{ method, code, reason string }

// log is what the activity log says.
type activity struct {
	byRequest map[string][]*telemetryv1.ActivityEvent // request id and method
	counts    map[kind]int64                          // of those that nobody knows
}

func (f *fixture) activity(t *testing.T) activity {
	t.Helper()
	a := activity{map[string][]*telemetryv1.ActivityEvent{}, map[kind]int64{}}
	req := &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1000, StartTime: timestamppb.New(started)}
	for {
		r, err := telemetryv1.NewActivityServiceClient(f.admin).ListActivity(t.Context(), req)
		must(t, err)
		for _, ev := range r.GetEvents() {
			if ev.GetDetails()["callers"] == "unknown" {
				a.counts[kind{ev.GetMethod(), ev.GetCode(), ev.GetReason()}] += ev.GetCount()
				continue
			}
			key := ev.GetRequestId() + " " + ev.GetMethod()
			a.byRequest[key] = append(a.byRequest[key], ev)
		}
		if req.PageToken = r.GetNextPageToken(); req.PageToken == "" {
			return a
		}
	}
}

// records holds every cell to its record: one event with who, what and why; or, where nobody is known, one more in the count of its
// kind; or none, for reads that succeeded. Records are delivered after the answer, so it asks until they are there.
func (f *fixture) records(t *testing.T, cells []cell) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for {
		wrong := f.activity(t).compare(cells)
		if len(wrong) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			for name, what := range wrong {
				t.Errorf("%s: %s", name, what)
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	// Nothing that was expected to leave no record may leave one later: the relay is in order, and what came before is there.
	fmt.Printf("matrix: the records of %d cells are as they should be\n", len(cells))
}

// genuine are the reasons for which a token is refused that identity has signed: its record says whose it is.
var genuine = map[faultv1.Reason]bool{
	faultv1.Reason_TOKEN_EXPIRED: true, faultv1.Reason_TOKEN_AUDIENCE: true, faultv1.Reason_TOKEN_PROOF_INVALID: true, faultv1.Reason_TOKEN_REVOKED: true,
	faultv1.Reason_PEER_MAY_NOT_FORWARD: true,
}

// shares reports whether successful calls may share a record with others of a burst.
func shares(m method) bool {
	return m.FullName == identityv1.TokenService_IssueToken_FullMethodName || m.Rule.GetAudit() == rulev1.Audit_AUDIT_SUMMARY && !m.ClientStream && !m.ServerStream
}

// any reports whether a call of the method that succeeded has a record.
func (a activity) any(method string) bool {
	for _, list := range a.byRequest {
		for _, ev := range list {
			if ev.GetMethod() == method && ev.GetResult() == telemetryv1.ActivityEvent_RESULT_SUCCEEDED {
				return true
			}
		}
	}
	return false
}

func (a activity) compare(cells []cell) map[string]string {
	wrong := map[string]string{}
	anonymous := map[kind]int64{}
	succeeded := map[string]string{} // methods whose calls may share a record, and a cell of each
	for _, c := range cells {
		got := a.byRequest[c.requestID+" "+c.m.FullName]
		recorded := c.m.Rule.GetAudit() != rulev1.Audit_AUDIT_DENIALS
		w := c.want
		if shares(c.m) {
			// One that succeeded may be the first of a burst, or one of many that share a record.
			recorded = w.code == codes.OK && len(got) > 0
			if w.code == codes.OK {
				succeeded[c.m.FullName] = c.name
			}
		}
		switch {
		case w.code != codes.OK && w.silent && !recorded:
			recorded = false
		case w.code != codes.OK && c.c.anonymous() && genuine[w.reason] && len(got) > 0:
			recorded = true // by itself; of those that come faster than ten a second, the others are counted
			if got[0].GetPrincipal() == "" {
				wrong[c.name] = "the record does not say whose token it was"
			}
		case w.code != codes.OK && c.c.anonymous():
			anonymous[kind{c.m.FullName, fault.CodeName(w.code), w.reason.String()}]++
			recorded = false
		case w.code != codes.OK:
			recorded = true
		}
		switch {
		case !recorded && len(got) > 0:
			wrong[c.name] = fmt.Sprintf("has a record, and should have none: %v", got[0])
		case recorded && len(got) != 1:
			wrong[c.name] = fmt.Sprintf("has %d records, and should have 1", len(got))
		case recorded:
			if what := c.differs(got[0]); what != "" {
				wrong[c.name] = what
			}
		}
	}
	for method, name := range succeeded {
		if !a.any(method) {
			wrong[name] = "none of its kind has a record"
		}
	}
	for k, n := range anonymous {
		if a.counts[k] < n {
			wrong[fmt.Sprintf("%s by nobody known, %s", k.method, k.reason)] = fmt.Sprintf("%d counted of %d", a.counts[k], n)
		}
	}
	return wrong
}

// differs says what is wrong about the record of a cell.
func (c cell) differs(ev *telemetryv1.ActivityEvent) string {
	result, reason := telemetryv1.ActivityEvent_RESULT_SUCCEEDED, ""
	if c.want.code != codes.OK {
		result, reason = telemetryv1.ActivityEvent_RESULT_DENIED, c.want.reason.String()
		if c.want.silent {
			result = telemetryv1.ActivityEvent_RESULT_FAILED
		}
	}
	switch {
	case ev.GetResult() != result || ev.GetCode() != fault.CodeName(c.want.code) || ev.GetReason() != reason:
		return fmt.Sprintf("the record says %v %v %q, not %v %v %q", ev.GetResult(), ev.GetCode(), ev.GetReason(), result, fault.CodeName(c.want.code), reason)
	case c.c.uid != "" && ev.GetPrincipal() != c.c.uid:
		return fmt.Sprintf("the record names %q, not %q", ev.GetPrincipal(), c.c.uid)
	case ev.GetPeer() != c.c.peer:
		return fmt.Sprintf("the record has peer %q, not %q", ev.GetPeer(), c.c.peer)
	case ev.GetService() != c.m.service || ev.GetAction() != c.m.Rule.GetAction() || ev.GetTime() == nil || ev.GetScope() == "":
		return fmt.Sprintf("the record is not whole: %v", ev)
	}
	return ""
}
