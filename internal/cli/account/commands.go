package account

import (
	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
)

// verbs are the commands of this package, for one invocation.
type verbs struct{ *app.App }

// Commands are the nouns about people and sessions.
func Commands(of *app.App) []*cobra.Command {
	a := verbs{of}
	of.Anew = a.anew
	return []*cobra.Command{a.login(), a.logout(), a.whoami(), a.contexts(), a.users(), a.userGroups(), a.principals(), a.factors(), a.issuers(), a.console()}
}
