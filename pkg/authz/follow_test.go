package authz

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
)

// source serves both streams over gRPC; each stream that is opened is one turn of the test's script.
type source struct {
	workspacev1.UnimplementedAuthorizationStateServiceServer
	identityv1.UnimplementedTokenServiceServer
	authorization, security turns[workspacev1.WatchAuthorizationResponse, identityv1.WatchSecurityResponse]
}

type turns[A, B any] struct {
	mu   sync.Mutex
	n    int
	turn func(n int, s grpc.ServerStream) error
}

func (x *turns[A, B]) next(s grpc.ServerStream) error {
	x.mu.Lock()
	x.n++
	n := x.n
	x.mu.Unlock()
	return x.turn(n, s)
}

func (s *source) WatchAuthorization(_ *workspacev1.WatchAuthorizationRequest, st grpc.ServerStreamingServer[workspacev1.WatchAuthorizationResponse]) error {
	return s.authorization.next(st)
}

func (s *source) WatchSecurity(_ *identityv1.WatchSecurityRequest, st grpc.ServerStreamingServer[identityv1.WatchSecurityResponse]) error {
	return s.security.next(st)
}

// lines counts what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestFollow goes through the ways in which a stream can break; after each the state comes again, and nothing is left running.
func TestFollow(t *testing.T) {
	defer goleak.VerifyNone(t)
	full := func(user string) *workspacev1.WatchAuthorizationResponse {
		return &workspacev1.WatchAuthorizationResponse{Seq: 5, Reset_: true, Complete: true, Scopes: wholeTree(), Roles: BuiltinRoles(), Assignments: []*workspacev1.AssignmentRecord{assigned("asg_"+user, ws1, Owner, user)}}
	}
	done := make(chan struct{})
	src := &source{}
	hold := func(s grpc.ServerStream) error {
		select {
		case <-s.Context().Done():
		case <-done:
		}
		return nil
	}
	// beat sends heartbeats until the stream ends. One that has lasted longer than silence may closes lasted.
	lasted := make(chan struct{})
	var once sync.Once
	beat := func(s grpc.ServerStream, heartbeat any, lasting bool) error {
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for n := 0; ; n++ {
			if n == 40 && lasting {
				once.Do(func() { close(lasted) })
			}
			select {
			case <-s.Context().Done():
				return nil
			case <-done:
				return nil
			case <-ticker.C:
				if err := s.SendMsg(heartbeat); err != nil {
					return err
				}
			}
		}
	}
	alive := &workspacev1.WatchAuthorizationResponse{Seq: 6, Heartbeat: true}
	src.authorization.turn = func(n int, s grpc.ServerStream) error {
		switch n - 1 {
		case 0: // silence from the beginning
			return hold(s)
		case 1:
			return status.Error(codes.Unavailable, "not yet")
		case 2: // it ends
			return s.SendMsg(full("usr_2"))
		case 3: // a gap, and the sender goes on
			return errors.Join(s.SendMsg(full("usr_3")), s.SendMsg(&workspacev1.WatchAuthorizationResponse{Seq: 7}), beat(s, alive, false))
		case 4: // silence
			return errors.Join(s.SendMsg(full("usr_4")), hold(s))
		case 5: // a record that cannot be right
			return errors.Join(s.SendMsg(full("usr_5")), s.SendMsg(&workspacev1.WatchAuthorizationResponse{Seq: 6, Removed: []string{""}}), beat(s, alive, false))
		}
		if err := errors.Join(s.SendMsg(full("usr_6")), s.SendMsg(&workspacev1.WatchAuthorizationResponse{Seq: 6, Assignments: []*workspacev1.AssignmentRecord{assigned("asg_7", ws1, Owner, "usr_7")}})); err != nil {
			return err
		}
		return beat(s, alive, true)
	}
	src.security.turn = func(_ int, s grpc.ServerStream) error {
		if err := s.SendMsg(&identityv1.WatchSecurityResponse{Seq: 1, Reset_: true, Complete: true}); err != nil {
			return err
		}
		return beat(s, &identityv1.WatchSecurityResponse{Seq: 1, Heartbeat: true}, false)
	}
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	workspacev1.RegisterAuthorizationStateServiceServer(server, src)
	identityv1.RegisterTokenServiceServer(server, src)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(lis) })
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		conn.Close()
		server.Stop()
		serving.Wait()
	}()

	e := New(Config{MaxStale: 400 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	var log lines
	var following sync.WaitGroup
	following.Go(func() {
		follow(ctx, e, workspacev1.NewAuthorizationStateServiceClient(conn), identityv1.NewTokenServiceClient(conn), slog.New(slog.NewTextHandler(&log, nil)), pace{time.Millisecond, 10 * time.Millisecond})
	})
	limit := time.After(20 * time.Second)
	seen := map[string]bool{}
	for !seen["usr_7"] {
		_, changed := e.Version()
		for _, who := range []string{"usr_2", "usr_3", "usr_4", "usr_5", "usr_6", "usr_7"} {
			if s, ok := e.Resolve(parsed(t, ws1)); ok && e.Decide(Query{Principal: who, Action: "a/b/c", Scope: s}).Allowed {
				seen[who] = true
			}
		}
		if seen["usr_7"] {
			break
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("seen only %v\n%s", seen, &log)
		}
	}
	for _, who := range []string{"usr_4", "usr_7"} { // the others' states may pass too quickly to be seen
		if !seen[who] {
			t.Errorf("the state with %s never came", who)
		}
	}
	select {
	case <-lasted:
	case <-limit:
		t.Fatalf("a stream with heartbeats does not last\n%s", &log)
	}
	for e.Fresh(time.Now()) != nil { // a machine that is busy elsewhere may be late with a heartbeat
		select {
		case <-limit:
			t.Fatalf("the state is not fresh: %v", e.Fresh(time.Now()))
		default:
			runtime.Gosched()
		}
	}
	if s := e.Decide(Query{Principal: "usr_4", Action: "a/b/c", Scope: Scope{Name: parsed(t, ws1), UID: "ws_1"}}); s.Allowed {
		t.Error("an earlier state is still there")
	}
	cancel()
	following.Wait()
	close(done)
	if !strings.Contains(log.String(), errStreamSilent.Error()) || !strings.Contains(log.String(), "stream=authorization") {
		t.Errorf("logged:\n%s", &log)
	}
}

// TestFollowNothing returns at once: a service may be the source of both.
func TestFollowNothing(*testing.T) {
	Follow(context.Background(), New(Config{}), nil, nil, slog.New(slog.NewTextHandler(io.Discard, nil)))
}

// elsewhere is a client of several instances, of which one knows the stream.
type elsewhere struct {
	workspacev1.AuthorizationStateServiceClient
	strangers, asked int
}

func (e *elsewhere) AcknowledgeAuthorization(context.Context, *workspacev1.AcknowledgeAuthorizationRequest, ...grpc.CallOption) (*emptypb.Empty, error) {
	if e.asked++; e.asked <= e.strangers {
		return nil, status.Error(codes.NotFound, "there is no such stream of yours")
	}
	return &emptypb.Empty{}, nil
}

// An acknowledgement goes on until it has found the instance that waits for it, and not for ever.
func TestAcknowledgementFindsItsInstance(t *testing.T) {
	for strangers, want := range map[int]int{0: 1, 3: 4, 100: acknowledgeTries} {
		e := &elsewhere{strangers: strangers}
		engine := New(Config{})
		if err := acknowledging(t.Context(), engine, e)(&workspacev1.WatchAuthorizationResponse{Stream: "str_1", Seq: 5, Reset_: true, Complete: true, Roles: BuiltinRoles()}); err != nil {
			t.Fatal(err)
		}
		if e.asked != want {
			t.Errorf("%d strangers: asked %d times, want %d", strangers, e.asked, want)
		}
	}
}
