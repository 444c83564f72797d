package identity

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// follower is another service: an engine behind the stream, and a verifier with the published keys.
type follower struct {
	engine   *authz.Engine
	verifier *authn.Verifier
	heard    chan *identityv1.WatchSecurityResponse
	cancel   context.CancelFunc
}

func (l *lab) follow(service string) *follower {
	l.t.Helper()
	doc, err := l.tokens().GetKeys(l.t.Context(), &identityv1.GetKeysRequest{})
	must(l.t, err)
	keys, err := authn.ParseJWKS(doc.GetJson())
	must(l.t, err)
	f := &follower{engine: authz.New(authz.Config{Now: l.now}), heard: make(chan *identityv1.WatchSecurityResponse, 1000)}
	f.verifier, err = authn.New(authn.Config{Issuer: issuer, Keys: authn.StaticKeys(keys), Revocations: f.engine.Revocations(), Now: l.now})
	must(l.t, err)
	ctx, cancel := context.WithCancel(l.t.Context())
	f.cancel = cancel
	stream, err := identityv1.NewTokenServiceClient(l.service(service)).WatchSecurity(ctx, &identityv1.WatchSecurityRequest{})
	must(l.t, err)
	go func() {
		defer close(f.heard)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			if err := f.engine.ApplySecurity(m); err != nil {
				l.t.Errorf("%s cannot apply %v: %v", service, m, err)
				return
			}
			f.heard <- m
		}
	}()
	l.t.Cleanup(func() {
		cancel()
		for range f.heard {
		}
	})
	return f
}

// until waits for a message.
func (f *follower) until(t *testing.T, what string, is func(*identityv1.WatchSecurityResponse) bool) *identityv1.WatchSecurityResponse {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case m, ok := <-f.heard:
			if !ok {
				t.Fatalf("the stream ended before %s", what)
			}
			if is(m) {
				return m
			}
		case <-timeout:
			t.Fatalf("no %s came", what)
		}
	}
}

func complete(m *identityv1.WatchSecurityResponse) bool  { return m.GetComplete() }
func heartbeat(m *identityv1.WatchSecurityResponse) bool { return m.GetHeartbeat() }
func revokes(m *identityv1.WatchSecurityResponse) bool   { return len(m.GetRevocations()) > 0 }

func TestOthersLearnOfRevocations(t *testing.T) { // A3
	l := newLab(t)
	l.addUser("alice")
	session := l.signIn("alice", "password of alice")
	early := l.follow("workspace")
	early.until(t, "full state", complete)
	check := func(f *follower) error {
		_, err := f.verifier.Verify(t.Context(), session.GetAccessToken(), issuer)
		return err
	}
	must(t, check(early))
	_, err := identityv1.NewSignInServiceClient(l.gateway()).SignOut(bearer(t.Context(), session.GetAccessToken()), &identityv1.SignOutRequest{})
	must(t, err)
	early.until(t, "revocation", revokes)
	want(t, "by the change", check(early), codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	late := l.follow("compute")
	m := late.until(t, "full state", complete)
	if !m.GetReset_() || len(m.GetRevocations()) != 1 {
		t.Errorf("full state: %v", m)
	}
	want(t, "by the full state", check(late), codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if b := late.until(t, "heartbeat", heartbeat); b.GetSeq() != m.GetSeq() {
		t.Errorf("a heartbeat at %d after the state at %d", b.GetSeq(), m.GetSeq())
	}
}

func TestOthersLearnOfMembers(t *testing.T) {
	l := newLab(t)
	alice := l.addUser("alice")
	ctx, directory := l.asAdmin()
	g, err := directory.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: "people"})
	must(t, err)
	f := l.follow("workspace")
	f.until(t, "full state", complete)
	for _, members := range []int{1, 0} {
		if members == 1 {
			_, err = directory.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: g.GetName(), Member: alice.GetUid()})
		} else {
			_, err = directory.RemoveGroupMember(ctx, &identityv1.RemoveGroupMemberRequest{Name: g.GetName(), Member: alice.GetUid()})
		}
		must(t, err)
		m := f.until(t, "change of members", func(m *identityv1.WatchSecurityResponse) bool { return len(m.GetGroups()) > 0 })
		if got := m.GetGroups()[0]; got.GetGroupUid() != g.GetUid() || len(got.GetMemberUids()) != members {
			t.Errorf("members: %v", got)
		}
	}
}

func TestChangesDoNotWaitForTheHeartbeat(t *testing.T) { // A3: under a second
	l := newLabOf(t, func(c *Config) { c.Heartbeat = 2 * time.Second })
	f := l.follow("workspace")
	f.until(t, "full state", complete)
	began := time.Now()
	for range 3 {
		token := l.signIn("admin", adminPassword).GetAccessToken()
		_, err := identityv1.NewSignInServiceClient(l.gateway()).SignOut(bearer(t.Context(), token), &identityv1.SignOutRequest{})
		must(t, err)
		f.until(t, "revocation", revokes)
	}
	if took := time.Since(began); took > 3*time.Second { // by heartbeats it would be six
		t.Errorf("three revocations took %v", took)
	}
}

func TestTheStreamHasNoGapUnderLoad(t *testing.T) { // A3
	l := newLab(t)
	var followers []*follower
	for _, service := range []string{"workspace", "compute", "keyvault"} {
		followers = append(followers, l.follow(service))
	}
	const writers, each = 4, 25
	done := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := range each {
				err := l.s.secure(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
					r := &identityv1.Revocation{Jti: fmt.Sprintf("tok_%d_%d", w, i), ExpireTime: timestamppb.New(l.now().Add(time.Hour))}
					return l.s.store.Change(ctx, tx, l.now(), []*identityv1.Revocation{r}, nil)
				})
				// When the change has returned, identity itself knows.
				if err == nil && !l.cfg.Engine.Revocations().Revoked("", "", fmt.Sprintf("tok_%d_%d", w, i), "", nil, l.now()) {
					err = fmt.Errorf("tok_%d_%d is not revoked here", w, i)
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range writers {
		must(t, <-done)
	}
	for _, f := range followers { // ApplySecurity refuses gaps and doubles
		f.until(t, "last change", func(m *identityv1.WatchSecurityResponse) bool { return m.GetSeq() == writers*each })
		for w := range writers {
			for i := range each {
				if !f.engine.Revocations().Revoked("", "", fmt.Sprintf("tok_%d_%d", w, i), "", nil, l.now()) {
					t.Errorf("tok_%d_%d is not revoked there", w, i)
				}
			}
		}
	}
}

// logged is a log that tells when a subscriber was cut.
type logged chan struct{}

func (l logged) Enabled(context.Context, slog.Level) bool { return true }
func (l logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l logged) WithGroup(string) slog.Handler            { return l }
func (l logged) Handle(_ context.Context, r slog.Record) error {
	if r.Message == slowMessage {
		select {
		case l <- struct{}{}:
		default:
		}
	}
	return nil
}

func TestASubscriberThatDoesNotReadIsCut(t *testing.T) {
	cut := make(logged, 1)
	l := newLabOf(t, func(c *Config) { c.Logger = slog.New(cut) })
	l.s.feed.slow = 200 * time.Millisecond
	// More than the flow control of a connection lets through unread.
	must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		var all []*identityv1.Revocation
		for i := range 4000 {
			all = append(all, &identityv1.Revocation{Jti: fmt.Sprintf("tok_%060d", i), ExpireTime: timestamppb.New(l.now().Add(time.Hour))})
		}
		return l.s.store.Change(ctx, tx, l.now(), all, nil)
	}))
	stream, err := identityv1.NewTokenServiceClient(l.service("workspace")).WatchSecurity(t.Context(), &identityv1.WatchSecurityRequest{}, grpc.StaticMethod())
	must(t, err)
	_, err = stream.Recv()
	must(t, err)
	select {
	case <-cut:
	case <-time.After(10 * time.Second):
		t.Fatal("it was not cut")
	}
	for err == nil {
		_, err = stream.Recv()
	}
	want(t, "reading on", err, codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED)
}

func TestWatchersAreServices(t *testing.T) { // A3
	l := newLab(t)
	for path, code := range map[string]codes.Code{
		"service/workspace": codes.OK, "service/gateway": codes.PermissionDenied, "operator/usr_1": codes.PermissionDenied, "agent/agt_1": codes.PermissionDenied,
	} {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := identityv1.NewTokenServiceClient(l.as(path)).WatchSecurity(ctx, &identityv1.WatchSecurityRequest{})
		must(t, err)
		_, err = stream.Recv()
		if codeOf(err) != code {
			t.Errorf("%s: %v", path, err)
		}
		cancel()
	}
}
