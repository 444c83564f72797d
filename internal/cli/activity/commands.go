package activity

import (
	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
)

// verbs are the commands of this package, for one invocation.
type verbs struct{ *app.App }

// Commands are the nouns of the log and the rules.
func Commands(of *app.App) []*cobra.Command {
	a := verbs{of}
	return []*cobra.Command{a.activity(), a.permissions(), a.retryPolicy()}
}
