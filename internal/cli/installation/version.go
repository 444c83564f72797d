package installation

import (
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// Version is the command that says what this binary is.
func Version(a *app.App) *cobra.Command {
	return &cobra.Command{Use: "version", Short: "What this binary is", Args: app.Exactly(0), RunE: func(*cobra.Command, []string) error {
		v, revision, goVersion := buildVersion()
		return show.Pairs(a.Out, "redoubt", v, "revision", revision, "go", goVersion)
	}}
}

// buildVersion is what the Go tool has written into the binary.
func buildVersion() (version, revision, goVersion string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown", "", ""
	}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified {
		revision += " with changes"
	}
	return info.Main.Version, revision, info.GoVersion
}
