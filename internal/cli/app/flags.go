package app

import (
	"github.com/spf13/cobra"
)

// Flags adds the flags that every command has.
func (a *App) Flags(root *cobra.Command) {
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	f := root.PersistentFlags()
	f.StringVarP(&a.Output, "output", "o", "", "table, json, yaml or none (REDOUBT_FORMAT)")
	f.StringVarP(&a.Workspace, "workspace", "w", "", "the workspace, by id or full name (REDOUBT_WORKSPACE)")
	f.StringVarP(&a.Group, "resource-group", "g", "", "the resource group, as SUBSCRIPTION/GROUP (REDOUBT_RESOURCE_GROUP)")
	f.StringVar(&a.ContextName, "context", "", "which of the installations in the settings (REDOUBT_CONTEXT)")
	f.StringVar(&a.Server, "server", "", "the installation's address, https://host:port (REDOUBT_ADDR)")
	f.StringVar(&a.CA, "ca", "", "file with the installation's root, PEM (REDOUBT_CACERT)")
	f.BoolVar(&a.Yes, "yes", false, "do not ask before what cannot be undone")
	f.BoolVar(&a.Debug, "debug", false, "tell of each call: method, code, time")
	f.DurationVar(&a.Timeout, "timeout", 0, "how long the command may take; 0 is no limit beyond those of its calls")
	a.complete(root, "output", cobra.FixedCompletions([]string{outputTable, outputJSON, outputYAML, outputNone}, cobra.ShellCompDirectiveNoFileComp))
	a.complete(root, "context", a.SuggestContexts)
	a.complete(root, "server", cobra.NoFileCompletions)
	a.SuggestFlag(root, "workspace", "workspaces")
}

// Noun is a command that only holds verbs.
func Noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return Usagef("%s has no verb %q", cmd.Name(), args[0])
		}
		return cmd.Help()
	}}
	c.AddCommand(verbs...)
	return c
}

// Exactly is cobra.ExactArgs with an error that shows what is expected.
func Exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return Usagef("it takes %d arguments and got %d: %s", n, len(args), cmd.UseLine())
		}
		return nil
	}
}
