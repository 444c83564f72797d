package telemetry

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history"
)

// ingestServer takes what other services deliver.
type ingestServer struct {
	telemetryv1.UnsafeIngestServiceServer
	s *Service
}

var _ telemetryv1.IngestServiceServer = ingestServer{}

// maxUIDBytes bounds uids in events: they stand in clear, and are the owners of keys.
const maxUIDBytes = 64

// Ingest implements telemetryv1.IngestServiceServer.
func (i ingestServer) Ingest(ctx context.Context, req *telemetryv1.IngestRequest) (*telemetryv1.IngestResponse, error) {
	service := rpc.From(ctx).PeerService
	if service == "" || len(req.GetEvents()) == 0 {
		return nil, fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "only services deliver events, and only their own")
	}
	for n, ev := range req.GetEvents() {
		field := fmt.Sprintf("events[%d]", n)
		switch {
		case ev.GetService() != service:
			return nil, fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "%s delivers an event of another service", service)
		case ev.GetSeq() < 1 || n > 0 && ev.GetSeq() != req.GetEvents()[n-1].GetSeq()+1:
			return nil, badEvent(field+".seq", "events come in the order of their numbers, without gaps")
		case ev.GetUid() == "" || len(ev.GetUid()) > maxUIDBytes:
			return nil, badEvent(field+".uid", "missing or too long")
		case len(ev.GetSubscriptionUid()) > maxUIDBytes || len(ev.GetResourceGroupUid()) > maxUIDBytes || len(ev.GetWorkspaceUid()) > maxUIDBytes:
			return nil, badEvent(field, "a uid is too long")
		case ev.GetTime().CheckValid() != nil:
			return nil, badEvent(field+".time", "missing or out of range")
		}
	}
	stored, err := i.s.activity.Ingest(ctx, service, req.GetEvents())
	if err != nil {
		return nil, err
	}
	i.s.feed.notify()
	return &telemetryv1.IngestResponse{StoredSeq: stored}, nil
}

func badEvent(field, text string) error {
	return fault.InvalidArgument("%s: %s", field, text).Field(field, text)
}

// PurgeWorkspace implements telemetryv1.IngestServiceServer. The rows go first, then the key; a repeated call does what is left.
func (i ingestServer) PurgeWorkspace(ctx context.Context, req *telemetryv1.PurgeWorkspaceRequest) (*emptypb.Empty, error) {
	uid := req.GetWorkspaceUid()
	if err := i.s.history.Store(uid).Purge(ctx, uid); err != nil {
		return nil, err
	}
	if err := i.s.requests.Purge(ctx, uid); err != nil {
		return nil, err
	}
	err := i.s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := i.s.cfg.Keys.DestroyIn(ctx, tx, uid); err != nil {
			return err
		}
		return rpc.From(ctx).Audit(ctx, tx, "workspace_uid", uid)
	})
	if err != nil {
		return nil, err
	}
	i.s.cfg.Keys.Forget(uid)
	i.s.runs.forget(uid)
	if err := i.s.cfg.DB.Scrub(ctx); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// runOf finds the run that the call's scope names.
func (s *Service) runOf(ctx context.Context, call *rpc.Call) (history.Run, error) {
	return runBy(ctx, s, call, s.runs.find)
}

// openRunOf gives the run of a call that changes its data. One whose agent is asking goes on, so it is not deleted.
func (s *Service) openRunOf(ctx context.Context, call *rpc.Call) (history.Run, error) {
	if call.Claims != nil && call.Claims.Run != "" {
		return s.runOf(ctx, call)
	}
	return runBy(ctx, s, call, s.runs.open)
}

func runBy(ctx context.Context, s *Service, call *rpc.Call, find func(ctx context.Context, runs Runs, workspaceUID, id string) (string, error)) (history.Run, error) {
	workspace, name := call.Scope.WorkspaceUID, call.Scope.Name
	if workspace == "" || name.IsZero() {
		return history.Run{}, fault.Internal(nil, "a call about a run has no run")
	}
	uid, err := find(ctx, s.cfg.Runs, workspace, name.ID())
	if fault.Is(err, codes.NotFound) {
		return history.Run{}, rpc.NotFound(name.String())
	}
	return history.Run{UID: uid, WorkspaceUID: workspace}, err
}
