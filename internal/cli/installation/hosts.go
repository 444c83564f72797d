package installation

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/internal/node/plan"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
)

func firstChanged(cmd *cobra.Command, names ...string) string {
	i := slices.IndexFunc(names, func(n string) bool { return cmd.Flags().Changed(n) })
	if i < 0 {
		return ""
	}
	return names[i]
}

// carryOut makes an installation of many hosts, or adds to one, and says how it is started.
func (a verbs) carryOut(ctx context.Context, cfg plan.Config) error {
	m, err := plan.Make(ctx, cfg)
	if err != nil {
		return err
	}
	if len(m.CA) > 0 {
		if err := a.handOver(cfg.Data, m.Admin.Name, m.Admin.Password, m.CA); err != nil {
			return err
		}
		if err := m.Given(); err != nil {
			return err
		}
		if _, err := a.keepContext(m.URL, m.CA, m.Admin.Name); err != nil {
			a.Say("no CLI context was made: %v", err)
		}
	}
	var out strings.Builder
	for _, name := range m.Added {
		fmt.Fprintf(&out, "made %s\n", filepath.Join(cfg.Data, name))
	}
	switch {
	case cfg.SQLOnly:
		fmt.Fprintf(&out, "made for the administrator of PostgreSQL: %s\nwhen he has run it, the same command without --sql makes the rest\n", m.SQL)
	case len(m.Added) == 0:
		out.WriteString("everything of the plan is there already\n")
	}
	if len(m.Processes) > 0 {
		out.WriteString("Start, in any order, each on its host:\n")
	}
	for _, p := range m.Processes {
		fmt.Fprintf(&out, "  %s at %s: redoubt %s\n", p.Name, p.Host, strings.Join(p.Args, " "))
	}
	if len(m.Processes) > 0 {
		out.WriteString("then: redoubt login --ask-password\n")
	}
	_, err = fmt.Fprint(a.Out, out.String())
	return err
}

// renew signs etcd's certificates again.
func (a verbs) renew(data string, more bool) error {
	if more {
		return app.Usagef("--renew needs --data alone: it makes nothing that is not there")
	}
	list, err := plan.Renew(data, a.Now)
	for _, r := range list {
		_, _ = fmt.Fprintf(a.Out, "%s until %s\n", r.Path, r.End.Format(time.DateOnly))
	}
	if err == nil {
		_, err = fmt.Fprintln(a.Out, "each process takes its own up by itself; where a folder was carried to another host, carry these files there")
	}
	return err
}

func (a verbs) etcd() *cobra.Command {
	var data, client, file string
	var set settingFlags
	c := &cobra.Command{Use: "etcd --config FILE | --data FOLDER --client HOST:PORT", Short: "Run one member of the etcd of an installation of separate processes", Args: app.Exactly(0)}
	c.Flags().StringVar(&file, "config", "", "the member's configuration, as `redoubt bootstrap --plan` writes it")
	set.add(c)
	c.Flags().StringVar(&data, "data", "", "the folder that `redoubt bootstrap` made, without a plan")
	c.Flags().StringVar(&client, "client", "", "the address that it printed")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		start := func() (*etcdnode.Node, error) {
			return etcdnode.Start(ctx, etcdnode.Config{Dir: filepath.Join(data, "etcd"), ClientAddr: client})
		}
		switch {
		case file != "" && data == "" && client == "":
			m, err := a.member(file, set)
			if err != nil {
				return err
			}
			log := observe.NewLogger(observe.LogConfig{Writer: a.Err, Now: a.Now})
			defer func() { _ = log.Close() }()
			m.Logger = log.With("service", "etcd", "instance", m.Name)
			a.Say("%s waits for most of its %d members", m.Name, len(m.Cluster))
			start = func() (*etcdnode.Node, error) { return etcdnode.StartMember(ctx, m) }
		case file != "" || data == "" || client == "" || len(set.set) > 0:
			return app.Usagef("--config, or both --data and --client, say where it is kept and where it listens; `redoubt bootstrap` prints them")
		}
		if err := hide(); err != nil {
			return err
		}
		a.tune()
		go trim(ctx)
		e, err := start()
		if err != nil {
			return a.unlessAsked(ctx, err)
		}
		a.Say("etcd listens on %s", strings.Join(e.Endpoints(), ", "))
		failed := make(chan error, 1)
		go func() {
			select {
			case <-e.Failed():
				failed <- fault.Internal(nil, "etcd has stopped by itself")
			case <-ctx.Done():
			}
		}()
		return a.untilStopped(ctx, failed, func() { _ = e.Close() })
	}
	return c
}
