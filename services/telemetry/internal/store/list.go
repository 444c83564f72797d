package store

import (
	"context"
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store/db"
)

// Scope says of where events are wanted. The zero value is nowhere. All is everywhere; else the narrowest of subscription, resource
// group and workspace that is set counts. Resource, with or without a workspace, narrows it to one resource (ResourceOf).
type Scope struct {
	All                                             bool
	SubscriptionUID, ResourceGroupUID, WorkspaceUID string
	Resource                                        string
}

// Filter selects events.
type Filter struct {
	Scope Scope
	// Before is the position that the wanted events come before; 0 for the newest.
	Before int64
	// Start is inclusive, End exclusive; microseconds.
	Start, End int64
	// Result is RESULT_UNSPECIFIED for all.
	Result    telemetryv1.ActivityEvent_Result
	RequestID string
}

// maxPageBytes ends a page of large events early.
const maxPageBytes = 2 << 20

// row is what every query of the log gives.
type row = db.ListAllRow

// List reads at most most events, the newest first, and the position of the last one where there may be more, else 0.
func (s *Store) List(ctx context.Context, f Filter, most int) (events []*Event, next int64, err error) {
	var rows []row
	err = s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		var err error
		rows, err = s.query(ctx, db.New(tx), f, int32(most)+1)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	size := 0
	for i, r := range rows {
		if i == most || size > maxPageBytes {
			return events, rows[i-1].Position, nil
		}
		ev, err := s.open(ctx, r)
		if err != nil {
			return nil, 0, err
		}
		if !f.Scope.Holds(ev) {
			return nil, 0, fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "an event of the activity log stands where it does not belong")
		}
		size += len(r.Sealed)
		events = append(events, ev)
	}
	return events, 0, nil
}

// query picks the query whose index fits.
func (s *Store) query(ctx context.Context, q *db.Queries, f Filter, most int32) ([]row, error) {
	before, start, stop := f.Before, f.Start, f.End
	if before == 0 {
		before = math.MaxInt64
	}
	anyResult, result := flag(f.Result == telemetryv1.ActivityEvent_RESULT_UNSPECIFIED), int64(f.Result)
	sc := f.Scope
	var mac []byte
	if sc.Resource != "" || f.RequestID != "" {
		key, err := s.Key(ctx)
		if err != nil {
			return nil, err
		}
		if mac = []byte{}; sc.Resource != "" {
			mac = resourceMAC(key, sc.WorkspaceUID, sc.Resource)
		}
		if f.RequestID != "" {
			if sc == (Scope{}) {
				return nil, nil
			}
			// A resource that is in no workspace is told by its MAC, which holds that it is in none.
			rows, err := q.ListByRequest(ctx, db.ListByRequestParams{
				RequestMac: requestMAC(key, f.RequestID), Before: before,
				AnySubscription: flag(sc.SubscriptionUID == ""), SubscriptionUID: sc.SubscriptionUID,
				AnyGroup: flag(sc.ResourceGroupUID == ""), ResourceGroupUID: sc.ResourceGroupUID,
				AnyWorkspace: flag(sc.WorkspaceUID == ""), WorkspaceUID: sc.WorkspaceUID,
				AnyResource: flag(sc.Resource == ""), ResourceMac: mac,
				Start: start, Stop: stop, AnyResult: anyResult, Result: result, Most: most,
			})
			return convert(rows, func(r db.ListByRequestRow) row { return row(r) }), err
		}
	}
	switch {
	case sc.Resource != "":
		rows, err := q.ListByResource(ctx, db.ListByResourceParams{Scope: sc.WorkspaceUID, ResourceMac: mac, Before: before, Start: start, Stop: stop, AnyResult: anyResult, Result: result, Most: most})
		return convert(rows, func(r db.ListByResourceRow) row { return row(r) }), err
	case sc.WorkspaceUID != "":
		rows, err := q.ListByWorkspace(ctx, db.ListByWorkspaceParams{Scope: sc.WorkspaceUID, Before: before, Start: start, Stop: stop, AnyResult: anyResult, Result: result, Most: most})
		return convert(rows, func(r db.ListByWorkspaceRow) row { return row(r) }), err
	case sc.ResourceGroupUID != "":
		rows, err := q.ListByGroup(ctx, db.ListByGroupParams{Scope: sc.ResourceGroupUID, Before: before, Start: start, Stop: stop, AnyResult: anyResult, Result: result, Most: most})
		return convert(rows, func(r db.ListByGroupRow) row { return row(r) }), err
	case sc.SubscriptionUID != "":
		rows, err := q.ListBySubscription(ctx, db.ListBySubscriptionParams{Scope: sc.SubscriptionUID, Before: before, Start: start, Stop: stop, AnyResult: anyResult, Result: result, Most: most})
		return convert(rows, func(r db.ListBySubscriptionRow) row { return row(r) }), err
	case sc.All:
		return q.ListAll(ctx, db.ListAllParams{Before: before, Start: start, Stop: stop, AnyResult: anyResult, Result: result, Most: most})
	}
	return nil, nil
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func convert[T any](in []T, f func(T) row) []row {
	out := make([]row, len(in))
	for i, r := range in {
		out[i] = f(r)
	}
	return out
}

func (s *Store) open(ctx context.Context, r row) (*Event, error) {
	key, err := s.keys.Key(ctx, owner(r.SubscriptionUID))
	if err != nil {
		return nil, err
	}
	plain, err := key.Open(aad(r.SubscriptionUID, r.Service, r.UID, r.Seq), r.Sealed)
	if err != nil {
		return nil, err
	}
	ev := new(Event)
	if err := proto.Unmarshal(plain, ev); err != nil {
		return nil, fault.Internal(err, "an event cannot be decoded")
	}
	return ev, nil
}

// Arrived is an event in the order of the log. Err is set, and Event is not, where it does not open.
type Arrived struct {
	Position int64
	Event    *Event
	Err      error
}

// After reads at most most events that come after a position, in the order of the log.
func (s *Store) After(ctx context.Context, position int64, most int) ([]Arrived, error) {
	rows, err := db.New(s.db.Reader()).ListAfter(ctx, db.ListAfterParams{After: position, Most: int32(most)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Arrived, len(rows))
	for i, r := range rows {
		ev, err := s.open(ctx, row(r))
		out[i] = Arrived{Position: r.Position, Event: ev, Err: err}
	}
	return out, nil
}

// Holds reports whether an event belongs to the scope, by what is sealed in it.
func (sc Scope) Holds(ev *Event) bool {
	switch {
	case sc.Resource != "":
		return ev.GetWorkspaceUid() == sc.WorkspaceUID && resourceOf(ev.GetScope()) == sc.Resource
	case sc.WorkspaceUID != "":
		return ev.GetWorkspaceUid() == sc.WorkspaceUID
	case sc.ResourceGroupUID != "":
		return ev.GetResourceGroupUid() == sc.ResourceGroupUID
	case sc.SubscriptionUID != "":
		return ev.GetSubscriptionUid() == sc.SubscriptionUID
	}
	return sc.All
}
