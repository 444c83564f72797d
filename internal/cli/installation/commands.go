package installation

import (
	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
)

// verbs are the commands of this package, for one invocation.
type verbs struct{ *app.App }

// Commands are the verbs that run an installation.
func Commands(of *app.App) []*cobra.Command {
	a := verbs{of}
	of.OfflineReset = a.resetFactors
	return []*cobra.Command{a.up(), a.demo(), a.bootstrap(), a.serve(), a.etcd(), a.agent(), a.config(), a.health(), a.doctor(), a.backup(), a.restore(), a.seals()}
}
