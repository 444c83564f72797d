package cli

import (
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// root is the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "redoubt",
		Short: "A self-hosted zero-trust control plane for machine learning",
		Long: `redoubt runs an installation (up, serve, etcd) and speaks to one.

Exit codes: 0 ok, 1 wrong use or a local problem, 2 the installation refused or failed, 3 denied, 4 out of time.`,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	f := root.PersistentFlags()
	f.StringVarP(&a.output, "output", "o", "", "table or json (REDOUBT_FORMAT)")
	f.StringVarP(&a.workspace, "workspace", "w", "", "the workspace, by id or full name (REDOUBT_WORKSPACE)")
	f.StringVarP(&a.group, "resource-group", "g", "", "the resource group, as SUBSCRIPTION/GROUP (REDOUBT_RESOURCE_GROUP)")
	f.StringVar(&a.context, "context", "", "which of the installations in the settings (REDOUBT_CONTEXT)")
	f.StringVar(&a.server, "server", "", "the installation's address, https://host:port (REDOUBT_ADDR)")
	f.StringVar(&a.ca, "ca", "", "file with the installation's root, PEM (REDOUBT_CACERT)")
	f.BoolVar(&a.yes, "yes", false, "do not ask before what cannot be undone")
	f.BoolVar(&a.debug, "debug", false, "tell of each call: method, code, time")
	f.DurationVar(&a.timeout, "timeout", 0, "how long the command may take; 0 is no limit beyond those of its calls")

	root.AddGroup(&cobra.Group{ID: "run", Title: "An installation:"}, &cobra.Group{ID: "use", Title: "Working with one:"})
	for _, c := range []*cobra.Command{a.up(), a.demo(), a.bootstrap(), a.serve(), a.etcd(), a.agent(), a.health(), a.doctor()} {
		c.GroupID = "run"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{
		a.login(), a.logout(), a.whoami(), a.contexts(), a.users(), a.subscriptions(), a.groups(), a.workspaces(), a.roles(), a.snapshots(), a.computes(),
		a.runs(), a.secrets(), a.keys(), a.activity(), a.permissions(),
	} {
		c.GroupID = "use"
		root.AddCommand(c)
	}
	root.AddCommand(a.version())
	return root
}

// noun is a command that only holds verbs.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("%s has no verb %q", cmd.Name(), args[0])
		}
		return cmd.Help()
	}}
	c.AddCommand(verbs...)
	return c
}

// exactly is cobra.ExactArgs with an error that shows what is expected.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("it takes %d arguments and got %d: %s", n, len(args), cmd.UseLine())
		}
		return nil
	}
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "What this binary is", Args: exactly(0), RunE: func(*cobra.Command, []string) error {
		v, revision, goVersion := buildVersion()
		return show.Pairs(a.out, "redoubt", v, "revision", revision, "go", goVersion)
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
