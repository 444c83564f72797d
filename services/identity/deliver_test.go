package identity

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
)

func (l *lab) revokeRun(run string, until *timestamppb.Timestamp) {
	l.t.Helper()
	_, err := identityv1.NewTokenServiceClient(l.service("compute")).RevokeRun(l.t.Context(), &identityv1.RevokeRunRequest{RunUid: run, WorkspaceUid: "ws_1", DeliverUntil: until})
	must(l.t, err)
}

// present waits until a follower has heard of what is so now.
func (f *follower) present(t *testing.T) {
	t.Helper()
	for len(f.heard) > 0 {
		<-f.heard
	}
	f.until(t, "heartbeat", heartbeat) // which may have been on its way
	f.until(t, "heartbeat", heartbeat)
}

// A4, A3: every service learns that a run may only deliver, and until when, by the change and by the full state; what is said later only narrows it,
// and identity itself gives nothing more for the run.
func TestOthersLearnWhatRunsDeliver(t *testing.T) {
	l := newLab(t)
	alice := l.addUser("alice")
	a := l.enrolledAgent(alice.GetUid(), "run_1")
	join, err := l.agentJoin(alice.GetUid(), "run_2")
	must(t, err)
	at := l.now()
	until := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(at.Add(d)) }
	early := l.follow("compute")
	early.until(t, "full state", complete)
	delivers := func(name string, f *follower, want bool) {
		t.Helper()
		f.present(t)
		if _, err := f.verifier.VerifyDelivery(t.Context(), a.token, issuer); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := f.verifier.Verify(t.Context(), a.token, issuer); err == nil {
			t.Errorf("%s: the token opens what does not deliver", name)
		}
	}
	l.revokeRun("run_1", until(4*time.Minute))
	l.revokeRun("run_2", until(4*time.Minute))
	delivers("by the change", early, true)
	late := l.follow("telemetry")
	late.until(t, "full state", complete)
	delivers("by the full state", late, true)
	l.advance(time.Second)

	_, err = l.renew(a)
	want(t, "another token", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = l.exchange("compute", a.token, "workspace")
	want(t, "a token for another service", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = l.whoAmI(a.token)
	if err == nil {
		t.Error("it says who it is")
	}
	_, err = l.enrolAgent(join, csr(t, newKey(t)))
	want(t, "an agent that comes late", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
	_, err = l.agentJoin(alice.GetUid(), "run_1")
	want(t, "another agent", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)

	l.revokeRun("run_1", until(8*time.Minute)) // takes nothing back
	l.advance(4*time.Minute - 2*time.Second)
	delivers("just in time", early, true)
	l.advance(time.Second)
	delivers("by the clock", early, false)
	delivers("by the clock, from the full state", late, false)
	last := l.follow("workspace")
	last.until(t, "full state", complete)
	delivers("who comes after it", last, false)
	if until := last.engine.Revocations().DeliversUntil("run_1"); !until.Equal(at.Add(4 * time.Minute)) {
		t.Errorf("it is said to deliver until %v", until.Sub(at))
	}
}

// A4: the end of the time to deliver, by a report, is in force at once; and a time that makes no sense is none, or is cut.
func TestWhatRunsDeliverEnds(t *testing.T) {
	l := newLab(t)
	alice := l.addUser("alice")
	f := l.follow("compute")
	f.until(t, "full state", complete)
	for name, tc := range map[string]struct {
		until func() *timestamppb.Timestamp
		then  func(run string)
		want  time.Duration // 0 is none
	}{
		"in bounds":          {until: func() *timestamppb.Timestamp { return timestamppb.New(l.now().Add(time.Minute)) }, want: time.Minute},
		"then reported":      {until: func() *timestamppb.Timestamp { return timestamppb.New(l.now().Add(time.Minute)) }, then: func(run string) { l.revokeRun(run, nil) }},
		"of the past":        {until: func() *timestamppb.Timestamp { return timestamppb.New(l.now().Add(-time.Second)) }},
		"now":                {until: func() *timestamppb.Timestamp { return timestamppb.New(l.now()) }},
		"absent":             {until: func() *timestamppb.Timestamp { return nil }},
		"malformed":          {until: func() *timestamppb.Timestamp { return &timestamppb.Timestamp{Seconds: 1 << 60} }},
		"longer than it may": {until: func() *timestamppb.Timestamp { return timestamppb.New(l.now().Add(48 * time.Hour)) }, want: authn.MaxDelivery},
	} {
		t.Run(name, func(t *testing.T) {
			run := "run_" + strings.ReplaceAll(name, " ", "_")
			token := l.enrolledAgent(alice.GetUid(), run).token
			l.revokeRun(run, tc.until())
			if tc.then != nil {
				tc.then(run)
			}
			f.present(t)
			if got := f.engine.Revocations().DeliversUntil(run); tc.want == 0 != got.IsZero() || tc.want > 0 && !got.Equal(l.now().Add(tc.want)) {
				t.Errorf("until %v", got)
			}
			if _, err := f.verifier.VerifyDelivery(t.Context(), token, issuer); (err == nil) != (tc.want > 0) {
				t.Errorf("deliver: %v", err)
			}
		})
	}
}

// A4: a run has one join token that nobody has come with. Whoever asks for another has lost the answer with the one before; when an agent has come
// there is none any more.
func TestJoinTokenIsMadeAnew(t *testing.T) {
	l := newLab(t)
	alice := l.addUser("alice")
	lost, err := l.agentJoin(alice.GetUid(), "run_1")
	must(t, err)
	other, err := l.agentJoin(alice.GetUid(), "run_2")
	must(t, err)
	second, err := l.agentJoin(alice.GetUid(), "run_1")
	must(t, err)
	_, err = l.enrolAgent(lost, csr(t, newKey(t)))
	want(t, "the lost one", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
	key := newKey(t)
	for range 2 { // its own answer may be lost too
		_, err = l.enrolAgent(second, csr(t, key))
		must(t, err)
	}
	_, err = l.enrolAgent(second, csr(t, newKey(t)))
	want(t, "a second key", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
	_, err = l.agentJoin(alice.GetUid(), "run_1")
	want(t, "when an agent has come", err, codes.AlreadyExists, faultv1.Reason_RESOURCE_ALREADY_EXISTS)
	_, err = l.enrolAgent(second, csr(t, key))
	must(t, err)
	_, err = l.enrolAgent(other, csr(t, newKey(t)))
	must(t, err)
}
