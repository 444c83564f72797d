package cli

import (
	"context"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/account"
	"github.com/redoubt-ml/redoubt/internal/cli/activity"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/declare"
	"github.com/redoubt-ml/redoubt/internal/cli/endpoints"
	"github.com/redoubt-ml/redoubt/internal/cli/installation"
	"github.com/redoubt-ml/redoubt/internal/cli/jobs"
	"github.com/redoubt-ml/redoubt/internal/cli/keyring"
	"github.com/redoubt-ml/redoubt/internal/cli/models"
	"github.com/redoubt-ml/redoubt/internal/cli/rotate"
	"github.com/redoubt-ml/redoubt/internal/cli/tenancy"
	"github.com/redoubt-ml/redoubt/internal/cli/vault"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
)

// Main runs one command. It returns when the command has ended, or soon after ctx has.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app.App{Env: os.Getenv, Environ: os.Environ(), In: stdin, Out: stdout, Err: stderr, Now: time.Now}
	if k, ok := keyring.Open(os.Getenv); ok {
		a.Keyring = k
	}
	return a.Run(ctx, tree(a), args)
}

// Child is the first thing in main: it does not return in a process that was started to set a run's sandbox up from inside, or to compute password
// hashes.
func Child() {
	sandbox.MaybeStage()
	apart.Maybe()
}

// tree is all commands.
func tree(a *app.App) *cobra.Command {
	root := &cobra.Command{
		Use:   "redoubt",
		Short: "A self-hosted zero-trust control plane for machine learning",
		Long: `redoubt runs an installation (up, serve, etcd) and speaks to one.

Exit codes: 0 ok, 1 wrong use or a local problem, 2 the installation refused or failed, 3 denied, 4 out of time.`,
		SilenceErrors: true, SilenceUsage: true,
	}
	a.Flags(root)
	root.AddGroup(&cobra.Group{ID: "run", Title: "An installation:"}, &cobra.Group{ID: "use", Title: "Working with one:"})
	for group, commands := range map[string][]*cobra.Command{
		"run": installation.Commands(a),
		"use": slices.Concat(account.Commands(a), tenancy.Commands(a), vault.Commands(a), jobs.Commands(a), models.Commands(a), endpoints.Commands(a), declare.Commands(a), activity.Commands(a), rotate.Commands(a)),
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	root.AddCommand(installation.Version(a))
	return root
}
