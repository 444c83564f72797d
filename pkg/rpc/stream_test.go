package rpc

import (
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

func mustName(t testing.TB, s string) resource.Name {
	t.Helper()
	n, err := resource.Parse(s)
	ok(t, err)
	return n
}

type logStream = grpc.BidiStreamingClient[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]

// open opens a stream of writes and sends the first message.
func (l *lab) open() logStream {
	l.t.Helper()
	s, err := telemetryv1.NewMetricServiceClient(l.gateway()).LogRunData(bearer(l.t, l.token(owner)))
	ok(l.t, err)
	ok(l.t, exchange(s, &telemetryv1.LogRunDataRequest{Run: run}))
	return s
}

// exchange sends a message and waits for its answer.
func exchange(s logStream, m *telemetryv1.LogRunDataRequest) error {
	if err := s.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err := s.Recv()
	return err
}

// lost are the ways in which the caller of an open stream loses his right.
func lost() map[string]struct {
	do     func(*lab)
	code   codes.Code
	reason faultv1.Reason
} {
	type how = struct {
		do     func(*lab)
		code   codes.Code
		reason faultv1.Reason
	}
	return map[string]how{
		"the role was taken": {func(l *lab) {
			l.assign(&workspacev1.WatchAuthorizationResponse{Removed: []string{"asg_owner"}})
		}, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING},
		"the session was revoked": {func(l *lab) {
			l.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{{Sid: "ses_" + owner}}})
		}, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED},
		"the token ended": {func(l *lab) { l.advance(2 * time.Hour) }, codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED},
		"the workspace is gone": {func(l *lab) {
			l.assign(&workspacev1.WatchAuthorizationResponse{Removed: []string{"ws_1"}})
		}, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND},
		"the workspace was made anew": {func(l *lab) {
			l.assign(&workspacev1.WatchAuthorizationResponse{Removed: []string{"ws_1"}, Scopes: []*workspacev1.ScopeRecord{{Uid: "ws_new", Name: ws, ParentUid: "rgp_1", Active: true}}})
		}, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND},
	}
}

// TestStreamsEndWithTheRight holds that the next message in either direction is cut (A3, I).
func TestStreamsEndWithTheRight(t *testing.T) {
	for name, tc := range lost() {
		t.Run("to the service/"+name, func(t *testing.T) {
			l := newLab(t)
			s := l.open()
			ok(t, exchange(s, &telemetryv1.LogRunDataRequest{BatchId: "2"}))
			ran := l.h.ran.Load()
			tc.do(l)
			refusedAs(t, exchange(s, &telemetryv1.LogRunDataRequest{BatchId: "3"}), tc.code, tc.reason)
			if l.h.ran.Load() != ran {
				t.Error("the handler got the message")
			}
		})
		t.Run("from the service/"+name, func(t *testing.T) {
			l := newLab(t)
			next, sent := make(chan struct{}), make(chan error, 2)
			l.h.watch = func(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
				for {
					err := s.Send(&telemetryv1.WatchMetricsResponse{})
					sent <- err
					if err != nil {
						return err
					}
					<-next
				}
			}
			s, err := telemetryv1.NewMetricServiceClient(l.gateway()).WatchMetrics(bearer(t, l.token(owner)), &telemetryv1.WatchMetricsRequest{Run: run})
			ok(t, err)
			_, err = s.Recv()
			ok(t, err)
			ok(t, <-sent)
			tc.do(l)
			close(next)
			_, err = s.Recv()
			refusedAs(t, err, tc.code, tc.reason)
			if <-sent == nil {
				t.Error("the handler could send")
			}
		})
	}
}

// TestLaterMessages holds what a message after the first may name (B2).
func TestLaterMessages(t *testing.T) {
	for name, tc := range map[string]struct {
		run     string
		allowed bool
	}{
		"nothing":                {"", true},
		"the same":               {run, true},
		"another run":            {ws + "/runs/r2", false},
		"another workspace":      {ws2 + "/runs/r1", false},
		"the same with an extra": {run + "/", false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			s := l.open()
			err := exchange(s, &telemetryv1.LogRunDataRequest{Run: tc.run})
			if tc.allowed {
				ok(t, err)
				return
			}
			refusedAs(t, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
			if l.h.ran.Load() != 1 {
				t.Error("the handler got the message")
			}
		})
	}
	t.Run("an invalid one", func(t *testing.T) {
		l := newLab(t)
		refusedAs(t, exchange(l.open(), &telemetryv1.LogRunDataRequest{Tags: []*telemetryv1.Tag{{}}}), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	})
}

// TestStreamSummary holds that a stream has one record, of what was in it.
func TestStreamSummary(t *testing.T) {
	digest := func(batches ...string) []byte {
		l := newLab(t)
		s := l.open()
		for _, b := range batches {
			ok(t, exchange(s, &telemetryv1.LogRunDataRequest{BatchId: b}))
		}
		ok(t, s.CloseSend())
		_, err := s.Recv()
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if n := l.rec.counts(); n != [3]int{1, 0, 0} {
			t.Fatalf("recorded: %v", n)
		}
		ev := l.rec.last(t)
		if ev.GetCount() != int64(1+len(batches)) || ev.GetResult() != telemetryv1.ActivityEvent_RESULT_SUCCEEDED || ev.GetWorkspaceUid() != "ws_1" {
			t.Errorf("the record is %v", ev)
		}
		return ev.GetDigest()
	}
	a, b, again := digest("1", "2"), digest("2", "1"), digest("1", "2")
	if len(a) != 32 || string(a) == string(b) || string(a) != string(again) {
		t.Errorf("%x %x %x", a, b, again)
	}
}

// TestHandlersCannotForgetTheirStream holds that a stream's answer waits for its first message to be admitted, whatever the handler
// does.
func TestHandlersCannotForgetTheirStream(t *testing.T) {
	for name, handle := range map[string]func(grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error{
		"sends before it reads": func(s grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
			_ = s.Send(&telemetryv1.LogRunDataResponse{BatchId: "leaked"})
			return nil
		},
		"sends although it was refused": func(s grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
			_, _ = s.Recv()
			_ = s.Send(&telemetryv1.LogRunDataResponse{BatchId: "leaked"})
			return nil
		},
		"goes on although it was refused": func(s grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
			_, _ = s.Recv()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.h.log = handle
			s, err := telemetryv1.NewMetricServiceClient(l.gateway()).LogRunData(bearer(t, l.token(reader)))
			ok(t, err)
			_ = s.Send(&telemetryv1.LogRunDataRequest{Run: run})
			m, err := s.Recv()
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("it was answered: %v, %v", m, err)
			}
		})
	}
}

// TestClientStreams holds the shape that has one answer.
func TestClientStreams(t *testing.T) {
	l := newLab(t)
	l.h.upload = func(s grpc.ClientStreamingServer[workspacev1.UploadBlobRequest, workspacev1.UploadBlobResponse]) error {
		for {
			_, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return s.SendAndClose(&workspacev1.UploadBlobResponse{})
			}
			if err != nil {
				return err
			}
		}
	}
	send := func(who string, parents ...string) error {
		s, err := workspacev1.NewSnapshotServiceClient(l.gateway()).UploadBlob(bearer(t, l.token(who)))
		ok(t, err)
		for _, p := range parents {
			_ = s.Send(&workspacev1.UploadBlobRequest{Parent: p})
		}
		_, err = s.CloseAndRecv()
		return err
	}
	ok(t, send(owner, ws, "", ws))
	refusedAs(t, send(reader, ws), codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	refusedAs(t, send(stranger, ws), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	refusedAs(t, send(owner, ws, ws2), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	refusedAs(t, send(owner, ""), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	refusedAs(t, send(owner), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
}

// Drain ends watches, with a hint to come back, and nothing else: what writes goes on.
func TestDrainEndsWatchesAlone(t *testing.T) {
	l := newLab(t)
	began := make(chan struct{}, 2)
	l.h.watch = func(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
		began <- struct{}{}
		<-s.Context().Done()
		return s.Context().Err()
	}
	client := telemetryv1.NewMetricServiceClient(l.gateway())
	watch := func() error {
		s, err := client.WatchMetrics(bearer(t, l.token(owner)), &telemetryv1.WatchMetricsRequest{Run: run})
		ok(t, err)
		_, err = s.Recv()
		return err
	}
	first := make(chan error, 1)
	go func() { first <- watch() }()
	<-began
	writing := l.open()
	l.chain.Drain()
	for name, err := range map[string]error{"one that is open": <-first, "one that is begun later": watch()} {
		if f := fault.Describe(fault.FromStatus(err)); fault.Code(err) != codes.Unavailable || f.RetryAfter() <= 0 {
			t.Errorf("%s: %v, retry after %v", name, err, f.RetryAfter())
		}
	}
	ok(t, exchange(writing, &telemetryv1.LogRunDataRequest{}))
}
