//go:build linux

package load

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/test/fault/internal/oracle"
)

// Kinds of objects.
const (
	kindSecret     = "secret"
	kindCipher     = "ciphertext"
	kindModel      = "model"
	kindSnapshot   = "snapshot"
	kindGroup      = "group"
	kindAssignment = "assignment"
	kindPoint      = "metric"
	kindRun        = "run"
)

// place is where an object is looked for.
type place struct {
	c *Client
	// parent is a workspace, a run or a key; id what it is called there.
	parent, id string
	data       []byte
}

// secrets gives a new secret some versions and reads each; some are deleted.
func (c *Client) secrets(ctx context.Context) {
	n := c.load.next()
	id := fmt.Sprintf("s%d", n)
	name := c.Workspace + "/secrets/" + id
	o := c.load.cfg.Book.Object(kindSecret, name, place{c: c, id: name})
	for v := range 3 {
		value := fmt.Sprintf("value %d of %s", v+1, id)
		if !c.wrote(ctx, o, value, false, keyvaultv1.SecretService_SetSecret_FullMethodName, func(ctx context.Context) error {
			_, err := keyvaultv1.NewSecretServiceClient(c.Conn).SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: c.Workspace, SecretId: id, Value: []byte(value)})
			return err
		}) {
			return
		}
		var got []byte
		if err := c.read(ctx, keyvaultv1.SecretService_AccessSecret_FullMethodName, func(ctx context.Context) error {
			r, err := keyvaultv1.NewSecretServiceClient(c.Conn).AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: name})
			got = r.GetValue()
			return err
		}); status.Code(err) == codes.NotFound || err == nil && string(got) != value {
			c.load.cfg.Book.Violate("%s was written with %q, and then read as %q, %v", name, value, got, err)
		}
	}
	if n%4 == 0 {
		c.wrote(ctx, o, "", true, keyvaultv1.SecretService_DeleteSecret_FullMethodName, func(ctx context.Context) error {
			_, err := keyvaultv1.NewSecretServiceClient(c.Conn).DeleteSecret(ctx, &keyvaultv1.DeleteSecretRequest{Name: name})
			return err
		})
	}
}

// keys makes a key, encrypts, rotates it, and decrypts what the version before encrypted.
func (c *Client) keys(ctx context.Context) {
	id := fmt.Sprintf("k%d", c.load.next())
	name := c.Workspace + "/keys/" + id
	vault := keyvaultv1.NewKeyServiceClient(c.Conn)
	if _, err := c.change(ctx, keyvaultv1.KeyService_CreateKey_FullMethodName, func(ctx context.Context) error {
		_, err := vault.CreateKey(ctx, &keyvaultv1.CreateKeyRequest{Parent: c.Workspace, KeyId: id})
		return err
	}); err != nil {
		return
	}
	for i := range 6 {
		plain := fmt.Sprintf("plaintext %d of %s", i, id)
		var cipher []byte
		call, err := c.change(ctx, keyvaultv1.KeyService_Encrypt_FullMethodName, func(ctx context.Context) error {
			r, err := vault.Encrypt(ctx, &keyvaultv1.EncryptRequest{Name: name, Plaintext: []byte(plain)})
			cipher = r.GetCiphertext()
			return err
		})
		if err == nil {
			o := c.load.cfg.Book.Object(kindCipher, fmt.Sprintf("%s of %s", plain, name), place{c: c, id: name, data: cipher})
			c.load.cfg.Book.Wrote(o, oracle.Write{Call: call, Value: plain})
		}
		if i == 3 {
			_, _ = c.change(ctx, keyvaultv1.KeyService_RotateKey_FullMethodName, func(ctx context.Context) error {
				_, err := vault.RotateKey(ctx, &keyvaultv1.RotateKeyRequest{Name: name})
				return err
			})
		}
		idle(ctx)
	}
}

// models makes models; some are deleted.
func (c *Client) models(ctx context.Context) {
	n := c.load.next()
	id := fmt.Sprintf("m%d", n)
	name := c.Workspace + "/models/" + id
	o := c.load.cfg.Book.Object(kindModel, name, place{c: c, parent: c.Workspace, id: name})
	models := inferencev1.NewModelServiceClient(c.Conn)
	if !c.wrote(ctx, o, id, false, inferencev1.ModelService_CreateModel_FullMethodName, func(ctx context.Context) error {
		_, err := models.CreateModel(ctx, &inferencev1.CreateModelRequest{Parent: c.Workspace, ModelId: id, Description: id})
		return err
	}) {
		return
	}
	if err := c.read(ctx, inferencev1.ModelService_GetModel_FullMethodName, func(ctx context.Context) error {
		_, err := models.GetModel(ctx, &inferencev1.GetModelRequest{Name: name})
		return err
	}); status.Code(err) == codes.NotFound {
		c.load.cfg.Book.Violate("%s was made, and then not there: %v", name, err)
	}
	if n%3 == 0 {
		c.wrote(ctx, o, "", true, inferencev1.ModelService_DeleteModel_FullMethodName, func(ctx context.Context) error {
			_, err := models.DeleteModel(ctx, &inferencev1.DeleteModelRequest{Name: name})
			return err
		})
	}
	idle(ctx)
	idle(ctx)
}

// groups makes groups, gives them a role at a workspace, and takes some of them away.
func (c *Client) groups(ctx context.Context) {
	n := c.load.next()
	id := fmt.Sprintf("g%d", n)
	o := c.load.cfg.Book.Object(kindGroup, "groups/"+id, place{c: c, id: "groups/" + id})
	var uid string
	if !c.wrote(ctx, o, "groups/"+id, false, identityv1.DirectoryService_CreateGroup_FullMethodName, func(ctx context.Context) error {
		g, err := identityv1.NewDirectoryServiceClient(c.Conn).CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: id})
		uid = g.GetUid()
		return err
	}) {
		return
	}
	access := workspacev1.NewAccessServiceClient(c.Conn)
	scope := c.load.clients[n%clients].Workspace
	given := c.load.cfg.Book.Object(kindAssignment, id+" at "+scope, place{c: c, parent: scope, id: uid})
	var assignment string
	if !c.wrote(ctx, given, "roleDefinitions/reader", false, workspacev1.AccessService_CreateRoleAssignment_FullMethodName, func(ctx context.Context) error {
		a, err := access.CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: scope, Role: "roleDefinitions/reader", Principal: uid})
		assignment = a.GetUid()
		return err
	}) {
		return
	}
	if n%2 == 0 {
		c.wrote(ctx, given, "", true, workspacev1.AccessService_DeleteRoleAssignment_FullMethodName, func(ctx context.Context) error {
			_, err := access.DeleteRoleAssignment(ctx, &workspacev1.DeleteRoleAssignmentRequest{Scope: scope, Uid: assignment})
			return err
		})
	}
}

// snapshots uploads a file and makes a snapshot of it.
func (c *Client) snapshots(ctx context.Context) {
	n := c.load.next()
	path := fmt.Sprintf("f%d.txt", n)
	content := fmt.Sprintf("content %d %0512d", n, n)
	_, _ = c.snapshot(ctx, path, content)
	for range 4 {
		idle(ctx)
	}
}

func (c *Client) snapshot(ctx context.Context, path, content string) (*workspacev1.Snapshot, error) {
	snapshots := workspacev1.NewSnapshotServiceClient(c.Conn)
	digest := sha256.Sum256([]byte(content))
	if _, err := c.again(ctx, workspacev1.SnapshotService_UploadBlob_FullMethodName, 15*time.Second, func(ctx context.Context) error {
		s, err := snapshots.UploadBlob(ctx)
		if err != nil {
			return err
		}
		if err := s.Send(&workspacev1.UploadBlobRequest{Parent: c.Workspace, Digest: digest[:], Size: int64(len(content)), Data: []byte(content)}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		_, err = s.CloseAndRecv()
		return err
	}); err != nil {
		return nil, err
	}
	o := c.load.cfg.Book.Object(kindSnapshot, c.Workspace+"/"+path, place{c: c, parent: c.Workspace, id: path})
	var made *workspacev1.Snapshot
	call, err := c.change(ctx, workspacev1.SnapshotService_CreateSnapshot_FullMethodName, func(ctx context.Context) (err error) {
		made, err = snapshots.CreateSnapshot(ctx, &workspacev1.CreateSnapshotRequest{Parent: c.Workspace, Entries: []*workspacev1.SnapshotEntry{{Path: path, Digest: digest[:], Size: int64(len(content))}}})
		return err
	})
	c.load.cfg.Book.Wrote(o, oracle.Write{Call: call, Value: content})
	return made, err
}

// metrics logs single points, each a batch with an id, and now and then one again as if its answer had been lost.
func (c *Client) metrics() func(context.Context) {
	var run string
	step, left := int64(0), 0
	return func(ctx context.Context) {
		if left == 0 {
			id := fmt.Sprintf("t%d", c.load.next())
			name := c.Workspace + "/runs/" + id
			o := c.load.cfg.Book.Object(kindRun, name, place{c: c, parent: c.Workspace, id: name})
			if !c.wrote(ctx, o, name, false, computev1.TrackingService_CreateTrackedRun_FullMethodName, func(ctx context.Context) error {
				_, err := computev1.NewTrackingServiceClient(c.Conn).CreateTrackedRun(ctx, &computev1.CreateTrackedRunRequest{Parent: c.Workspace, RunId: id})
				return err
			}) {
				return
			}
			run, left = name, 150
		}
		left--
		step++
		batch := &telemetryv1.LogBatchRequest{Run: run, BatchId: fmt.Sprintf("b%d", step), Metrics: []*telemetryv1.Metric{{Key: "m", Value: float64(step), Step: step, Time: timestamppb.Now()}}}
		o := c.load.cfg.Book.Object(kindPoint, fmt.Sprintf("%s/%d", run, step), place{c: c, parent: run, id: fmt.Sprint(step)})
		log := func(ctx context.Context) error {
			_, err := telemetryv1.NewMetricServiceClient(c.Conn).LogBatch(ctx, batch)
			return err
		}
		call, err := c.again(ctx, telemetryv1.MetricService_LogBatch_FullMethodName, 20*time.Second, log)
		c.load.cfg.Book.Wrote(o, oracle.Write{Call: call, Value: fmt.Sprint(step)})
		if err == nil && step%5 == 0 {
			_, _ = c.again(ctx, telemetryv1.MetricService_LogBatch_FullMethodName, 20*time.Second, log)
		}
		idle(ctx)
	}
}

// Marker is what the arguments of a run's command hold: a run's name without its workspace.
func Marker(tag string) *regexp.Regexp {
	return regexp.MustCompile("redoubt-fault-ran-" + regexp.QuoteMeta(tag) + "-([a-z0-9]+)")
}

// runs submits a run that says so, again under the same request id until it is acknowledged.
func (c *Client) runs(ctx context.Context) {
	id := fmt.Sprintf("r%d", c.load.next())
	name := c.Workspace + "/runs/" + id
	o := c.load.cfg.Book.Object(kindRun, name, place{c: c, parent: c.Workspace, id: name, data: []byte(id)})
	call, _ := c.again(ctx, computev1.RunService_SubmitRun_FullMethodName, 20*time.Second, func(ctx context.Context) error {
		_, err := computev1.NewRunServiceClient(c.Conn).SubmitRun(ctx, &computev1.SubmitRunRequest{
			Parent: c.Workspace, RunId: id, RequestId: "request-" + id, Compute: c.Workspace + "/computes/" + Target, Snapshot: c.load.files,
			Command: []string{"sh", "-c", "sleep 0.8; echo ran; sleep 0.2", "redoubt-fault-ran-" + c.load.cfg.Tag + "-" + id}, Limits: &computev1.RunLimits{Timeout: durationpb.New(time.Minute)},
		})
		return err
	})
	c.load.cfg.Book.Wrote(o, oracle.Write{Call: call, Value: name})
	for range 8 {
		idle(ctx)
	}
}

// idle lies between steps.
func idle(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}
