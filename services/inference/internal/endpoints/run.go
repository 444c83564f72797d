package endpoints

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/replicas"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

const (
	// sweepEvery is how often tokens that have expired are removed. They open nothing from their end on, whenever that is.
	sweepEvery = time.Minute
	// cleanEvery is how often the listener is told of what it could not be told of.
	cleanEvery = time.Second
)

// Load tells the listener of every endpoint. It goes on until that has worked, or ctx has ended: before it, nobody is to be let in. An
// endpoint that cannot be read for good does not keep the others; it stays closed, and is tried again by Run.
func (s *Service) Load(ctx context.Context) error {
	for {
		err := s.load(ctx)
		if err == nil {
			return nil
		}
		s.cfg.Logger.WarnContext(ctx, "the endpoints cannot be read yet; nothing is scored until they are", "error", err)
		t := time.NewTimer(cleanEvery)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

func (s *Service) load(ctx context.Context) error {
	list, err := s.store.AllEndpoints(ctx)
	if err != nil {
		return err
	}
	for _, at := range list {
		err := s.open(ctx, at)
		switch {
		case err == nil:
		case replicas.Passing(err) || ctx.Err() != nil:
			return err
		case fault.ReasonOf(err) != faultv1.Reason_KEY_DISABLED:
			s.cfg.Logger.ErrorContext(ctx, "an endpoint cannot be read, and stays closed", "endpoint_uid", at.UID, "workspace_uid", at.Workspace, "error", err)
			s.soil(at.Workspace, at.UID)
		}
	}
	return nil
}

// open tells the listener of one endpoint and of the replicas behind it.
func (s *Service) open(ctx context.Context, at store.Place) error {
	x, err := s.reader(ctx, at.Workspace)
	if err != nil {
		return err
	}
	deployments, err := x.DeploymentsOf(ctx, at.UID)
	if err != nil {
		return err
	}
	for _, d := range deployments {
		rows, err := x.Replicas(ctx, d.UID)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if r.RunUID != "" && r.State != inferencev1.Replica_STATE_ENDED {
				s.cfg.Listener.Expect(r.RunUID, d.Workspace, d.UID)
			}
		}
	}
	return s.again(ctx, at.Workspace, at.UID)
}

// Run looks after deployments and sweeps, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.keepers.Run(ctx) })
	g.Go(func() error { return s.tidy(ctx) })
	return g.Wait()
}

// tidy does what is due from time to time.
func (s *Service) tidy(ctx context.Context) error {
	sweep, clean := time.NewTicker(sweepEvery), time.NewTicker(cleanEvery)
	defer sweep.Stop()
	defer clean.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-clean.C:
			if err := s.clean(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Logger.WarnContext(ctx, "an endpoint is closed, since it cannot be read", "error", err)
			}
		case <-sweep.C:
			if _, err := s.store.SweepTokens(ctx, s.cfg.Now()); err != nil && ctx.Err() == nil {
				s.cfg.Logger.WarnContext(ctx, "expired tokens could not be removed", "error", err)
			}
		}
	}
}

// record writes what the platform does with a deployment into the activity log, in the name of who deployed it, in the transaction of
// the change.
func (s *Service) record(ctx context.Context, tx *sqldb.Tx, d *store.Deployment, action string, details map[string]string) error {
	name, err := resource.Parse(d.Name)
	if err != nil {
		return err
	}
	scope, _ := s.cfg.Engine.Resolve(name)
	details["deployment"] = d.UID
	for k, v := range details {
		if len(v) > 512 {
			details[k] = v[:512]
		}
	}
	return s.cfg.Outbox.Append(ctx, tx, &audit.Event{
		Uid: resource.NewUID("evt"), Time: timestamppb.New(s.cfg.Now()), Service: "inference", Method: "/" + action, Action: action, Scope: d.Name, ScopeUid: d.UID,
		Principal: d.DeployedBy, Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: codes.OK.String(), Count: 1,
		WorkspaceUid: d.Workspace, ResourceGroupUid: scope.ResourceGroupUID, SubscriptionUid: scope.SubscriptionUID, Details: details,
	})
}
