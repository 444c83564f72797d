package telemetry

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store"
)

// activityServer shows the activity log.
type activityServer struct {
	telemetryv1.UnsafeActivityServiceServer
	s *Service
}

var _ telemetryv1.ActivityServiceServer = activityServer{}

const (
	activityPage    = 100
	activityPageMax = 1000
)

// ListActivity implements telemetryv1.ActivityServiceServer. The order is that of the log, the newest first; a page of large events
// may be shorter than it was asked for.
func (a activityServer) ListActivity(ctx context.Context, req *telemetryv1.ListActivityRequest) (*telemetryv1.ListActivityResponse, error) {
	scope, err := scopeOf(rpc.From(ctx).Scope)
	if err != nil {
		return nil, err
	}
	size, err := resource.PageSize(req.GetPageSize(), activityPage, activityPageMax)
	if err != nil {
		return nil, err
	}
	f := store.Filter{Scope: scope, Start: math.MinInt64, Result: req.GetResult(), RequestID: req.GetRequestId()}
	if f.Start, err = micros("start_time", req.GetStartTime(), math.MinInt64); err != nil {
		return nil, err
	}
	if f.End, err = micros("end_time", req.GetEndTime(), math.MaxInt64); err != nil {
		return nil, err
	}
	key, err := a.s.activity.Key(ctx)
	if err != nil {
		return nil, err
	}
	// Where it goes on depends on all that selects, and not on the size of pages.
	query := fmt.Sprintf("ListActivity %+v", f)
	if req.GetPageToken() != "" {
		cursor, err := key.OpenPage(query, req.GetPageToken())
		if err != nil {
			return nil, err
		}
		if len(cursor) != 8 {
			return nil, badPage()
		}
		f.Before = int64(binary.BigEndian.Uint64(cursor))
	}
	events, next, err := a.s.activity.List(ctx, f, size)
	if err != nil {
		return nil, err
	}
	res := &telemetryv1.ListActivityResponse{Events: events}
	if next > 0 {
		if res.NextPageToken, err = key.SealPage(query, binary.BigEndian.AppendUint64(nil, uint64(next))); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// WatchActivity implements telemetryv1.ActivityServiceServer. It begins with the events that are stored after it was called.
func (a activityServer) WatchActivity(_ *telemetryv1.WatchActivityRequest, stream grpc.ServerStreamingServer[telemetryv1.ActivityEvent]) error {
	ctx := stream.Context()
	scope, err := scopeOf(rpc.From(ctx).Scope)
	if err != nil {
		return err
	}
	sub, err := a.s.feed.subscribe(ctx, scope)
	if err != nil {
		return err
	}
	defer a.s.feed.unsubscribe(sub)
	// The caller learns that from now on he misses nothing.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case ev, ok := <-sub.events:
			if !ok {
				return fault.ResourceExhausted("events came faster than they were read, so the watch was ended; list what was missed, and watch again")
			}
			if err := stream.Send(ev); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-a.s.stop:
			return fault.Unavailable("the service is being stopped; watch again")
		}
	}
}

// scopeOf says of where events are wanted, by uids: a name that was made again shows nothing of what had it before.
func scopeOf(sc authz.Scope) (store.Scope, error) {
	out := store.Scope{Resource: store.ResourceOf(sc.Name)}
	uid := "none needed"
	switch sc.Name.Kind() {
	case resource.KindUnknown:
		uid = ""
	case resource.KindRoot:
		out.All = true
	case resource.KindSubscription:
		out.SubscriptionUID, uid = sc.SubscriptionUID, sc.SubscriptionUID
	case resource.KindResourceGroup:
		out.ResourceGroupUID, uid = sc.ResourceGroupUID, sc.ResourceGroupUID
	default:
		if _, ok := sc.Name.Workspace(); ok {
			out.WorkspaceUID, uid = sc.WorkspaceUID, sc.WorkspaceUID
		}
	}
	if uid == "" {
		return store.Scope{}, fault.Internal(nil, "the scope of the call is not known by uid")
	}
	return out, nil
}

// micros reads an optional time.
func micros(field string, t *timestamppb.Timestamp, absent int64) (int64, error) {
	if t == nil {
		return absent, nil
	}
	if err := t.CheckValid(); err != nil {
		return 0, fault.InvalidArgument("%s is out of range", field).Field(field, "not between the years 1 and 9999")
	}
	return t.AsTime().UnixMicro(), nil
}

func badPage() error {
	return fault.New(codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID, "the page token is not one of ours; begin again without one").Field("page_token", "not one of ours")
}
