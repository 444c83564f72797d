package telemetry

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/requests"
)

// requestServer keeps what was asked of endpoints.
type requestServer struct {
	telemetryv1.UnsafeRequestLogServiceServer
	s *Service
}

var _ telemetryv1.RequestLogServiceServer = requestServer{}

const (
	requestPage    = 100
	requestPageMax = 1000
	// watchMessage is how many requests a message of a watch has at most: with the largest of them it stays below 4 MiB.
	watchMessage = 200
	// maxRequestBytes bounds one record.
	maxRequestBytes = 16 << 10
)

// IngestRequests implements telemetryv1.RequestLogServiceServer.
func (r requestServer) IngestRequests(ctx context.Context, req *telemetryv1.IngestRequestsRequest) (*telemetryv1.IngestRequestsResponse, error) {
	if peer := rpc.From(ctx).PeerService; peer == "" || !strings.HasPrefix(req.GetSource(), peer+"/") {
		return nil, fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "a service delivers requests under sources of its own name only")
	}
	var last int64
	for i, q := range req.GetRequests() {
		field := fmt.Sprintf("requests[%d]", i)
		one := q.GetRequest()
		switch {
		case q.GetSeq() <= last:
			return nil, badEvent(field+".seq", "requests come in the order of their numbers")
		case !plainUID(one.GetWorkspaceUid()) || !plainUID(one.GetEndpointUid()):
			return nil, badEvent(field, "a uid is missing or malformed")
		case one.GetTime().CheckValid() != nil:
			return nil, badEvent(field+".time", "missing or out of range")
		case proto.Size(one) > maxRequestBytes:
			return nil, badEvent(field, "it is too large")
		}
		last = q.GetSeq()
	}
	stored, err := r.s.requests.Ingest(ctx, req.GetSource(), req.GetRequests(), req.GetDropped())
	if err != nil {
		return nil, err
	}
	return &telemetryv1.IngestRequestsResponse{StoredSeq: stored.Seq, Dropped: stored.Dropped}, nil
}

// plainUID reports whether a uid may stand in clear, and own a key.
func plainUID(uid string) bool {
	for _, c := range []byte(uid) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return uid != "" && uid[0] != '_' && len(uid) <= maxUIDBytes
}

// endpointOf asks which endpoint the call's scope names. It is not remembered: an endpoint's name may be given again.
func (s *Service) endpointOf(ctx context.Context) (requests.Endpoint, error) {
	scope := rpc.From(ctx).Scope
	if scope.WorkspaceUID == "" || scope.Name.IsZero() {
		return requests.Endpoint{}, fault.Internal(nil, "a call about an endpoint has no endpoint")
	}
	res, err := s.cfg.Endpoints.DescribeEndpoint(ctx, &inferencev1.DescribeEndpointRequest{WorkspaceUid: scope.WorkspaceUID, EndpointId: scope.Name.ID()})
	if err != nil {
		if err = fault.FromStatus(err); fault.Is(err, codes.NotFound) {
			err = rpc.NotFound(scope.Name.String())
		}
		return requests.Endpoint{}, err
	}
	if res.GetEndpointUid() == "" {
		return requests.Endpoint{}, fault.Internal(nil, "inference knows an endpoint without a uid")
	}
	return requests.Endpoint{UID: res.GetEndpointUid(), WorkspaceUID: scope.WorkspaceUID}, nil
}

// ListRequests implements telemetryv1.RequestLogServiceServer.
func (r requestServer) ListRequests(ctx context.Context, req *telemetryv1.ListRequestsRequest) (*telemetryv1.ListRequestsResponse, error) {
	size, err := resource.PageSize(req.GetPageSize(), requestPage, requestPageMax)
	if err != nil {
		return nil, err
	}
	f, err := filterOf(req)
	if err != nil {
		return nil, err
	}
	endpoint, err := r.s.endpointOf(ctx)
	if err != nil {
		return nil, err
	}
	key, err := r.s.activity.Key(ctx)
	if err != nil {
		return nil, err
	}
	query := fmt.Sprintf("ListRequests %q %+v", endpoint.UID, f)
	var before *requests.Place
	if req.GetPageToken() != "" {
		cursor, err := key.OpenPage(query, req.GetPageToken())
		if err != nil {
			return nil, err
		}
		if len(cursor) != 24 {
			return nil, badPage()
		}
		n := func(i int) int64 { return int64(binary.BigEndian.Uint64(cursor[8*i:])) }
		before = &requests.Place{Minute: n(0), Number: n(1), Index: n(2)}
	}
	found, next, err := r.s.requests.List(ctx, endpoint, f, before, size)
	if err != nil {
		return nil, err
	}
	res := &telemetryv1.ListRequestsResponse{Requests: found}
	if res.Dropped, err = r.s.requests.Dropped(ctx); err != nil {
		return nil, err
	}
	if next != nil {
		var cursor []byte
		for _, n := range []int64{next.Minute, next.Number, next.Index} {
			cursor = binary.BigEndian.AppendUint64(cursor, uint64(n))
		}
		if res.NextPageToken, err = key.SealPage(query, cursor); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// filterOf reads what a list selects.
func filterOf(req *telemetryv1.ListRequestsRequest) (f requests.Filter, err error) {
	f.Status, f.Deployment, f.RequestID = req.GetStatus(), req.GetDeployment(), req.GetRequestId()
	if f.Status > 5 && f.Status < 100 {
		return f, fault.InvalidArgument("status is neither a status, as 404, nor a class, as 4").Field("status", "a status from 100 to 599, or a class from 1 to 5")
	}
	if f.Start, err = micros("start_time", req.GetStartTime(), math.MinInt64); err != nil {
		return f, err
	}
	f.End, err = micros("end_time", req.GetEndTime(), math.MaxInt64)
	return f, err
}

// WatchRequests implements telemetryv1.RequestLogServiceServer.
func (r requestServer) WatchRequests(_ *telemetryv1.WatchRequestsRequest, stream grpc.ServerStreamingServer[telemetryv1.WatchRequestsResponse]) error {
	ctx := stream.Context()
	endpoint, err := r.s.endpointOf(ctx)
	if err != nil {
		return err
	}
	w, err := r.s.requests.Watch(ctx, endpoint)
	if err != nil {
		return err
	}
	defer w.Close()
	// The caller learns that from now on he misses nothing.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		found, err := w.Next(ctx, r.s.stop)
		if err != nil {
			return err
		}
		for len(found) > 0 {
			n := min(len(found), watchMessage)
			if err := stream.Send(&telemetryv1.WatchRequestsResponse{Requests: found[:n]}); err != nil {
				return err
			}
			found = found[n:]
		}
	}
}
