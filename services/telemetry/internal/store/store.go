// Package store keeps the activity log: the events of all services, each once and without gaps.
//
// It owns the tables activity, activity_head and activity_source. An event is sealed whole, under the key of its subscription, or of
// the installation where it belongs to none: never under a workspace's key, since what was done with that key has to be shown too.
// Beside it stand in clear only the columns that queries select by: service and number, uids of event, subscription, resource group,
// workspace and principal, the method, the time and the result; and MACs of the request id and of the resource below the workspace.
//
// Position is the order of the log: events are committed in it, and within a service it is the order of their numbers. Clocks do not
// matter for it.
//
// Whoever writes the database can remove events or the newest part of the log; he cannot read, forge or move one. A service whose
// numbers begin anew, so that another event comes under a number that is stored, is refused: its own record was lost or replaced.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store/db"
)

// Files are the goose migrations, in the folder migrations.
//
//go:embed migrations/*.sql
var Files embed.FS

// Installation owns the key of events that belong to no subscription, and that of MACs and page tokens.
const Installation = "installation"

// Event is one record of the activity log.
type Event = audit.Event

// Store is safe for concurrent use.
type Store struct {
	db   *sqldb.DB
	keys *envelope.Keyring
}

// New makes the store. keys are under the service's own seal.
func New(database *sqldb.DB, keys *envelope.Keyring) *Store { return &Store{database, keys} }

// Key is the installation's key.
func (s *Store) Key(ctx context.Context) (*envelope.Key, error) { return s.keys.Key(ctx, Installation) }

// Ready reports why the database cannot be used, or nil.
func (s *Store) Ready(ctx context.Context) error {
	_, err := s.Newest(ctx)
	return err
}

// topic is signalled with each batch of events that is stored.
const topic = "activity"

// Signals gives a channel that receives after events were stored, by whichever instance, and a function that ends it.
func (s *Store) Signals() (stored <-chan struct{}, stop func()) { return s.db.Signals(topic) }

// Newest is the position of the newest event, 0 for an empty log.
func (s *Store) Newest(ctx context.Context) (int64, error) {
	position, err := db.New(s.db.Reader()).NewestPosition(ctx)
	return position, sqldb.Fault(err)
}

// owner is whose key seals an event.
func owner(subscriptionUID string) string {
	if subscriptionUID == "" {
		return Installation
	}
	return subscriptionUID
}

func aad(subscriptionUID, service, uid string, seq int64) envelope.AAD {
	return envelope.AAD{Owner: owner(subscriptionUID), Kind: "activity", ID: service + "/" + uid, Version: seq}
}

// Ingest stores the events of a service that are new: they are numbered without a gap, in order. It returns up to which number
// everything is stored.
//
// Errors: FAILED_PRECONDITION with the metadata stored_seq, where numbers before the first are missing; DATA_DAMAGED where another event
// than the stored one comes under its number.
func (s *Store) Ingest(ctx context.Context, service string, events []*Event) (int64, error) {
	rows, err := s.rows(ctx, events)
	if err != nil {
		return 0, err
	}
	first, last := events[0].GetSeq(), events[len(events)-1].GetSeq()
	var stored int64
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		var err error
		if stored, err = q.StoredSeq(ctx, service); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if first > stored+1 {
			return fault.FailedPrecondition("events of %s are stored up to number %d, and these begin with %d; send what lies between", service, stored, first).
				With(audit.StoredSeq, strconv.FormatInt(stored, 10))
		}
		if err := sameAsStored(ctx, q, service, first, stored, rows); err != nil {
			return err
		}
		fresh, err := s.fresh(ctx, events, rows, stored)
		if err != nil || len(fresh) == 0 {
			return err
		}
		position, err := q.TakePositions(ctx, int64(len(fresh)))
		if err != nil {
			return err
		}
		for i, row := range fresh {
			row.Position = position - int64(len(fresh)) + int64(i) + 1
			if err := q.InsertEvent(ctx, row); err != nil {
				return err
			}
		}
		stored = max(stored, last)
		if err := q.SetStoredSeq(ctx, db.SetStoredSeqParams{Service: service, StoredSeq: stored}); err != nil {
			return err
		}
		return tx.Signal(ctx, topic)
	})
	return stored, err
}

// sameAsStored compares events that came before with what is stored of them.
func sameAsStored(ctx context.Context, q *db.Queries, service string, first, stored int64, rows []db.InsertEventParams) error {
	if first > stored {
		return nil
	}
	known, err := q.EventUIDs(ctx, db.EventUIDsParams{Service: service, First: first, Last: min(stored, first+int64(len(rows))-1)})
	if err != nil {
		return err
	}
	for _, row := range known {
		if rows[row.Seq-first].UID != row.UID {
			return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED,
				"event %d of %s is stored already, and is another one: the service has lost its record and begun anew. Nothing of it is taken until an operator has looked into it", row.Seq, service)
		}
	}
	return nil
}

// rows seals events, outside of any transaction.
func (s *Store) rows(ctx context.Context, events []*Event) ([]db.InsertEventParams, error) {
	installation, err := s.Key(ctx)
	if err != nil {
		return nil, err
	}
	rows := make([]db.InsertEventParams, len(events))
	for i, ev := range events {
		key, err := s.keys.Key(ctx, owner(ev.GetSubscriptionUid()))
		if err != nil {
			return nil, err
		}
		plain, err := proto.Marshal(ev)
		if err != nil {
			return nil, fault.Internal(err, "an event could not be encoded")
		}
		sealed, err := key.Seal(aad(ev.GetSubscriptionUid(), ev.GetService(), ev.GetUid(), ev.GetSeq()), plain)
		if err != nil {
			return nil, err
		}
		rows[i] = db.InsertEventParams{
			Service: ev.GetService(), Seq: ev.GetSeq(), UID: ev.GetUid(), Time: micros(ev.GetTime().AsTime()),
			SubscriptionUID: ev.GetSubscriptionUid(), ResourceGroupUID: ev.GetResourceGroupUid(), WorkspaceUID: ev.GetWorkspaceUid(),
			ResourceMac: []byte{}, RequestMac: []byte{}, Principal: ev.GetPrincipal(), Method: ev.GetMethod(), Result: int64(ev.GetResult()),
			Sealed: sealed,
		}
		if r := resourceOf(ev.GetScope()); r != "" {
			rows[i].ResourceMac = resourceMAC(installation, ev.GetWorkspaceUid(), r)
		}
		if id := ev.GetRequestId(); id != "" {
			rows[i].RequestMac = requestMAC(installation, id)
		}
	}
	return rows, nil
}

// micros keeps times that no clock has from wrapping around.
func micros(t time.Time) int64 {
	const far = math.MaxInt64 / 1_000_000
	switch s := t.Unix(); {
	case s >= far:
		return math.MaxInt64
	case s <= -far:
		return math.MinInt64
	}
	return t.UnixMicro()
}

// resourceOf is what tells a resource from others of its workspace, or of the installation: the first two segments below it. It is
// "" for a subscription, resource group or workspace itself, and for what is no name.
func resourceOf(scope string) string {
	name, err := resource.Parse(scope)
	if err != nil {
		return ""
	}
	return ResourceOf(name)
}

// ResourceOf is resourceOf for a parsed name.
func ResourceOf(name resource.Name) string {
	switch name.Kind() {
	case resource.KindUnknown, resource.KindRoot, resource.KindSubscription, resource.KindResourceGroup, resource.KindWorkspace:
		return ""
	}
	path := name.Relative()
	if path == "" {
		path = name.String()
	}
	if segments := strings.SplitN(path, "/", 3); len(segments) >= 2 {
		return segments[0] + "/" + segments[1]
	}
	return path
}

func resourceMAC(key *envelope.Key, workspaceUID, path string) []byte {
	return key.MAC("activity-resource", workspaceUID, path)
}

func requestMAC(key *envelope.Key, id string) []byte { return key.MAC("activity-request", "", id) }
