package installation

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/config"
)

// endpointSocket is the variable by which SPIFFE names a Workload API (SPIFFE Workload Endpoint).
const endpointSocket = "SPIFFE_ENDPOINT_SOCKET"

// settingFlags are the settings that are given in the command line, over the environment and the file.
type settingFlags struct{ set []string }

func (s *settingFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&s.set, "set", nil, "a setting over the file and the environment, as service.listen=127.0.0.1:8447; may be given again; a list has commas")
}

// source is all that settings come from.
func (a verbs) source(file string, s settingFlags) (config.Source, error) {
	out := config.Source{Path: file, Env: a.settingsEnv(), Flags: make(map[string]string, len(s.set))}
	for _, text := range s.set {
		path, value, ok := strings.Cut(text, "=")
		if !ok {
			return out, app.Usagef("--set %s is not SETTING=VALUE", text)
		}
		if _, twice := out.Flags[path]; twice {
			return out, app.Usagef("--set gives %s twice", path)
		}
		out.Flags[path] = value
	}
	return out, nil
}

// settings reads a service's configuration, whole and checked.
func (a verbs) settings(file string, s settingFlags) (node.Config, error) {
	src, err := a.source(file, s)
	if err != nil {
		return node.Config{}, err
	}
	cfg, err := config.LoadFrom(src, node.Defaults())
	if err != nil {
		return cfg, err
	}
	if cfg.Service.WorkloadAPI == "" {
		for _, v := range a.settingsEnv() {
			if socket, ok := strings.CutPrefix(v, endpointSocket+"="); ok {
				cfg.Service.WorkloadAPI = socket
			}
		}
	}
	return cfg, cfg.Check()
}

// member reads the configuration of a member of etcd, whole and checked.
func (a verbs) member(file string, s settingFlags) (etcdnode.Member, error) {
	src, err := a.source(file, s)
	if err != nil {
		return etcdnode.Member{}, err
	}
	f, err := config.LoadFrom(src, etcdnode.MemberFile{})
	return f.Etcd, err
}

func (a verbs) config() *cobra.Command {
	return app.Noun("config", "Look at the configuration of a service or of a member of etcd", a.configCheck(), a.configDump())
}

func (a verbs) configCheck() *cobra.Command {
	var set settingFlags
	c := &cobra.Command{Use: "check FILE", Short: "Say what would keep a process from starting: settings, and the files that they name", Args: app.Exactly(1)}
	set.add(c)
	c.RunE = func(_ *cobra.Command, args []string) error {
		var err error
		if isMember(args[0]) {
			var m etcdnode.Member
			if m, err = a.member(args[0], set); err == nil {
				_, err = m.Checker().ClientTLS()
			}
		} else {
			var cfg node.Config
			if cfg, err = a.settings(args[0], set); err == nil {
				err = errors.Join(cfg.CheckFiles()...)
			}
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.Out, "%s is good\n", args[0])
		return err
	}
	return c
}

func (a verbs) configDump() *cobra.Command {
	var set settingFlags
	c := &cobra.Command{Use: "dump FILE", Short: "Print every setting as the process has it, with where it comes from, and no secrets", Args: app.Exactly(1)}
	set.add(c)
	c.RunE = func(_ *cobra.Command, args []string) error {
		src, err := a.source(args[0], set)
		if err != nil {
			return err
		}
		var whole any
		var origins map[string]string
		if isMember(args[0]) {
			if whole, err = config.LoadFrom(src, etcdnode.MemberFile{}); err == nil {
				origins, err = config.Origins[etcdnode.MemberFile](src)
			}
		} else if whole, err = config.LoadFrom(src, node.Defaults()); err == nil {
			origins, err = config.Origins[node.Config](src)
		}
		if err != nil {
			return err
		}
		text, err := config.DumpOrigins(whole, origins)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(a.Out, text)
		return err
	}
	return c
}
