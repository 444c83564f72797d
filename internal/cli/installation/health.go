package installation

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// healthLimit bounds how long a process may take to say that it serves.
const healthLimit = 5 * time.Second

func (a verbs) health() *cobra.Command {
	var file, beat string
	var set settingFlags
	c := &cobra.Command{Use: "health --config FILE [HOST:PORT]", Short: "Ask a service or a member of etcd of this machine whether it serves, with its own certificate", Args: cobra.MaximumNArgs(1)}
	c.Flags().StringVar(&file, "config", "", "the configuration of the service, or of the member")
	c.Flags().StringVar(&beat, "beat-file", "", "in place of --config: the file of `redoubt compute serve --beat-file` on this machine")
	set.add(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if beat != "" && file == "" {
			return a.beatHealth(beat)
		}
		if file == "" {
			return app.Usagef("--config says which service")
		}
		addr := ""
		if len(args) == 1 {
			addr = args[0]
		}
		ask := a.serviceHealth
		if isMember(file) {
			ask = a.memberHealth
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), healthLimit)
		defer cancel()
		name, addr, err := ask(ctx, file, set, addr)
		if name == "" {
			return err
		}
		if err != nil {
			return &app.Exit{Code: app.ExitRefused, Message: name + " at " + addr + ": " + client.Describe(err).Message}
		}
		_, err = fmt.Fprintln(a.Out, "serving")
		return err
	}
	return c
}

// beatLimit is how old a host's last sign may be: three times what it waits for an answer.
const beatLimit = 90 * time.Second

// beatHealth looks when `redoubt compute serve` last heard of the installation.
func (a verbs) beatHealth(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return &app.Exit{Code: app.ExitRefused, Message: "the installation has not answered yet: " + err.Error()}
	}
	if age := a.Now().Sub(info.ModTime()); age > beatLimit {
		return &app.Exit{Code: app.ExitRefused, Message: fmt.Sprintf("the installation last answered %s ago", age.Round(time.Second))}
	}
	_, err = fmt.Fprintln(a.Out, "serving")
	return err
}

// isMember tells a member's configuration from a service's.
func isMember(file string) bool {
	b, err := os.ReadFile(file)
	var sections map[string]any
	return err == nil && yaml.Unmarshal(b, &sections) == nil && sections["etcd"] != nil
}

// serviceHealth asks a service. Without a name, the question could not be asked.
func (a verbs) serviceHealth(ctx context.Context, file string, set settingFlags, addr string) (name, asked string, err error) {
	cfg, err := a.settings(file, set)
	if err != nil {
		return "", "", err
	}
	if addr == "" {
		addr = cfg.HealthAddress()
	}
	m, err := a.memberOf(ctx, cfg)
	if err != nil {
		return "", "", err
	}
	_, err = m.checkHealth(ctx, cfg.Service.Name, addr)
	return cfg.Service.Name, addr, err
}

// memberOf is the identity of a service as its process has it.
func (a verbs) memberOf(ctx context.Context, cfg node.Config) (*member, error) {
	if cfg.Service.WorkloadAPI == "" {
		return readMember(filepath.Join(cfg.Service.Dir, "svid"), a.Now)
	}
	td, err := spiffeid.TrustDomainFromString(cfg.Mesh.TrustDomain)
	if err != nil {
		return nil, err
	}
	id, err := svid.ServiceID(td, cfg.Service.Name)
	if err != nil {
		return nil, err
	}
	source, err := svid.NewSource(ctx, svid.SourceConfig{Addr: cfg.Service.WorkloadAPI, TrustDomain: td, Workload: id, Now: a.Now})
	if err != nil {
		return nil, err
	}
	defer func() { _ = source.Close() }()
	own, err := source.Current()
	if err != nil {
		return nil, err
	}
	m := &member{cert: tls.Certificate{PrivateKey: own.Key, Leaf: own.Chain[0]}, td: td, roots: own.Bundle, now: a.Now}
	for _, c := range own.Chain {
		m.cert.Certificate = append(m.cert.Certificate, c.Raw)
	}
	return m, nil
}

// memberHealth asks a member for what only a majority can answer.
func (a verbs) memberHealth(ctx context.Context, file string, set settingFlags, addr string) (name, asked string, err error) {
	cfg, err := a.member(file, set)
	if err != nil {
		return "", "", err
	}
	if addr == "" {
		addr = cfg.HealthAddress()
	}
	tls, err := cfg.Checker().ClientTLS()
	if err != nil {
		return "", "", err
	}
	r, err := discovery.Open(discovery.Config{Endpoints: []string{addr}, TLS: tls, Now: a.Now})
	if err != nil {
		return "", "", err
	}
	defer func() { _ = r.Close() }()
	err = r.Check(ctx)
	if err != nil && ctx.Err() != nil {
		err = fault.Unavailable("it does not answer in %s: most of its cluster may be away", healthLimit)
	}
	return "etcd member " + cfg.Name, addr, err
}
