package installation

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	defaultListen = "127.0.0.1:8443"
	// stopLimit is how long a stop may take before the process ends anyway.
	stopLimit = 10 * time.Second
	// adminPasswordFile takes the first password where there is no terminal to show it at.
	adminPasswordFile = "admin.password"
	caFile            = "ca.pem"

	serverGC     = 400
	serverMemory = 2 << 30
)

// dataFolder is where an installation is kept when nothing is said.
func (a verbs) dataFolder(flag string) (string, error) {
	if flag != "" {
		return filepath.Abs(flag)
	}
	base := a.Env("XDG_STATE_HOME")
	if base == "" {
		home := a.Env("HOME")
		if home == "" {
			return "", app.Usagef("neither XDG_STATE_HOME nor HOME is set: say with --data where the installation is kept")
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "redoubt"), nil
}

// tune trades memory for speed in processes that serve, where the environment does not say otherwise.
func (a verbs) tune() {
	if a.Env("GOGC") == "" {
		debug.SetGCPercent(serverGC)
	}
	if a.Env("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(serverMemory)
	}
}

// untilStopped waits for ctx or a failure, and stops within stopLimit.
func (a verbs) untilStopped(ctx context.Context, failed <-chan error, stop func()) error {
	var err error
	select {
	case <-ctx.Done():
		a.Say("stopping")
	case err = <-failed:
		a.Say("stopping: a part has failed")
	}
	done := make(chan struct{})
	go func() { stop(); close(done) }()
	t := time.NewTimer(stopLimit)
	defer t.Stop()
	select {
	case <-done:
		if err == nil {
			a.Say("stopped")
		}
		return err
	case <-t.C:
		return errors.Join(err, fault.Internal(nil, "not everything stopped within %s; nothing is lost: what was acknowledged is stored", stopLimit))
	}
}

func (a verbs) up() *cobra.Command {
	var data, listen, domain, level string
	var leaf time.Duration
	var scoring scoringFlags
	c := &cobra.Command{Use: "up", Short: "Run a whole installation in this process", Args: app.Exactly(0)}
	f := c.Flags()
	f.StringVar(&data, "data", "", "the folder that keeps it; without it $XDG_STATE_HOME/redoubt")
	f.StringVar(&listen, "listen", defaultListen, "the public host:port; the eleven ports after it are the services', on loopback; port 0 lets the system choose all")
	f.StringVar(&domain, "trust-domain", "", "the installation's name in certificates, at its first start; without it redoubt.local")
	f.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	f.DurationVar(&leaf, "leaf-life", 0, "how long certificates live; without it 1h")
	scoring.add(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, begin := cmd.Context(), a.Now()
		data, err := a.dataFolder(data)
		if err != nil {
			return err
		}
		if err := scoring.absolute(); err != nil {
			return err
		}
		a.tune()
		in, err := node.Up(ctx, node.UpConfig{
			Data: data, Listen: listen, TrustDomain: domain, LeafLife: leaf, Log: node.Log{Level: level}, Options: node.Options{LogWriter: a.Err},
			ScoringURL: scoring.url, ScoringCertificateFile: scoring.cert, ScoringKeyFile: scoring.key,
		})
		if err != nil {
			return a.unlessAsked(ctx, err)
		}
		if err := a.welcome(data, in, begin); err != nil {
			in.Stop()
			return err
		}
		failed := make(chan error, 1)
		watching, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			if err := in.Failed(watching); err != nil {
				failed <- err
			}
		}()
		return a.untilStopped(ctx, failed, in.Stop)
	}
	return c
}

// scoringFlags say how endpoints are scored from outside.
type scoringFlags struct{ url, cert, key string }

func (s *scoringFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.url, "scoring-url", "", "https://host:port at which clients reach the scoring listener; without it --listen's host with the listener's port")
	f.StringVar(&s.cert, "scoring-cert", "", "the certificate chain that the scoring listener shows, as PEM, in place of the installation's")
	f.StringVar(&s.key, "scoring-key", "", "its private key, as PEM")
}

// absolute makes paths what a service can read from anywhere.
func (s *scoringFlags) absolute() (err error) {
	for _, p := range []*string{&s.cert, &s.key} {
		if *p != "" {
			if *p, err = filepath.Abs(*p); err != nil {
				return err
			}
		}
	}
	return nil
}

// welcome says that the installation is ready and what to type next, and at its first start who the administrator is.
func (a verbs) welcome(data string, in *node.Installation, begin time.Time) error {
	if err := a.handOver(data, in.Admin, in.FirstPassword, in.CA); err != nil {
		return err
	}
	name, err := a.keepContext(in.URL, in.CA, in.Admin)
	if err != nil {
		a.Say("no CLI context was made: %v", err)
	}
	_, err = fmt.Fprintf(a.Out, "ready at %s after %s, kept in %s\n", in.URL, show.Duration(a.Now().Sub(begin)), data)
	if err != nil {
		return err
	}
	next := "redoubt login"
	if name == "" {
		next = fmt.Sprintf("redoubt login --server %s --ca %s --user %s", in.URL, filepath.Join(data, caFile), show.Last(in.Admin))
	}
	_, err = fmt.Fprintf(a.Out, "next, in another terminal: %s, then: redoubt workspace create NAME\nstop it with Ctrl-C\n", next)
	return err
}

// handOver writes the root beside the data, and gives the first password once: to the terminal, or to a file where there is none.
func (a verbs) handOver(data, admin string, password redact.Secret, ca []byte) error {
	if err := writeFile(filepath.Join(data, caFile), ca, 0o644); err != nil {
		return err
	}
	if password.Empty() {
		return nil
	}
	defer password.Wipe()
	if f, ok := a.Out.(*os.File); ok && app.IsTerminal(f) {
		_, err := fmt.Fprintf(f, "\n  first administrator: %s\n  first password:      %s   (shown this once)\n\n", show.Last(admin), password.RevealString())
		return err
	}
	path := filepath.Join(data, adminPasswordFile)
	if err := writeFile(path, append(slices.Clone(password.Reveal()), '\n'), 0o600); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.Out, "first administrator: %s, first password: in %s; remove the file when you have it\n", show.Last(admin), path)
	return err
}

// writeFile puts a file in place in one step.
func writeFile(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fault.FailedPrecondition("%s cannot be written: %v", path, err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fault.FailedPrecondition("%s cannot be written: %v", path, err)
	}
	return nil
}

// keepContext keeps how to reach an installation on this machine: a context that knows the address gets its root, else a new one is
// made, which becomes the current one if there is none.
func (a verbs) keepContext(server string, ca []byte, admin string) (string, error) {
	d, err := a.Folder()
	if err != nil {
		return "", err
	}
	f, err := d.Read()
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(f.Contexts, func(c settings.Context) bool { return c.Server == server })
	c := settings.Context{Name: "local", Server: server, User: admin}
	if i >= 0 {
		c = f.Contexts[i]
	} else if _, taken := f.Find(c.Name); taken {
		u, err := url.Parse(server)
		if err != nil {
			return "", err
		}
		c.Name = u.Host
	}
	if c.CA != string(ca) {
		// Another installation than the one that was there before: nothing that was kept of that holds.
		c.CA, c.CAFile, c.User, c.Workspace, c.ResourceGroup = string(ca), "", admin, "", ""
	}
	f.Put(c)
	if f.CurrentContext == "" || i < 0 {
		f.CurrentContext = c.Name
	}
	return c.Name, d.Write(f)
}

func (a verbs) bootstrap() *cobra.Command {
	var data, listen, domain, level string
	var leaf time.Duration
	var scoring scoringFlags
	c := &cobra.Command{Use: "bootstrap --data FOLDER", Short: "Make an installation of separate processes", Args: app.Exactly(0)}
	f := c.Flags()
	f.StringVar(&data, "data", "", "the folder that keeps it")
	f.StringVar(&listen, "listen", defaultListen, "the public host:port; the eleven ports after it are the services'")
	f.StringVar(&domain, "trust-domain", "", "the installation's name in certificates; without it redoubt.local")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.DurationVar(&leaf, "leaf-life", 0, "how long certificates live; without it 1h")
	scoring.add(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if data == "" {
			return app.Usagef("--data says where it is kept")
		}
		data, err := filepath.Abs(data)
		if err != nil {
			return err
		}
		if err := scoring.absolute(); err != nil {
			return err
		}
		b, err := node.Bootstrap(cmd.Context(), node.BootstrapConfig{
			Data: data, Listen: listen, TrustDomain: domain, LeafLife: leaf, Log: node.Log{Level: level}, Options: node.Options{LogWriter: a.Err},
			ScoringURL: scoring.url, ScoringCertificateFile: scoring.cert, ScoringKeyFile: scoring.key,
		})
		if err != nil {
			return err
		}
		if err := a.handOver(data, b.Admin, b.FirstPassword, b.CA); err != nil {
			return err
		}
		if _, err := a.keepContext(b.URL, b.CA, b.Admin); err != nil {
			a.Say("no CLI context was made: %v", err)
		}
		_, _ = fmt.Fprintf(a.Out, "made in %s. Start, in any order:\n  redoubt etcd --data %s --client %s\n", data, data, b.Etcd)
		for _, name := range node.Services {
			_, _ = fmt.Fprintf(a.Out, "  redoubt serve %s --config %s\n", name, b.Configs[name])
		}
		_, err = fmt.Fprintf(a.Out, "then: redoubt login\n")
		return err
	}
	return c
}

func (a verbs) serve() *cobra.Command {
	var file string
	c := &cobra.Command{Use: "serve NAME --config FILE", Short: "Run one service in this process", Args: app.Exactly(1), ValidArgs: node.Services}
	c.Flags().StringVar(&file, "config", "", "the service's configuration, as `redoubt bootstrap` writes it")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := a.serviceConfig(args[0], file)
		if err != nil {
			return err
		}
		a.tune()
		n, err := node.Start(cmd.Context(), cfg, node.Options{LogWriter: a.Err})
		if err != nil {
			return a.unlessAsked(cmd.Context(), err)
		}
		a.Say("%s listens on %s", args[0], n.Addr())
		return a.untilStopped(cmd.Context(), n.Failed(), n.Stop)
	}
	return c
}

// unlessAsked is the error of a start, or none where the start was given up because somebody asked to stop.
func (a verbs) unlessAsked(ctx context.Context, err error) error {
	if !errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	a.Say("stopped before it was ready")
	return nil
}

func (a verbs) serviceConfig(name, file string) (node.Config, error) {
	switch {
	case !slices.Contains(node.Services, name):
		return node.Config{}, app.Usagef("there is no service %q; there are %s", name, strings.Join(node.Services, ", "))
	case file == "":
		return node.Config{}, app.Usagef("--config says where the configuration is; `redoubt bootstrap` writes it")
	}
	cfg, err := config.Load(file, a.settingsEnv(), node.Config{})
	if err != nil {
		return cfg, err
	}
	if cfg.Service.Name != name {
		return cfg, app.Usagef("%s is the configuration of %s, not of %s", file, cfg.Service.Name, name)
	}
	return cfg, nil
}

// settingsEnv is the environment without what is the CLI's own.
func (a verbs) settingsEnv() []string { return a.Environ }

func (a verbs) etcd() *cobra.Command {
	var data, client string
	c := &cobra.Command{Use: "etcd --data FOLDER --client HOST:PORT", Short: "Run the etcd member of an installation of separate processes", Args: app.Exactly(0)}
	c.Flags().StringVar(&data, "data", "", "the folder that `redoubt bootstrap` made")
	c.Flags().StringVar(&client, "client", "", "the address that it printed")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if data == "" || client == "" {
			return app.Usagef("--data and --client say where it is kept and where it listens; `redoubt bootstrap` prints both")
		}
		a.tune()
		e, err := etcdnode.Start(cmd.Context(), etcdnode.Config{Dir: filepath.Join(data, "etcd"), ClientAddr: client})
		if err != nil {
			return err
		}
		a.Say("etcd listens on %s", strings.Join(e.Endpoints(), ", "))
		failed := make(chan error, 1)
		go func() {
			select {
			case <-e.Failed():
				failed <- fault.Internal(nil, "etcd has stopped by itself")
			case <-cmd.Context().Done():
			}
		}()
		return a.untilStopped(cmd.Context(), failed, func() { _ = e.Close() })
	}
	return c
}

// agent is what compute starts on its own machine. What to run comes by an inherited descriptor, so that nobody else sees the token
// in it.
func (a verbs) agent() *cobra.Command {
	return &cobra.Command{Use: "agent", Short: "Carry one run; started by the installation, not by people", Hidden: true, Args: app.Exactly(0), RunE: func(cmd *cobra.Command, _ []string) error {
		f := os.NewFile(3, "bootstrap")
		if f == nil {
			return app.Usagef("an agent is started by the installation, which hands it what to run")
		}
		if _, err := f.Stat(); err != nil {
			return app.Usagef("an agent is started by the installation, which hands it what to run")
		}
		defer func() { _ = f.Close() }()
		if code := agent.Main(cmd.Context(), f, a.Err); code != 0 {
			return &app.Exit{Code: code}
		}
		return nil
	}}
}
