//go:build linux

package load

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
)

// probeTime is how long one question may take of whether a service answers.
const probeTime = time.Second

// Ready reports why the first administrator cannot sign in yet, or why a service does not answer him.
func Ready(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l := &Load{cfg: cfg}
	c, err := l.client(cfg.Admin, cfg.Password)
	if err != nil {
		return err
	}
	defer func() { _ = c.Conn.Close() }()
	if err := c.SignIn(ctx); err != nil {
		return fmt.Errorf("sign in: %w", err)
	}
	if _, err := workspacev1.NewResourceServiceClient(c.Conn).ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{Parent: Group}); err != nil {
		return fmt.Errorf("workspace: %w", err)
	}
	_, err = telemetryv1.NewActivityServiceClient(c.Conn).ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1})
	return err
}

// Answers asks every service something of its own, once and without repeats.
func (l *Load) Answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	c, ws := l.Admin, l.clients[0].Workspace
	var g errgroup.Group
	ask := func(service string, f func() error) {
		g.Go(func() error {
			if err := f(); err != nil {
				return fmt.Errorf("%s: %w", service, err)
			}
			return nil
		})
	}
	ask("identity", func() error {
		_, err := identityv1.NewDirectoryServiceClient(c.Conn).ListGroups(ctx, &identityv1.ListGroupsRequest{PageSize: 1})
		return err
	})
	ask("workspace", func() error {
		_, err := workspacev1.NewResourceServiceClient(c.Conn).GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: ws})
		return err
	})
	ask("keyvault", func() error {
		_, err := keyvaultv1.NewSecretServiceClient(c.Conn).ListSecrets(ctx, &keyvaultv1.ListSecretsRequest{Parent: ws, PageSize: 1})
		return err
	})
	ask("compute", func() error {
		_, err := computev1.NewRunServiceClient(c.Conn).ListRuns(ctx, &computev1.ListRunsRequest{Parent: ws, PageSize: 1})
		return err
	})
	ask("inference", func() error {
		_, err := inferencev1.NewModelServiceClient(c.Conn).ListModels(ctx, &inferencev1.ListModelsRequest{Parent: ws, PageSize: 1})
		return err
	})
	ask("telemetry", func() error {
		_, err := telemetryv1.NewActivityServiceClient(c.Conn).ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1})
		return err
	})
	return g.Wait()
}

// ReadNothing opens streams of the whole activity log from elsewhere and never reads from them, until stop.
func (l *Load) ReadNothing(ctx context.Context, dial func(context.Context, string) (net.Conn, error), streams int) (stop func(), err error) {
	conn, err := grpc.NewClient("passthrough:///"+l.cfg.Gateway, grpc.WithTransportCredentials(credentials.NewTLS(l.cfg.TLS)), grpc.WithPerRPCCredentials(bearer{l.Admin}),
		grpc.WithContextDialer(dial), grpc.WithNoProxy(), grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	if err != nil {
		return nil, err
	}
	for range streams {
		if _, err := telemetryv1.NewActivityServiceClient(conn).WatchActivity(ctx, &telemetryv1.WatchActivityRequest{Scope: "/"}); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	return func() { _ = conn.Close() }, nil
}
