package jobs

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	// claimWait is how long one question for work waits for an answer.
	claimWait = 30 * time.Second
	// claimPause is how long to wait after the installation was away.
	claimPause = 2 * time.Second
)

func (a verbs) computeServe() *cobra.Command {
	return &cobra.Command{
		Use: "serve ID", Short: "Carry runs of a self-hosted target on this machine, until stopped", Args: app.Exactly(1),
		ValidArgsFunction: a.SuggestFirst("computes"),
		RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			name, err := a.Named(ctx, c, "computes", args[0])
			if err != nil {
				return err
			}
			target, err := c.Computes().GetCompute(ctx, &computev1.GetComputeRequest{Name: name})
			if err != nil {
				return err
			}
			if target.GetKind() != computev1.Compute_KIND_SELF_HOSTED {
				return app.Usagef("%s is not self-hosted: the installation itself carries its runs", args[0])
			}
			if err := sandbox.Check(ctx); err != nil {
				return err
			}
			a.Say("taking runs for %s, %d at once; stop it with Ctrl-C", name, target.GetMaxRuns())
			return a.carryRuns(ctx, c, target)
		}),
	}
}

// carryRuns claims runs and carries them, as many at once as the target takes. When ctx ends it takes no more, and those that are
// going are ended.
func (a verbs) carryRuns(ctx context.Context, c *client.Client, target *computev1.Compute) error {
	var going sync.WaitGroup
	defer going.Wait()
	free := make(chan struct{}, max(target.GetMaxRuns(), 1))
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		r, err := c.Computes().ClaimRun(ctx, &computev1.ClaimRunRequest{Name: target.GetName(), Wait: durationpb.New(claimWait)})
		switch {
		case ctx.Err() != nil:
			return nil
		case status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded:
			<-free
			t := time.NewTimer(claimPause)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
			}
			continue
		case err != nil:
			return err
		case r.GetBootstrap() == nil:
			<-free
			continue
		}
		going.Go(func() {
			defer func() { <-free }()
			run := show.Last(r.GetBootstrap().GetRun())
			a.Say("run %s: begins", run)
			if err := a.carry(ctx, c.Context(), r.GetBootstrap()); err != nil {
				a.Say("run %s: given up: %s", run, client.Describe(err).Message)
				return
			}
			a.Say("run %s: has ended", run)
		})
	}
}

// carry hosts the agent of one run.
func (a verbs) carry(ctx context.Context, to client.Context, b *computev1.AgentBootstrap) error {
	u, err := url.Parse(to.Server)
	if err != nil {
		return err
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "443")
	}
	roots := x509.NewCertPool()
	text := to.CAPEM
	if len(text) == 0 && to.CAFile != "" {
		if text, err = os.ReadFile(to.CAFile); err != nil {
			return err
		}
	}
	if !roots.AppendCertsFromPEM(text) {
		if roots, err = x509.SystemCertPool(); err != nil {
			return err
		}
	}
	g, err := agent.New(agent.Config{
		Gateway: host, PublicURL: to.Server, Roots: roots, Run: b.GetRun(), RunUID: b.GetRunUid(), JoinToken: redact.FromString(b.GetJoinToken()),
		Logger: slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	defer func() { _ = g.Close() }()
	return g.Run(ctx)
}
