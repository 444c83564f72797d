package endpoints

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/replicas"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// maxDeployments is how many deployments an endpoint has at most.
const maxDeployments = 20

// deploymentMessage is a deployment as callers see it.
func (s *Service) deploymentMessage(d *store.Deployment, rows []*store.Replica) *inferencev1.Deployment {
	m := &inferencev1.Deployment{
		Name: d.Name, Uid: d.UID, Spec: d.Spec, State: d.Status.State, Message: d.Status.Message, CreateTime: timestamppb.New(d.Created),
		UpdateTime: timestamppb.New(d.Updated), CreatedBy: d.CreatedBy, Etag: strconv.FormatInt(d.Revision, 10), Generation: d.Generation,
	}
	if d.Deleting {
		m.State = inferencev1.Deployment_STATE_DELETING
	}
	for _, r := range rows {
		if r.RunUID == "" {
			continue // compute has not answered yet
		}
		out := &inferencev1.Replica{Uid: r.RunUID, State: r.State, Generation: r.Generation, Message: r.Message, CreateTime: timestamppb.New(r.Created)}
		if r.State != inferencev1.Replica_STATE_ENDED {
			out.ReadyWorkers = int32(s.cfg.Listener.Ready(r.RunUID))
		}
		if replicas.Active(r) && out.GetReadyWorkers() > 0 {
			m.ReadyReplicas++
		}
		m.Replicas = append(m.Replicas, out)
	}
	return m
}

// deployment finds the deployment that a call is about, with its replicas.
func (s *Service) deployment(ctx context.Context, call *rpc.Call) (*store.Deployment, []*store.Replica, error) {
	e, err := s.endpoint(ctx, call)
	if err != nil {
		return nil, nil, err
	}
	x, err := s.reader(ctx, e.Workspace)
	if err != nil {
		return nil, nil, err
	}
	d, err := x.FindDeployment(ctx, e.UID, call.Scope.Name.ID())
	if err != nil {
		return nil, nil, absent(err, call.Scope.Name.String())
	}
	rows, err := x.Replicas(ctx, d.UID)
	return d, rows, err
}

// CreateDeployment implements inferencev1.EndpointServiceServer.
func (h api) CreateDeployment(ctx context.Context, req *inferencev1.CreateDeploymentRequest) (*inferencev1.Deployment, error) {
	call := rpc.From(ctx)
	if err := resource.ValidIDField("deployment_id", req.GetDeploymentId()); err != nil {
		return nil, err
	}
	spec, version, err := h.s.settle(ctx, call, req.GetDeployment())
	if err != nil {
		return nil, err
	}
	var d *store.Deployment
	err = h.s.changeNamed(ctx, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints, e *store.Endpoint) error {
		d = &store.Deployment{
			UID: resource.NewUID("dep"), Endpoint: e.UID, Workspace: e.Workspace, Name: e.Body.GetName() + "/deployments/" + req.GetDeploymentId(), Spec: spec,
			VersionUID: version.UID, CreatedBy: call.Principal, DeployedBy: call.Principal, Created: h.s.cfg.Now(),
			Status: store.Status{State: inferencev1.Deployment_STATE_CREATING, Held: []int64{1}},
		}
		there, err := x.DeploymentsOf(ctx, e.UID)
		if err != nil {
			return err
		}
		if len(there) >= maxDeployments {
			return fault.ResourceExhausted("the endpoint has %d deployments, which is the most; delete some", len(there))
		}
		if err := x.InsertDeployment(ctx, d); err != nil {
			return err
		}
		if err := h.s.cfg.Models.Hold(ctx, tx, version.UID, replicas.Holder(d.UID, 1), d.Name); err != nil {
			return absent(err, version.Name)
		}
		return call.Audit(ctx, tx, "deployment", d.UID, "model", version.Name, "replicas", strconv.Itoa(int(spec.GetReplicas())))
	})
	if err != nil {
		return nil, err
	}
	h.s.keepers.Look(d.Workspace, d.UID)
	return h.s.deploymentMessage(d, nil), nil
}

// GetDeployment implements inferencev1.EndpointServiceServer.
func (h api) GetDeployment(ctx context.Context, _ *inferencev1.GetDeploymentRequest) (*inferencev1.Deployment, error) {
	d, rows, err := h.s.deployment(ctx, rpc.From(ctx))
	if err != nil {
		return nil, err
	}
	return h.s.deploymentMessage(d, rows), nil
}

// ListDeployments implements inferencev1.EndpointServiceServer.
func (h api) ListDeployments(ctx context.Context, req *inferencev1.ListDeploymentsRequest) (*inferencev1.ListDeploymentsResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), 100, 1000)
	if err != nil {
		return nil, err
	}
	e, err := h.s.endpoint(ctx, rpc.From(ctx))
	if err != nil {
		return nil, err
	}
	x, cur, next, err := h.s.page(ctx, e.Workspace, "inference/deployments/"+e.UID, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, cur, err := x.ListDeployments(ctx, e.UID, cur, n)
	if err != nil {
		return nil, err
	}
	out := &inferencev1.ListDeploymentsResponse{}
	for _, d := range list {
		rows, err := x.Replicas(ctx, d.UID)
		if err != nil {
			return nil, err
		}
		out.Deployments = append(out.Deployments, h.s.deploymentMessage(d, rows))
	}
	out.NextPageToken, err = next(cur, len(list), n)
	return out, err
}

// UpdateDeployment implements inferencev1.EndpointServiceServer.
func (h api) UpdateDeployment(ctx context.Context, req *inferencev1.UpdateDeploymentRequest) (*inferencev1.Deployment, error) {
	call := rpc.From(ctx)
	spec, version, err := h.s.settle(ctx, call, req.GetDeployment())
	if err != nil {
		return nil, err
	}
	var d *store.Deployment
	var rows []*store.Replica
	err = h.s.changeNamed(ctx, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints, e *store.Endpoint) error {
		if d, err = x.FindDeployment(ctx, e.UID, call.Scope.Name.ID()); err != nil {
			return err
		}
		switch etag := req.GetEtag(); {
		case d.Deleting:
			return fault.Aborted("the deployment is being deleted; make it anew in a moment").Retry(time.Second)
		case etag != "" && etag != strconv.FormatInt(d.Revision, 10):
			return fault.Aborted("the deployment was changed meanwhile; read it and repeat the call")
		}
		if d.VersionUID != version.UID || otherReplicas(d.Spec, spec) {
			d.Generation++
			if err := h.s.cfg.Models.Hold(ctx, tx, version.UID, replicas.Holder(d.UID, d.Generation), d.Name); err != nil {
				return absent(err, version.Name)
			}
			d.VersionUID, d.DeployedBy = version.UID, call.Principal
			d.Status = store.Status{
				State: inferencev1.Deployment_STATE_UPDATING, Updated: true, Offered: d.Status.Offered, Held: append(slices.Clone(d.Status.Held), d.Generation),
			}
		}
		if d.Spec.GetReplicas() != spec.GetReplicas() { // whoever waits for it waits until they are there, or gone
			d.Status.State, d.Status.Updated, d.Status.Complete = inferencev1.Deployment_STATE_UPDATING, true, false
		}
		d.Spec = spec
		if err := x.UpdateDeployment(ctx, d, h.s.cfg.Now()); err != nil {
			return err
		}
		if rows, err = x.Replicas(ctx, d.UID); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "deployment", d.UID, "model", version.Name, "replicas", strconv.Itoa(int(spec.GetReplicas())), "generation", strconv.FormatInt(d.Generation, 10))
	})
	if err != nil {
		return nil, absent(err, call.Scope.Name.String())
	}
	h.s.keepers.Look(d.Workspace, d.UID)
	return h.s.deploymentMessage(d, rows), nil
}

// otherReplicas reports whether a spec needs replicas that are made in another way.
func otherReplicas(before, after *inferencev1.DeploymentSpec) bool {
	a, b := proto.CloneOf(before), proto.CloneOf(after)
	for _, s := range []*inferencev1.DeploymentSpec{a, b} {
		s.Replicas, s.QueueLength = 0, 0
	}
	return !proto.Equal(a, b)
}

// markDeleting makes a deployment one that is being deleted.
func (s *Service) markDeleting(ctx context.Context, x store.Endpoints, d *store.Deployment) error {
	d.Deleting, d.Status.State, d.Status.Message = true, inferencev1.Deployment_STATE_DELETING, ""
	return x.UpdateDeployment(ctx, d, s.cfg.Now())
}

// DeleteDeployment implements inferencev1.EndpointServiceServer. When it returns, no request goes to the deployment any more; those that
// it has are answered, and then its replicas are stopped.
func (h api) DeleteDeployment(ctx context.Context, _ *inferencev1.DeleteDeploymentRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	var d *store.Deployment
	err := h.s.changeNamed(ctx, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints, e *store.Endpoint) (err error) {
		if d, err = x.FindDeployment(ctx, e.UID, call.Scope.Name.ID()); err != nil {
			return err
		}
		if !d.Deleting {
			if err := h.withdraw(ctx, x, e, d); err != nil {
				return err
			}
			if err := h.s.markDeleting(ctx, x, d); err != nil {
				return err
			}
		}
		return call.Audit(ctx, tx, "deployment", d.UID)
	})
	if err != nil {
		return nil, absent(err, call.Scope.Name.String())
	}
	h.s.keepers.Look(d.Workspace, d.UID)
	h.s.news.changed(d.UID)
	return &emptypb.Empty{}, nil
}

// withdraw takes a deployment out of the endpoint's traffic and mirror. It is refused while others could take its share.
func (h api) withdraw(ctx context.Context, x store.Endpoints, e *store.Endpoint, d *store.Deployment) error {
	there, err := h.deployable(ctx, x, e.UID)
	if err != nil {
		return err
	}
	id := d.ID()
	traffic, mirror := e.Body.GetTraffic()[id], e.Body.GetMirror()[id]
	if traffic > 0 && len(there) > 1 {
		return fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "%d percent of the endpoint's traffic go to this deployment; give them to another one first", traffic)
	}
	if traffic == 0 && mirror == 0 {
		return nil
	}
	e.Body.Traffic, e.Body.Mirror = maps.Clone(e.Body.GetTraffic()), maps.Clone(e.Body.GetMirror())
	delete(e.Body.GetTraffic(), id)
	delete(e.Body.GetMirror(), id)
	return x.Update(ctx, e, h.s.cfg.Now())
}

// WatchDeployment implements inferencev1.EndpointServiceServer.
func (h api) WatchDeployment(req *inferencev1.WatchDeploymentRequest, stream grpc.ServerStreamingServer[inferencev1.Deployment]) error {
	ctx := stream.Context()
	call := rpc.From(ctx)
	first, _, err := h.s.deployment(ctx, call)
	if err != nil {
		return err
	}
	var sent *inferencev1.Deployment
	for {
		changed := h.s.news.next(first.UID)
		d, rows, err := h.s.deployment(ctx, call)
		if err != nil {
			return err
		}
		if d.UID != first.UID { // deleted, and made anew
			return rpc.NotFound(req.GetName())
		}
		if m := h.s.deploymentMessage(d, rows); !proto.Equal(m, sent) {
			if err := stream.Send(m); err != nil {
				return err
			}
			sent = m
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// StreamDeploymentLogs implements inferencev1.EndpointServiceServer.
func (h api) StreamDeploymentLogs(req *inferencev1.StreamDeploymentLogsRequest, stream grpc.ServerStreamingServer[inferencev1.DeploymentLogChunk]) error {
	ctx := stream.Context()
	d, rows, err := h.s.deployment(ctx, rpc.From(ctx))
	if err != nil {
		return err
	}
	rows = slices.DeleteFunc(rows, func(r *store.Replica) bool {
		return r.RunUID == "" || req.GetReplica() != "" && r.RunUID != req.GetReplica()
	})
	if len(rows) == 0 {
		if req.GetReplica() != "" {
			return fault.NotFound("the deployment has no replica %s; the deployment names those whose logs are kept", req.GetReplica())
		}
		return fault.FailedPrecondition("the deployment has no replica yet, and no log; watch it until one is started")
	}
	r := rows[len(rows)-1]
	logs, err := h.s.cfg.Replicas.ReadReplicaLogs(ctx, &computev1.ReadReplicaLogsRequest{
		WorkspaceUid: d.Workspace, ReplicaId: r.ID, Offset: req.GetOffset(), Follow: req.GetFollow(),
	})
	if err != nil {
		return fault.FromStatus(err)
	}
	for {
		c, err := logs.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.FromStatus(err)
		}
		if err := stream.Send(&inferencev1.DeploymentLogChunk{Replica: r.RunUID, Offset: c.GetOffset(), Data: c.GetData()}); err != nil {
			return err
		}
	}
}
