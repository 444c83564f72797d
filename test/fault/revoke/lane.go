//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/test/fault/internal/load"
	"github.com/redoubt-ml/redoubt/test/fault/internal/mesh"
)

// The services that are asked, each over a connection of its own.
var services = []string{"identity", "workspace", "keyvault", "compute", "inference", "telemetry"}

const (
	password = "correct horse battery staple"
	// setUp bounds a call that makes something ready.
	setUp = 30 * time.Second
	// heartbeat is how often a lane has something told on its open stream.
	heartbeat = 100 * time.Millisecond
)

// lane is somebody who is given one right after another, in a workspace of his own.
type lane struct {
	s         *suite
	n         int
	workspace string
	conns     map[string]*grpc.ClientConn
	http      *http.Client
	users     map[string]*identityv1.User
	kept      map[string]string // tokens of the users whose rights change and not their tokens
	keptAt    time.Time
	outer     *identityv1.Group
	inner     *identityv1.Group
	compute   string
	snapshot  string
	endpoint  *inferencev1.Endpoint
	told      sync.Map // request id of a heartbeat → when it was begun
	beats     atomic.Int64
}

// dial is a connection of its own to the gateway.
func dial(m *mesh.Mesh) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+m.Address, grpc.WithTransportCredentials(credentials.NewTLS(m.TLS())), grpc.WithContextDialer(m.Dial), grpc.WithNoProxy(), grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(), grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 300 * time.Millisecond}, MinConnectTimeout: time.Second}))
}

func bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// newLane makes everything that its rounds need.
func newLane(ctx context.Context, s *suite, n int) (*lane, error) {
	l := &lane{s: s, n: n, conns: make(map[string]*grpc.ClientConn), users: make(map[string]*identityv1.User), kept: make(map[string]string)}
	for _, name := range services {
		c, err := dial(s.mesh)
		if err != nil {
			return nil, err
		}
		l.conns[name] = c
	}
	roots := s.mesh.TLS().RootCAs
	l.http = &http.Client{Transport: &http.Transport{
		DialContext: s.mesh.Client.Dial, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 32,
	}}
	ctx, cancel := context.WithTimeout(ctx, 2*setUp)
	defer cancel()
	ctx = bearer(ctx, s.admin.Load().token)
	ws, err := workspacev1.NewResourceServiceClient(l.conns["workspace"]).CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{Parent: load.Group, WorkspaceId: fmt.Sprintf("lane%d", n)})
	if err != nil {
		return nil, err
	}
	l.workspace = ws.GetName()
	for _, make := range []func(context.Context) error{l.makePeople, l.makeThings} {
		if err := make(ctx); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// makePeople makes one user for each kind of right, and the groups.
func (l *lane) makePeople(ctx context.Context) (err error) {
	d := identityv1.NewDirectoryServiceClient(l.conns["identity"])
	for _, kind := range []string{"token", "user", "role", "group"} {
		if l.users[kind], err = d.CreateUser(ctx, &identityv1.CreateUserRequest{UserId: fmt.Sprintf("%s-%d", kind, l.n), Password: password}); err != nil {
			return err
		}
	}
	if l.outer, err = d.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: fmt.Sprintf("outer-%d", l.n)}); err != nil {
		return err
	}
	if l.inner, err = d.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: fmt.Sprintf("inner-%d", l.n)}); err != nil {
		return err
	}
	if _, err = d.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: l.outer.GetName(), Member: l.inner.GetUid()}); err != nil {
		return err
	}
	for _, who := range []string{l.users["token"].GetUid(), l.users["user"].GetUid(), l.outer.GetUid()} {
		if _, err := l.assign(ctx, who); err != nil {
			return err
		}
	}
	return nil
}

func (l *lane) assign(ctx context.Context, who string) (*workspacev1.RoleAssignment, error) {
	return workspacev1.NewAccessServiceClient(l.conns["workspace"]).CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: l.workspace, Role: authz.Contributor, Principal: who})
}

// makeThings makes a target whose runs this process carries, an endpoint without replicas, and the secret that heartbeats read.
func (l *lane) makeThings(ctx context.Context) error {
	c, err := computev1.NewComputeServiceClient(l.conns["compute"]).CreateCompute(ctx, &computev1.CreateComputeRequest{Parent: l.workspace, ComputeId: "here", Kind: computev1.Compute_KIND_SELF_HOSTED, MaxRuns: 8})
	if err != nil {
		return fmt.Errorf("compute: %w", err)
	}
	l.compute = c.GetName()
	content := []byte("nothing")
	digest := sha256.Sum256(content)
	files := workspacev1.NewSnapshotServiceClient(l.conns["workspace"])
	if _, err := files.UploadBlobs(ctx, &workspacev1.UploadBlobsRequest{Parent: l.workspace, Blobs: []*workspacev1.SmallBlob{{Digest: digest[:], Data: content}}}); err != nil {
		return fmt.Errorf("blob: %w", err)
	}
	s, err := files.CreateSnapshot(ctx, &workspacev1.CreateSnapshotRequest{Parent: l.workspace, Entries: []*workspacev1.SnapshotEntry{{Path: "run.txt", Digest: digest[:], Size: int64(len(content))}}})
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	l.snapshot = s.GetName()
	if l.endpoint, err = inferencev1.NewEndpointServiceClient(l.conns["inference"]).CreateEndpoint(ctx, &inferencev1.CreateEndpointRequest{Parent: l.workspace, EndpointId: "here", Endpoint: &inferencev1.NewEndpoint{}}); err != nil {
		return fmt.Errorf("endpoint: %w", err)
	}
	_, err = keyvaultv1.NewSecretServiceClient(l.conns["keyvault"]).SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: l.workspace, SecretId: "beat", Value: []byte("x")})
	return err
}

// signIn gets a token by a password, and waits where that was asked for too often from here.
func (l *lane) signIn(ctx context.Context, user string) (string, error) {
	for {
		r, err := identityv1.NewSignInServiceClient(l.conns["identity"]).SignIn(ctx, &identityv1.SignInRequest{User: user, Password: password})
		if status.Code(err) != codes.ResourceExhausted {
			return r.GetSession().GetAccessToken(), err
		}
		pause(ctx, max(100*time.Millisecond, fault.Describe(err).RetryAfter()))
		if ctx.Err() != nil {
			return "", err
		}
	}
}

// keepTokens signs those in again whose tokens have been used for a while.
func (l *lane) keepTokens(ctx context.Context) (err error) {
	if time.Since(l.keptAt) < tokenUse {
		return nil
	}
	for _, kind := range []string{"role", "group"} {
		if l.kept[kind], err = l.signIn(ctx, fmt.Sprintf("%s-%d", kind, l.n)); err != nil {
			return err
		}
	}
	l.keptAt = time.Now()
	return nil
}

// beat reads the lane's secret as administrator, under a request id that is remembered with when it was begun: the activity log tells of it
// to every open stream of the workspace.
func (l *lane) beat(ctx context.Context) {
	id := fmt.Sprintf("beat-%d-%d", l.n, l.beats.Add(1))
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(bearer(ctx, l.s.admin.Load().token), "x-request-id", id), requestTime)
	defer cancel()
	l.told.Store(id, time.Now())
	_, _ = keyvaultv1.NewSecretServiceClient(l.conns["keyvault"]).AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: l.workspace + "/secrets/beat"})
}

// version is how many versions of a secret are committed, as the administrator sees it: 0 for none, -1 where nobody can tell.
func (l *lane) version(ctx context.Context, id string) int64 {
	ctx, cancel := context.WithTimeout(bearer(ctx, l.s.admin.Load().token), requestTime)
	defer cancel()
	r, err := keyvaultv1.NewSecretServiceClient(l.conns["keyvault"]).AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: l.workspace + "/secrets/" + id})
	switch judge(err) {
	case honoured:
		return r.GetVersion().GetVersion()
	case refused: // there is none
		return 0
	}
	return -1
}

func (l *lane) close() {
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.http.CloseIdleConnections()
}
