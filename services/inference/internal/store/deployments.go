package store

import (
	"context"
	"encoding/json"
	"time"

	"google.golang.org/protobuf/proto"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store/db"
)

// Deployment is a deployment as it is stored.
type Deployment struct {
	UID, Endpoint, Workspace string
	// Name is the resource name.
	Name string
	// Spec is what was asked for, with what was left out filled in and the model's version fixed.
	Spec *inferencev1.DeploymentSpec
	// VersionUID is the model version that the spec means.
	VersionUID string
	// CreatedBy made it; DeployedBy has changed it last, and its replicas run for him.
	CreatedBy, DeployedBy string
	Status                Status
	Generation            int64
	Deleting              bool
	Revision              int64
	Created, Updated      time.Time
}

// Status is what the platform has found out about a deployment.
type Status struct {
	State   inferencev1.Deployment_State `json:"state"`
	Message string                       `json:"message,omitempty"`
	// Failures are those in a row to start a replica; after RetryAt it is tried again.
	Failures int       `json:"failures,omitempty"`
	RetryAt  time.Time `json:"retry_at,omitzero"`
	// Complete says that all replicas of the generation have answered at one time.
	Complete bool `json:"complete,omitempty"`
	// Updated says that there was an earlier generation; Offered, that it has answered once.
	Updated bool `json:"updated,omitempty"`
	Offered bool `json:"offered,omitempty"`
	// Held are the generations that hold a model version.
	Held []int64 `json:"held,omitempty"`
}

// ID is the last segment of the deployment's name.
func (d *Deployment) ID() string { return lastSegment(d.Name) }

// deploymentBody is what is sealed of a deployment.
type deploymentBody struct {
	Name       string `json:"name"`
	Spec       []byte `json:"spec"`
	VersionUID string `json:"version_uid"`
	CreatedBy  string `json:"created_by"`
	DeployedBy string `json:"deployed_by"`
}

// Replica is a run that compute is asked for.
type Replica struct {
	ID, Deployment string
	// RunUID is "" until compute has answered.
	RunUID                string
	Generation            int64
	State                 inferencev1.Replica_State
	Message               string
	Created, Ready, Ended time.Time
}

func (x Endpoints) sealedDeployment(d *Deployment, revision int64) (body, status []byte, err error) {
	spec, err := proto.Marshal(d.Spec)
	if err != nil {
		return nil, nil, fault.Internal(err, "the deployment cannot be stored")
	}
	plain, err := json.Marshal(deploymentBody{Name: d.Name, Spec: spec, VersionUID: d.VersionUID, CreatedBy: d.CreatedBy, DeployedBy: d.DeployedBy})
	if err != nil {
		return nil, nil, fault.Internal(err, "the deployment cannot be stored")
	}
	if body, err = x.key.Seal(x.aad("deployment", d.UID, "body", revision), plain); err != nil {
		return nil, nil, err
	}
	if plain, err = json.Marshal(d.Status); err != nil {
		return nil, nil, fault.Internal(err, "the deployment's state cannot be stored")
	}
	status, err = x.key.Seal(x.aad("deployment", d.UID, "status", revision), plain)
	return body, status, err
}

// InsertDeployment makes a deployment.
func (x Endpoints) InsertDeployment(ctx context.Context, d *Deployment) error {
	body, status, err := x.sealedDeployment(d, 1)
	if err != nil {
		return err
	}
	n, err := x.q.InsertDeployment(ctx, db.InsertDeploymentParams{
		UID: d.UID, EndpointUID: d.Endpoint, WorkspaceUID: x.workspace, NameMac: x.key.MAC("deployment", d.Endpoint, d.ID()), Body: body, Status: status, CreateTime: micros(d.Created),
	})
	if err != nil {
		return sqldb.Fault(err)
	}
	if n == 0 {
		there, err := x.FindDeployment(ctx, d.Endpoint, d.ID())
		if err == nil && there.Deleting {
			return fault.Aborted("the endpoint's deployment of that name is still being deleted; repeat the call in a moment").Retry(time.Second)
		}
		return fault.AlreadyExists("the endpoint has a deployment of that name already; update it, or choose another id")
	}
	d.Revision, d.Generation, d.Updated = 1, 1, d.Created
	return nil
}

// Deployment gives a deployment by its uid.
func (x Endpoints) Deployment(ctx context.Context, uid string) (*Deployment, error) {
	row, err := x.q.GetDeployment(ctx, uid)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return x.deployment(row)
}

// FindDeployment gives a deployment of an endpoint by its id.
func (x Endpoints) FindDeployment(ctx context.Context, endpoint, id string) (*Deployment, error) {
	row, err := x.q.FindDeployment(ctx, db.FindDeploymentParams{EndpointUID: endpoint, NameMac: x.key.MAC("deployment", endpoint, id)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	d, err := x.deployment(row)
	if err == nil && d.ID() != id {
		return nil, errMisplaced("deployment")
	}
	return d, err
}

func (x Endpoints) deployment(row db.Deployment) (*Deployment, error) {
	if row.WorkspaceUID != x.workspace {
		return nil, fault.NotFound("the deployment is not of this workspace")
	}
	d := &Deployment{
		UID: row.UID, Endpoint: row.EndpointUID, Workspace: row.WorkspaceUID, Spec: &inferencev1.DeploymentSpec{}, Generation: row.Generation,
		Deleting: row.Deleting != 0, Revision: row.Revision, Created: instant(row.CreateTime), Updated: instant(row.UpdateTime),
	}
	plain, err := x.key.Open(x.aad("deployment", d.UID, "body", d.Revision), row.Body)
	if err != nil {
		return nil, err
	}
	var body deploymentBody
	if err := json.Unmarshal(plain, &body); err != nil {
		return nil, errDamaged("a stored deployment cannot be read")
	}
	if err := proto.Unmarshal(body.Spec, d.Spec); err != nil {
		return nil, errDamaged("a stored deployment cannot be read")
	}
	d.Name, d.VersionUID, d.CreatedBy, d.DeployedBy = body.Name, body.VersionUID, body.CreatedBy, body.DeployedBy
	if plain, err = x.key.Open(x.aad("deployment", d.UID, "status", d.Revision), row.Status); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(plain, &d.Status); err != nil {
		return nil, errDamaged("the stored state of a deployment cannot be read")
	}
	return d, nil
}

// ListDeployments gives deployments of an endpoint after the cursor, oldest first.
func (x Endpoints) ListDeployments(ctx context.Context, endpoint string, after Cursor, limit int) ([]*Deployment, Cursor, error) {
	rows, err := x.q.ListDeployments(ctx, db.ListDeploymentsParams{EndpointUID: endpoint, CreateTime: after.Time, UID: after.UID, Column4: int64(limit)})
	if err != nil {
		return nil, after, sqldb.Fault(err)
	}
	out := make([]*Deployment, 0, len(rows))
	for _, row := range rows {
		d, err := x.deployment(row)
		if err != nil {
			return nil, after, err
		}
		out = append(out, d)
		after = Cursor{Time: row.CreateTime, UID: row.UID}
	}
	return out, after, nil
}

// DeploymentsOf are all deployments of an endpoint, oldest first.
func (x Endpoints) DeploymentsOf(ctx context.Context, endpoint string) ([]*Deployment, error) {
	rows, err := x.q.DeploymentsOfEndpoint(ctx, endpoint)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]*Deployment, 0, len(rows))
	for _, row := range rows {
		d, err := x.deployment(row)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// UpdateDeployment stores a changed deployment, if nobody else has changed it since it was read.
func (x Endpoints) UpdateDeployment(ctx context.Context, d *Deployment, now time.Time) error {
	body, status, err := x.sealedDeployment(d, d.Revision+1)
	if err != nil {
		return err
	}
	deleting := int64(0)
	if d.Deleting {
		deleting = 1
	}
	n, err := x.q.UpdateDeployment(ctx, db.UpdateDeploymentParams{
		UID: d.UID, Revision: d.Revision, Body: body, Status: status, Generation: d.Generation, Deleting: deleting, UpdateTime: micros(now),
	})
	if err != nil {
		return sqldb.Fault(err)
	}
	if n == 0 {
		return fault.Aborted("the deployment was changed meanwhile; read it and repeat the call")
	}
	d.Revision++
	d.Updated = now
	return nil
}

// DeleteDeployment removes a deployment with what is known of its replicas.
func (x Endpoints) DeleteDeployment(ctx context.Context, uid string) error {
	if err := x.q.DeleteReplicas(ctx, uid); err != nil {
		return sqldb.Fault(err)
	}
	return sqldb.Fault(x.q.DeleteDeployment(ctx, uid))
}

// --- replicas

func (x Endpoints) sealedMessage(r *Replica) ([]byte, error) {
	return x.key.SealString(x.aad("replica", r.ID, r.Deployment, 0), r.Message)
}

// InsertReplica makes a replica wanted.
func (x Endpoints) InsertReplica(ctx context.Context, r *Replica) error {
	message, err := x.sealedMessage(r)
	if err != nil {
		return err
	}
	return sqldb.Fault(x.q.InsertReplica(ctx, db.InsertReplicaParams{
		ReplicaID: r.ID, DeploymentUID: r.Deployment, WorkspaceUID: x.workspace, Generation: r.Generation, State: int64(r.State), Message: message, CreateTime: micros(r.Created),
	}))
}

// Replicas are those of a deployment, oldest first, with the last ones that have ended.
func (x Endpoints) Replicas(ctx context.Context, deployment string) ([]*Replica, error) {
	rows, err := x.q.ReplicasOfDeployment(ctx, deployment)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]*Replica, 0, len(rows))
	for _, row := range rows {
		r := &Replica{
			ID: row.ReplicaID, Deployment: row.DeploymentUID, RunUID: row.RunUID, Generation: row.Generation, State: inferencev1.Replica_State(row.State),
			Created: instant(row.CreateTime), Ready: instant(row.ReadyTime), Ended: instant(row.EndTime),
		}
		if r.Message, err = x.key.OpenString(x.aad("replica", r.ID, r.Deployment, 0), row.Message); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// UpdateReplica stores a changed replica. Only the one who looks after its deployment changes it.
func (x Endpoints) UpdateReplica(ctx context.Context, r *Replica) error {
	message, err := x.sealedMessage(r)
	if err != nil {
		return err
	}
	n, err := x.q.UpdateReplica(ctx, db.UpdateReplicaParams{
		ReplicaID: r.ID, RunUID: r.RunUID, State: int64(r.State), Message: message, ReadyTime: micros(r.Ready), EndTime: micros(r.Ended),
	})
	if err != nil {
		return sqldb.Fault(err)
	}
	if n == 0 {
		return fault.NotFound("the replica is gone")
	}
	return nil
}

// DeleteReplica forgets a replica that has ended.
func (x Endpoints) DeleteReplica(ctx context.Context, id string) error {
	return sqldb.Fault(x.q.DeleteReplica(ctx, id))
}

// ReplicasOfWorkspace are the replicas of a workspace, without what is sealed of them: its key may be gone.
func (s *Store) ReplicasOfWorkspace(ctx context.Context, workspace string) ([]*Replica, error) {
	rows, err := db.New(s.db.Reader()).ReplicasOfWorkspace(ctx, workspace)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]*Replica, 0, len(rows))
	for _, row := range rows {
		out = append(out, &Replica{ID: row.ReplicaID, Deployment: row.DeploymentUID, RunUID: row.RunUID, State: inferencev1.Replica_State(row.State)})
	}
	return out, nil
}

// AllDeployments are the deployments of all workspaces.
func (s *Store) AllDeployments(ctx context.Context) ([]Place, error) {
	rows, err := db.New(s.db.Reader()).AllDeployments(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Place, 0, len(rows))
	for _, r := range rows {
		out = append(out, Place{UID: r.UID, Workspace: r.WorkspaceUID})
	}
	return out, nil
}

// EndpointsOfWorkspace are the uids of a workspace's endpoints, those that are being deleted too.
func (s *Store) EndpointsOfWorkspace(ctx context.Context, workspace string) ([]string, error) {
	list, err := db.New(s.db.Reader()).EndpointsOfWorkspace(ctx, workspace)
	return list, sqldb.Fault(err)
}

// PurgeEndpoints removes the endpoints of a workspace with all that belongs to them.
func PurgeEndpoints(ctx context.Context, tx *sqldb.Tx, workspace string) error {
	q := db.New(tx)
	for _, remove := range []func(context.Context, string) error{
		q.DeleteReplicasOfWorkspace, q.DeleteDeploymentsOfWorkspace, q.DeleteTokensOfWorkspace, q.DeleteEndpointsOfWorkspace,
	} {
		if err := remove(ctx, workspace); err != nil {
			return sqldb.Fault(err)
		}
	}
	return nil
}
