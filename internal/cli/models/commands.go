package models

import (
	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
)

// verbs are the commands of this package, for one invocation.
type verbs struct{ *app.App }

// Commands are the nouns of models.
func Commands(of *app.App) []*cobra.Command {
	a := verbs{of}
	return []*cobra.Command{app.Noun("model", "Models, and the versions of them",
		a.register(), a.upload(), a.list(), a.show(), a.versions(), a.alias(), a.tag(), a.describe(), a.rename(), a.download(), a.remove())}
}
