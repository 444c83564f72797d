package telemetry_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

const (
	end1 = ws1 + "/endpoints/e1"
	end3 = ws2 + "/endpoints/e1"
)

func (l *lab) requestLog(peer string) telemetryv1.RequestLogServiceClient {
	return telemetryv1.NewRequestLogServiceClient(l.dial("/service/" + peer))
}

func scored(workspace, endpoint string, n int) *telemetryv1.ScoringRequest {
	return &telemetryv1.ScoringRequest{
		HttpMethod: "POST", RequestId: fmt.Sprintf("r%d", n), StatusCode: 200, WorkspaceUid: workspace, EndpointUid: endpoint,
		Time: timestamppb.New(time.Date(2026, 1, 2, 3, 0, n, 0, time.UTC)),
	}
}

// score delivers requests as inference does.
func (l *lab) score(source string, first int64, rs ...*telemetryv1.ScoringRequest) (*telemetryv1.IngestRequestsResponse, error) {
	req := &telemetryv1.IngestRequestsRequest{Source: source}
	for i, r := range rs {
		req.Requests = append(req.Requests, &telemetryv1.SequencedRequest{Seq: first + int64(i), Request: r})
	}
	return l.requestLog("inference").IngestRequests(l.t.Context(), req)
}

func (l *lab) requests(user string, req *telemetryv1.ListRequestsRequest) ([]string, error) {
	var ids []string
	for req = proto.CloneOf(req); ; {
		res, err := l.requestLog("gateway").ListRequests(l.as(user), req)
		if err != nil {
			return nil, err
		}
		for _, r := range res.GetRequests() {
			ids = append(ids, r.GetRequestId())
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			return ids, nil
		}
	}
}

// TestRequestLog: who may read, what is shown, and what becomes of a name that is given again (G3).
func TestRequestLog(t *testing.T) {
	l := newLab(t)
	l.ends.set("ws_1", "e1", "ep_1")
	l.ends.set("ws_2", "e1", "ep_3")
	l.assign("ann", ws1, authz.Owner)
	l.assign("otto", ws2, authz.Owner)
	l.assign("rita", ws1, authz.Reader)
	var rs []*telemetryv1.ScoringRequest
	for n := range 50 {
		rs = append(rs, scored("ws_1", "ep_1", n))
	}
	rs[3].StatusCode, rs[4].StatusCode, rs[4].Deployment = 404, 500, "blue"
	for range 2 {
		res, err := l.score("inference/a/x", 1, append(rs, scored("ws_2", "ep_3", 99))...)
		must(t, err)
		if res.GetStoredSeq() != 51 {
			t.Errorf("stored up to %d", res.GetStoredSeq())
		}
	}
	for _, c := range []struct {
		name string
		who  string
		req  *telemetryv1.ListRequestsRequest
		want []string // nil: only how many
		n    int
		code codes.Code
	}{
		{"all", "ann", &telemetryv1.ListRequestsRequest{Endpoint: end1}, nil, 50, codes.OK},
		{"in pages", "rita", &telemetryv1.ListRequestsRequest{Endpoint: end1, PageSize: 7}, nil, 50, codes.OK},
		{"a status", "ann", &telemetryv1.ListRequestsRequest{Endpoint: end1, Status: 404}, []string{"r3"}, 1, codes.OK},
		{"a class", "ann", &telemetryv1.ListRequestsRequest{Endpoint: end1, Status: 5}, []string{"r4"}, 1, codes.OK},
		{"a deployment", "ann", &telemetryv1.ListRequestsRequest{Endpoint: end1, Deployment: "blue"}, []string{"r4"}, 1, codes.OK},
		{"a request", "ann", &telemetryv1.ListRequestsRequest{Endpoint: end1, RequestId: "r7"}, []string{"r7"}, 1, codes.OK},
		{"a time", "ann", &telemetryv1.ListRequestsRequest{Endpoint: end1, StartTime: rs[10].GetTime(), EndTime: rs[12].GetTime()}, []string{"r11", "r10"}, 2, codes.OK},
		{"its own", "otto", &telemetryv1.ListRequestsRequest{Endpoint: end3}, []string{"r99"}, 1, codes.OK},
		{"another workspace's", "otto", &telemetryv1.ListRequestsRequest{Endpoint: end1}, nil, 0, codes.NotFound},
		{"a stranger", "nobody", &telemetryv1.ListRequestsRequest{Endpoint: end1}, nil, 0, codes.Unauthenticated},
		{"an endpoint that is not there", "ann", &telemetryv1.ListRequestsRequest{Endpoint: ws1 + "/endpoints/none"}, nil, 0, codes.NotFound},
		{"a status that is none", "ann", &telemetryv1.ListRequestsRequest{Endpoint: end1, Status: 40}, nil, 0, codes.InvalidArgument},
		{"a page token of nobody", "ann", &telemetryv1.ListRequestsRequest{Endpoint: end1, PageToken: "x"}, nil, 0, codes.InvalidArgument},
		{"a size below nothing", "ann", &telemetryv1.ListRequestsRequest{Endpoint: end1, PageSize: -1}, nil, 0, codes.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := l.requests(c.who, c.req)
			if codeOf(err) != c.code || len(got) != c.n || c.want != nil && fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	// A page token belongs to its list.
	first, err := l.requestLog("gateway").ListRequests(l.as("ann"), &telemetryv1.ListRequestsRequest{Endpoint: end1, PageSize: 3})
	must(t, err)
	_, err = l.requestLog("gateway").ListRequests(l.as("ann"), &telemetryv1.ListRequestsRequest{Endpoint: end1, Status: 2, PageToken: first.GetNextPageToken()})
	want(t, err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	// The name is given again.
	l.ends.set("ws_1", "e1", "ep_2")
	if got, err := l.requests("ann", &telemetryv1.ListRequestsRequest{Endpoint: end1}); err != nil || len(got) != 0 {
		t.Errorf("an endpoint shows the requests of the one before it: %v, %v", got, err)
	}
	_, err = l.requestLog("gateway").ListRequests(l.as("ann"), &telemetryv1.ListRequestsRequest{Endpoint: end1, PageToken: first.GetNextPageToken()})
	want(t, err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	l.ends.mu.Lock()
	l.ends.away = true
	l.ends.mu.Unlock()
	_, err = l.requests("ann", &telemetryv1.ListRequestsRequest{Endpoint: end1})
	want(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
}

// TestWhoMayDeliver: inference alone, under its own name, and what is malformed is refused whole.
func TestWhoMayDeliver(t *testing.T) {
	l := newLab(t)
	l.ends.set("ws_1", "e1", "ep_1")
	l.assign("ann", ws1, authz.Owner)
	good := func() *telemetryv1.IngestRequestsRequest {
		return &telemetryv1.IngestRequestsRequest{Source: "inference/a/x", Requests: []*telemetryv1.SequencedRequest{{Seq: 1, Request: scored("ws_1", "ep_1", 1)}, {Seq: 2, Request: scored("ws_1", "ep_1", 2)}}}
	}
	for _, peer := range []string{"gateway", "compute", "telemetry", "workspace"} {
		_, err := l.requestLog(peer).IngestRequests(l.as("ann"), good())
		want(t, err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
	}
	for name, c := range map[string]struct {
		change func(*telemetryv1.IngestRequestsRequest)
		code   codes.Code
	}{
		"another's name":     {func(r *telemetryv1.IngestRequestsRequest) { r.Source = "compute/a/x" }, codes.PermissionDenied},
		"no source":          {func(r *telemetryv1.IngestRequestsRequest) { r.Source = "" }, codes.InvalidArgument},
		"out of order":       {func(r *telemetryv1.IngestRequestsRequest) { r.Requests[1].Seq = 1 }, codes.InvalidArgument},
		"no number":          {func(r *telemetryv1.IngestRequestsRequest) { r.Requests[0].Seq = 0 }, codes.InvalidArgument},
		"no request":         {func(r *telemetryv1.IngestRequestsRequest) { r.Requests[0].Request = nil }, codes.InvalidArgument},
		"no endpoint":        {func(r *telemetryv1.IngestRequestsRequest) { r.Requests[0].Request.EndpointUid = "" }, codes.InvalidArgument},
		"no workspace":       {func(r *telemetryv1.IngestRequestsRequest) { r.Requests[0].Request.WorkspaceUid = "" }, codes.InvalidArgument},
		"a uid that is none": {func(r *telemetryv1.IngestRequestsRequest) { r.Requests[0].Request.WorkspaceUid = "service/../x" }, codes.InvalidArgument},
		"a uid that is long": {func(r *telemetryv1.IngestRequestsRequest) {
			r.Requests[0].Request.EndpointUid = string(make([]byte, 65))
		}, codes.InvalidArgument},
		"no time":               {func(r *telemetryv1.IngestRequestsRequest) { r.Requests[0].Request.Time = nil }, codes.InvalidArgument},
		"a time that is none":   {func(r *telemetryv1.IngestRequestsRequest) { r.Requests[0].Request.Time.Seconds = 1 << 60 }, codes.InvalidArgument},
		"a count below nothing": {func(r *telemetryv1.IngestRequestsRequest) { r.Dropped = -1 }, codes.InvalidArgument},
		"a large one": {func(r *telemetryv1.IngestRequestsRequest) {
			r.Requests[0].Request.UserAgent = fmt.Sprintf("%20000d", 1)
		}, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			req := good()
			c.change(req)
			if _, err := l.requestLog("inference").IngestRequests(t.Context(), req); codeOf(err) != c.code {
				t.Errorf("got %v, want %v", err, c.code)
			}
		})
	}
	if got, err := l.requests("ann", &telemetryv1.ListRequestsRequest{Endpoint: end1}); err != nil || len(got) != 0 {
		t.Errorf("something of what was refused is stored: %v, %v", got, err)
	}
	res, err := l.requestLog("inference").IngestRequests(t.Context(), &telemetryv1.IngestRequestsRequest{Source: "inference/a/x"})
	if err != nil || res.GetStoredSeq() != 0 {
		t.Errorf("%v, %v", res, err)
	}
}

func TestWatchRequests(t *testing.T) {
	l := newLab(t)
	l.ends.set("ws_1", "e1", "ep_1")
	l.assign("ann", ws1, authz.Owner)
	_, err := l.score("inference/a/x", 1, scored("ws_1", "ep_1", 0))
	must(t, err)
	ctx, cancel := context.WithTimeout(l.as("ann"), time.Minute)
	defer cancel()
	stream, err := l.requestLog("gateway").WatchRequests(ctx, &telemetryv1.WatchRequestsRequest{Endpoint: end1})
	must(t, err)
	_, err = stream.Header()
	must(t, err)
	const total = 900
	var rs []*telemetryv1.ScoringRequest
	for n := 1; n <= total; n++ {
		rs = append(rs, scored("ws_1", "ep_1", n))
	}
	for i := 0; i < total; i += 450 {
		_, err = l.score("inference/a/x", int64(i+2), rs[i:i+450]...)
		must(t, err)
	}
	seen := map[string]bool{}
	for len(seen) < total {
		res, err := stream.Recv()
		must(t, err)
		for _, r := range res.GetRequests() {
			if seen[r.GetRequestId()] || r.GetRequestId() == "r0" {
				t.Fatalf("%s has come twice, or too early", r.GetRequestId())
			}
			seen[r.GetRequestId()] = true
		}
	}
	// A right that is taken away ends the watch.
	l.unassign("ann", ws1, authz.Owner)
	_, err = l.score("inference/a/x", total+2, scored("ws_1", "ep_1", total+1))
	must(t, err)
	if res, err := stream.Recv(); err == nil {
		t.Errorf("a watch without a right has given %v", res)
	}
}

// TestPurgeRemovesRequests: with the workspace its requests go (H1, D1).
func TestPurgeRemovesRequests(t *testing.T) {
	l := newLab(t)
	l.ends.set("ws_2", "e1", "ep_3")
	l.assign("ann", grp1, authz.Owner)
	_, err := l.score("inference/a/x", 1, scored("ws_1", "ep_1", 1), scored("ws_2", "ep_3", 2))
	must(t, err)
	_, err = l.ingest("workspace").PurgeWorkspace(t.Context(), &telemetryv1.PurgeWorkspaceRequest{WorkspaceUid: "ws_1"})
	must(t, err)
	_, err = l.score("inference/a/x", 3, scored("ws_1", "ep_1", 3), scored("ws_2", "ep_3", 4))
	must(t, err)
	var rows int
	must(t, l.db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM request_chunk WHERE workspace_uid = 'ws_1'").Scan(&rows))
	if rows != 0 {
		t.Errorf("%d chunks are left", rows)
	}
	if got, err := l.requests("ann", &telemetryv1.ListRequestsRequest{Endpoint: end3}); err != nil || len(got) != 2 {
		t.Errorf("another workspace's: %v, %v", got, err)
	}
}
