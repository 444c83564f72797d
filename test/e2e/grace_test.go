package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// ask makes a call of any shape with an empty message: enough to learn whether a token is let in.
func ask(ctx context.Context, conn *grpc.ClientConn, m *rule.Method) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if !m.ClientStream && !m.ServerStream {
		return conn.Invoke(ctx, m.FullName, &emptypb.Empty{}, &emptypb.Empty{})
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: m.ClientStream, ServerStreams: m.ServerStream}, m.FullName)
	if err != nil {
		return err
	}
	if err := s.SendMsg(&emptypb.Empty{}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_ = s.CloseSend()
	return s.RecvMsg(&emptypb.Empty{})
}

// deliver does what the agent of a run does when it ends: log, output, metrics.
func (p *prey) deliver(t *testing.T, conn *grpc.ClientConn, at int64, text string) error {
	t.Helper()
	agent := computev1.NewAgentRunServiceClient(conn)
	name := p.run.GetName()
	logs, err := agent.AppendLogs(p.with(t, p.key, computev1.AgentRunService_AppendLogs_FullMethodName))
	if err != nil {
		return err
	}
	_ = logs.Send(&computev1.AppendLogsRequest{Name: name, Offset: at, Data: []byte(text)})
	_ = logs.CloseSend()
	if res, err := logs.Recv(); err != nil {
		return fmt.Errorf("log: %w", err)
	} else if res.GetStored() != at+int64(len(text)) {
		return fmt.Errorf("%d bytes of the log are stored", res.GetStored())
	}
	up, err := agent.UploadOutput(p.with(t, p.key, computev1.AgentRunService_UploadOutput_FullMethodName))
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(text))
	_ = up.Send(&computev1.UploadOutputRequest{Name: name, Path: "kept", Size: int64(len(text)), Digest: sum[:], Data: []byte(text)})
	if _, err := up.CloseAndRecv(); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	metrics, err := telemetryv1.NewMetricServiceClient(conn).LogRunData(p.with(t, p.key, telemetryv1.MetricService_LogRunData_FullMethodName))
	if err != nil {
		return err
	}
	_ = metrics.Send(&telemetryv1.LogRunDataRequest{Run: name, BatchId: "late", Metrics: []*telemetryv1.Metric{{Key: "loss", Value: 0.25}}})
	_ = metrics.CloseSend()
	if _, err := metrics.Recv(); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

func (p *prey) beat(t *testing.T, conn *grpc.ClientConn) (bool, error) {
	t.Helper()
	res, err := computev1.NewAgentRunServiceClient(conn).Heartbeat(p.with(t, p.key, computev1.AgentRunService_Heartbeat_FullMethodName), &computev1.HeartbeatRequest{Name: p.run.GetName()})
	return res.GetCancel(), err
}

// beating keeps a run from being lost until stop, also on a slow machine.
func (p *prey) beating(t *testing.T, conn *grpc.ClientConn) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_, _ = p.beat(t, conn)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// A4: the token of a run that was cancelled, or given up as lost, opens what delivers for a while, with the proof of its key, and no other method of
// all contracts; after its report, and after that time, it opens nothing. What is refused is in the activity log.
func TestAttackGrace(t *testing.T) {
	must := mustOf(t)
	uid, token := mesh.User(t, "grace-owner")
	h := newHosted(t, "grace", token)
	give(t, h.workspace, authz.Owner, uid)
	conn := mesh.Dial(t, "")
	rules, err := node.Rules()
	must(err)
	lost, cancelled, silent := h.carry(t, conn), h.carry(t, conn), h.carry(t, conn)
	stopLost, stopCancelled, stopSilent := lost.beating(t, conn), cancelled.beating(t, conn), silent.beating(t, conn)
	thief, err := authn.GenerateKey()
	must(err)
	tried, honoured, delivering := 0, 0, 0

	// all asks every method that asks for a token.
	all := func(p *prey, key func(method string) context.Context, refused func(m *rule.Method, err error)) {
		for _, m := range rules.Methods() {
			if m.Rule.GetPublic() || len(m.Rule.GetCallers()) > 0 || m.Rule.GetDeliver() {
				continue
			}
			err := fault.FromStatus(ask(key(m.FullName), conn, m))
			tried++
			if err == nil {
				honoured++
				t.Errorf("%s is honoured", m.FullName)
				continue
			}
			refused(m, err)
		}
	}
	good := func(p *prey) func(string) context.Context {
		return func(method string) context.Context { return p.with(t, p.key, method) }
	}
	// What serves another gateway's part, or is served by none of those behind it, is not there for anybody.
	served := func(m *rule.Method) bool {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+mesh.Admin(t))
		return fault.Code(fault.FromStatus(ask(ctx, conn, m))) != codes.Unimplemented
	}
	revoked := func(p *prey) {
		t.Helper()
		all(p, good(p), func(m *rule.Method, err error) {
			if fault.ReasonOf(err).String() != "TOKEN_REVOKED" && (fault.Code(err) != codes.Unimplemented || served(m)) {
				t.Errorf("%s: %s is refused with %v", p.run.GetName(), m.FullName, err)
			}
		})
	}
	_, err = h.Runs().CancelRun(t.Context(), &computev1.CancelRunRequest{Name: cancelled.run.GetName()})
	must(err)
	begun := time.Now()
	revoked(cancelled) // everywhere, since CancelRun has returned
	t.Logf("%d methods were tried in %v", tried, time.Since(begun).Round(time.Millisecond))
	if stop, err := cancelled.beat(t, conn); err != nil || !stop {
		t.Errorf("the agent is not told to end: %v", err)
	}
	must(cancelled.deliver(t, conn, 0, "cancelled\n"))
	r, err := computev1.NewAgentRunServiceClient(conn).ReportRun(cancelled.with(t, cancelled.key, computev1.AgentRunService_ReportRun_FullMethodName),
		&computev1.ReportRunRequest{Name: cancelled.run.GetName(), State: computev1.Run_STATE_CANCELED, LogBytes: 10, Outputs: 1})
	if must(err); r.GetState() != computev1.Run_STATE_CANCELED {
		t.Errorf("reported: %v", r)
	}

	stopCancelled()

	// Both of these are silent from now on; who is cancelled and silent gets no more time.
	runs := computev1.NewRunServiceClient(mesh.Dial(t, token))
	state := func(p *prey, want computev1.Run_State) *computev1.Run {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		for {
			r, err := runs.GetRun(ctx, &computev1.GetRunRequest{Name: p.run.GetName()})
			must(err)
			if r.GetState() == want {
				return r
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	_, err = h.Runs().CancelRun(t.Context(), &computev1.CancelRunRequest{Name: silent.run.GetName()})
	must(err)
	asked := time.Now()
	stopSilent()
	stopLost()
	r = state(lost, computev1.Run_STATE_LOST)
	if until := time.Until(r.GetDeliverUntil().AsTime()); until < 3*time.Minute || until > 4*time.Minute {
		t.Errorf("it may deliver for %v", until)
	}
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) { // nobody has waited for this one
		if err := fault.FromStatus(lost.assignment(lost.with(t, lost.key, computev1.AgentRunService_GetAssignment_FullMethodName), conn)); fault.ReasonOf(err).String() == "TOKEN_REVOKED" {
			break
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatal("the token of a lost run opens what it did")
		}
	}
	revoked(lost)
	// The methods that deliver want the proof of the key, and their own run.
	for _, m := range rules.Methods() {
		if !m.Rule.GetDeliver() {
			continue
		}
		delivering++
		used := lost.proof(t, lost.key, mesh.URL, "POST", m.FullName, lost.token, nil)
		_ = ask(dpop(t.Context(), lost.token, used), conn, m)
		for name, ctx := range map[string]context.Context{
			"without a proof":          metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+lost.token),
			"with another key":         lost.with(t, thief, m.FullName),
			"with a proof for another": dpop(t.Context(), lost.token, lost.proof(t, lost.key, mesh.URL, "POST", "/x/Y", lost.token, nil)),
			"with a proof once more":   dpop(t.Context(), lost.token, used),
		} {
			tried++
			if err := fault.FromStatus(ask(ctx, conn, m)); fault.ReasonOf(err).String() != "TOKEN_PROOF_INVALID" {
				t.Errorf("%s, %s: %v", m.FullName, name, err)
			}
		}
	}
	if delivering != 5 {
		t.Errorf("%d methods deliver: log, output, metrics, report, and the word that there is something to deliver", delivering)
	}
	across := *lost
	across.run = silent.run
	if _, err := across.beat(t, conn); err == nil {
		t.Error("it delivers to another run")
	}
	if stop, err := lost.beat(t, conn); err != nil || !stop {
		t.Errorf("the agent that comes back is not told to end: %v", err)
	}
	must(lost.deliver(t, conn, 0, "after the cut\n"))
	r, err = computev1.NewAgentRunServiceClient(conn).ReportRun(lost.with(t, lost.key, computev1.AgentRunService_ReportRun_FullMethodName),
		&computev1.ReportRunRequest{Name: lost.run.GetName(), State: computev1.Run_STATE_COMPLETED, LogBytes: 14, Outputs: 1})
	must(err)
	if r.GetState() != computev1.Run_STATE_LOST || r.GetReportedState() != computev1.Run_STATE_COMPLETED || r.GetDeliverUntil() != nil {
		t.Errorf("reported late: %v", r)
	}
	var log bytes.Buffer
	_, err = h.FollowLogs(t.Context(), lost.run.GetName(), 0, false, &log)
	if must(err); log.String() != "after the cut\n" {
		t.Errorf("log %q", log.String())
	}
	data, err := telemetryv1.NewMetricServiceClient(mesh.Dial(t, token)).GetRunData(t.Context(), &telemetryv1.GetRunDataRequest{Run: lost.run.GetName()})
	if must(err); len(data.GetLatest()) != 1 || data.GetLatest()[0].GetValue() != 0.25 {
		t.Errorf("metrics %v", data)
	}

	// After the report, and after the time of who did not report, nothing is open, and the log of activity says so.
	r = state(silent, computev1.Run_STATE_LOST)
	if until := r.GetDeliverUntil().AsTime(); until.After(asked.Add(31 * time.Second)) {
		t.Errorf("it was cancelled and silent, and may deliver until %v after that", until.Sub(asked))
	}
	time.Sleep(time.Until(r.GetDeliverUntil().AsTime()) + 100*time.Millisecond) // the time itself is what is tried
	type try struct {
		of     *prey
		method string
		id     string
	}
	var tries []try
	for name, p := range map[string]*prey{"reported": lost, "cancelled and reported": cancelled, "over by the clock": silent} {
		for _, m := range rules.Methods() {
			if !m.Rule.GetDeliver() {
				continue
			}
			x := try{p, m.FullName, fmt.Sprintf("grace-%d-%d", len(tries), time.Now().UnixNano())}
			err := fault.FromStatus(ask(metadata.AppendToOutgoingContext(p.with(t, p.key, m.FullName), "x-request-id", x.id), conn, m))
			tried++
			if fault.ReasonOf(err).String() != "TOKEN_REVOKED" {
				t.Errorf("%s: %s: %v", name, m.FullName, err)
				continue
			}
			tries = append(tries, x)
			time.Sleep(120 * time.Millisecond) // not more than are recorded one by one
		}
	}
	activity := telemetryv1.NewActivityServiceClient(mesh.Dial(t, mesh.Admin(t)))
	for _, x := range tries {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for {
			res, err := activity.ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: "/", RequestId: x.id})
			must(err)
			if len(res.GetEvents()) > 0 {
				if ev := res.GetEvents()[0]; ev.GetPrincipal() != uid || ev.GetRunUid() != x.of.run.GetUid() || ev.GetReason() != "TOKEN_REVOKED" || ev.GetResult() != telemetryv1.ActivityEvent_RESULT_DENIED {
					t.Errorf("%s is in the log as %v", x.method, ev)
				}
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		cancel()
	}
	fmt.Printf("attack: %s: tried %d, honoured %d\n", t.Name(), tried, honoured)
}
