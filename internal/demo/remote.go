package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/host"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// removeLimit is how long a walk that broke off may take to remove what it made.
const removeLimit = 90 * time.Second

// find reaches an installation that runs already.
func (w *walk) find(ctx context.Context) (string, error) {
	w.url, w.ca = strings.TrimSuffix(w.cfg.Server, "/"), w.cfg.CAPEM
	anyone, err := w.connect(redact.Secret{})
	if err != nil {
		return "", err
	}
	defer func() { _ = anyone.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := anyone.Tokens().GetKeys(ctx, &identityv1.GetKeysRequest{}); err != nil {
		return "", err
	}
	return w.url + " answers, with a certificate of the root that was given", nil
}

// carrier is the machine that carries runs, where that is this process.
type carrier struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (c *carrier) stop() {
	if c != nil {
		c.cancel()
		<-c.done
	}
}

// carried sees to it that somebody carries the target's runs, or says who has to.
func (w *walk) carried(ctx context.Context) error {
	if !w.cfg.Carry {
		w.printf("   target  %s waits for a machine that carries its runs:\n           redoubt compute serve %s --server %s --ca FILE\n", w.cfg.Target, w.compute, w.url)
		return nil
	}
	roots, err := agent.NewRoots(w.ca)
	if err != nil {
		return err
	}
	h, err := host.New(host.Config{
		Computes: w.admin.Computes(), Server: w.url, Roots: roots, Target: w.compute,
		Say: func(format string, args ...any) { w.printf("   carry   "+format+"\n", args...) },
	})
	if err != nil {
		return err
	}
	going, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.carrier = &carrier{cancel, make(chan struct{})}
	go func(c *carrier) {
		defer close(c.done)
		if err := h.Serve(going); err != nil {
			w.printf("   carry   no more: %v\n", err)
		}
	}(w.carrier)
	return nil
}

// notTaken explains why nothing came of a run that nobody carries.
func (w *walk) notTaken(cause error) error {
	if !w.remote() || w.cfg.Carry {
		return cause
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if r, err := w.admin.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: w.run}); err == nil && r.GetState() == computev1.Run_STATE_QUEUED {
		return fmt.Errorf("no machine took the run: start `redoubt compute serve %s` on one, or carry it here with --carry", w.compute)
	}
	return cause
}

// newRobot makes a service principal: unlike a user, it can be removed again.
func (w *walk) newRobot(ctx context.Context) (uid string, err error) {
	p, err := w.admin.Directory().CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{
		ServicePrincipalId: "demo-" + strings.ToLower(rand.Text()[:8]), DisplayName: "Reader of the demo",
	})
	if err != nil {
		return "", err
	}
	w.robot = p.GetName()
	s, err := w.admin.Directory().AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: p.GetName()})
	if err != nil {
		return "", err
	}
	t, err := w.admin.Tokens().IssueToken(ctx, &identityv1.IssueTokenRequest{GrantType: "client_credentials", ClientId: s.GetClientId(), ClientSecret: s.GetSecret()})
	if err != nil {
		return "", err
	}
	w.reader = redact.FromString(t.GetAccessToken())
	return p.GetUid(), nil
}

// remove takes away all that the walk made, and looks whether it is gone.
func (w *walk) remove(ctx context.Context) (string, error) {
	workspace, robot := w.workspace, w.robot
	if err := w.removeAll(ctx); err != nil {
		return "", err
	}
	_, err := w.admin.Resources().GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: workspace})
	if status.Code(err) != codes.NotFound {
		return "", fmt.Errorf("%s is still there: %w", workspace, errors.Join(err, errors.New(status.Code(err).String())))
	}
	if reader, err := w.connect(w.reader); err == nil {
		defer func() { _ = reader.Close() }()
		if _, err := reader.Identity().WhoAmI(ctx, &identityv1.WhoAmIRequest{}); status.Code(err) != codes.Unauthenticated {
			return "", fmt.Errorf("the token of %s is still good: %w", robot, err)
		}
	}
	if _, err := w.admin.Identity().SignOut(ctx, &identityv1.SignOutRequest{}); err != nil {
		return "", err
	}
	return "the workspace with its runs, models and keys, and the Reader; its tokens are dead, and the session has ended", nil
}

// removeAll removes what there is yet.
func (w *walk) removeAll(ctx context.Context) error {
	if w.endpoint != "" {
		_, err := inferencev1.NewEndpointServiceClient(w.admin.Conn()).DeleteEndpoint(ctx, &inferencev1.DeleteEndpointRequest{Name: w.endpoint})
		if err != nil && status.Code(err) != codes.NotFound {
			return err
		}
		w.endpoint = ""
	}
	w.carrier.stop()
	w.carrier = nil
	if w.robot != "" {
		if _, err := w.admin.Directory().DeleteServicePrincipal(ctx, &identityv1.DeleteServicePrincipalRequest{Name: w.robot}); err != nil {
			return err
		}
		w.robot = ""
	}
	if w.made {
		if _, err := w.admin.Resources().DeleteWorkspace(ctx, &workspacev1.DeleteWorkspaceRequest{Name: w.workspace}); err != nil {
			return err
		}
		w.made = false
	}
	return nil
}

// giveUp removes what a walk that broke off has left in an installation that goes on, unless it shall be kept.
func (w *walk) giveUp() {
	if !w.remote() || w.cfg.Keep || !w.made && w.robot == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
	defer cancel()
	if err := w.removeAll(ctx); err != nil {
		w.printf("\nNot all of the walk could be removed (%v): remove the workspace %s.\n", err, w.workspace)
	}
}
