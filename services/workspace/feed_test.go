package workspace

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

// B2: another service that follows the stream decides as this one does.
func TestStreamFeedsAnEngine(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := l.state.WatchAuthorization(ctx, &workspacev1.WatchAuthorizationRequest{})
	l.ok(err)
	engine := authz.New(authz.Config{})
	l.ok(engine.ApplySecurity(&identityv1.WatchSecurityResponse{Reset_: true, Complete: true}))
	next := func() *workspacev1.WatchAuthorizationResponse {
		m, err := stream.Recv()
		l.ok(err)
		l.ok(engine.ApplyAuthorization(m))
		return m
	}
	first := next()
	if !first.GetReset_() || len(first.GetRoles()) != 4 {
		t.Errorf("%v", first)
	}
	may := func(who string) bool {
		scope, ok := engine.Resolve(must(parse(w.GetName())))
		return ok && engine.Decide(authz.Query{Principal: who, Action: "workspace/workspaces/read", Scope: scope}).Allowed
	}
	if !may(admin) || may(ada) {
		t.Error("the full state is not the state")
	}
	until := func(cond func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !cond(); next() {
			if time.Now().After(end) {
				t.Fatal("it does not come")
			}
		}
	}
	a := l.grant(group1, authz.Reader, ada)
	until(func() bool { return may(ada) })
	_, err = l.access.DeleteRoleAssignment(l.as(admin), &workspacev1.DeleteRoleAssignmentRequest{Scope: group1, Uid: a.GetUid()})
	l.ok(err)
	until(func() bool { return !may(ada) })
	_, err = l.resources.DeleteWorkspace(l.as(admin), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName()})
	l.ok(err)
	until(func() bool { _, ok := engine.Resolve(must(parse(w.GetName()))); return !ok })
	start := time.Now()
	for !next().GetHeartbeat() {
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a heartbeat after %v", took)
	}
	l.ok(engine.Fresh(time.Now()))
	l.ok(l.Close())
	for err == nil {
		_, err = stream.Recv()
	}
	l.want(err, codes.Unavailable, 0)
}

// When a grant returns, every connected stream has been sent it.
func TestGrantIsSentBeforeItReturns(t *testing.T) {
	l := newLab(t)
	held := &heldStream{ctx: t.Context(), got: make(chan uint64, 100), let: make(chan struct{}, 100)}
	ended := make(chan error, 1)
	go func() { ended <- l.WatchAuthorization(nil, held) }()
	held.let <- struct{}{}
	seq := <-held.got
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.grant(group1, authz.Reader, ada)
	}()
	for now := seq; now <= seq; now = <-held.got {
		select {
		case <-done:
			t.Fatal("it returned before the stream was sent it")
		case held.let <- struct{}{}:
		}
	}
	<-done
	// A stream that does not read holds nobody up for long.
	start := time.Now()
	l.grant(group1, authz.Reader, bob)
	if took := time.Since(start); took < sentWithin/2 || took > sentWithin+2*time.Second {
		t.Errorf("took %v", took)
	}
}

// heldStream takes a message when it is let.
type heldStream struct {
	ctx context.Context
	got chan uint64
	let chan struct{}
}

func (h *heldStream) Send(m *workspacev1.WatchAuthorizationResponse) error {
	select {
	case <-h.let:
	case <-h.ctx.Done():
		return h.ctx.Err()
	}
	h.got <- m.GetSeq()
	return nil
}
func (h *heldStream) Context() context.Context     { return h.ctx }
func (h *heldStream) SetHeader(metadata.MD) error  { return nil }
func (h *heldStream) SendHeader(metadata.MD) error { return nil }
func (h *heldStream) SetTrailer(metadata.MD)       {}
func (h *heldStream) SendMsg(any) error            { return nil }
func (h *heldStream) RecvMsg(any) error            { return nil }
