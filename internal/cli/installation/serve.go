package installation

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/node/plan"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/machine"
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
	containerGC  = 40

	trimBelow = 1 << 30
	trimAbove = 2 << 20
	trimEvery = 30 * time.Second
)

// options are those of every service that a command starts.
func (a verbs) options() node.Options {
	return node.Options{LogWriter: a.Err, Password: password.Config{Apart: apart.Supported}}
}

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

// tune trades memory for speed in processes that serve, where the environment does not say otherwise. In a container with a limit, memory
// is what is scarce: the heap is collected at its usual pace, and harder when it comes near the limit.
func (a verbs) tune() {
	limit := machine.Limit()
	percent, most := serverTuning(limit)
	if a.Env("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
	if a.Env("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(most)
	}
}

// trim gives back what a container's process has freed and not used since, until ctx ends: the runtime by itself keeps a reserve as large as
// its last peak, and a sign-in alone makes one of 64 MiB. Where there is no small limit, it does nothing.
func trim(ctx context.Context) {
	if limit := machine.Limit(); limit == 0 || limit > trimBelow {
		return
	}
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	idle := []metrics.Sample{{Name: "/memory/classes/heap/free:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			metrics.Read(idle)
			if idle[0].Value.Uint64() > trimAbove {
				debug.FreeOSMemory()
			}
		}
	}
}

// serverTuning is how often the heap is collected, and how large it may become, for what the container may have; 0 is no limit.
func serverTuning(limit int64) (percent int, most int64) {
	if limit == 0 || limit > serverMemory {
		return serverGC, serverMemory
	}
	// A fifth is for what is no heap: stacks of the kernel, pages of files, SQLite.
	return containerGC, limit / 5 * 4
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
	var blobs blobFlags
	c := &cobra.Command{Use: "up", Short: "Run a whole installation in this process", Args: app.Exactly(0)}
	f := c.Flags()
	f.StringVar(&data, "data", "", "the folder that keeps it; without it $XDG_STATE_HOME/redoubt")
	f.StringVar(&listen, "listen", defaultListen, "the public host:port; the eleven ports after it are the services', on loopback; port 0 lets the system choose all")
	f.StringVar(&domain, "trust-domain", "", "the installation's name in certificates, at its first start; without it redoubt.local")
	f.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	f.DurationVar(&leaf, "leaf-life", 0, "how long certificates live; without it 1h")
	scoring.add(c)
	blobs.add(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, begin := cmd.Context(), a.Now()
		data, err := a.dataFolder(data)
		if err != nil {
			return err
		}
		if err := errors.Join(scoring.absolute(), blobs.absolute()); err != nil {
			return err
		}
		if err := hide(); err != nil {
			return err
		}
		a.tune()
		in, err := node.Up(ctx, node.UpConfig{
			Data: data, Listen: listen, TrustDomain: domain, LeafLife: leaf, Log: node.Log{Level: level}, Options: a.options(),
			ScoringURL: scoring.url, ScoringCertificateFile: scoring.cert, ScoringKeyFile: scoring.key, Blobs: blobs.Bucket,
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
	next := "redoubt login --ask-password"
	if name == "" {
		next = fmt.Sprintf("redoubt login --ask-password --server %s --ca %s --user %s", in.URL, filepath.Join(data, caFile), show.Last(in.Admin))
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
	var data, listen, domain, level, file string
	var leaf time.Duration
	var sqlOnly, renew bool
	var scoring scoringFlags
	c := &cobra.Command{Use: "bootstrap --data FOLDER [--plan FILE]", Short: "Make an installation of separate processes", Args: app.Exactly(0)}
	f := c.Flags()
	f.StringVar(&data, "data", "", "the folder that keeps it")
	f.StringVar(&file, "plan", "", "a file that names every process and its host; without it all of them are on this machine. The other flags but --data are then its own")
	f.BoolVar(&sqlOnly, "sql", false, "with --plan: stop when the SQL is written that the administrator of PostgreSQL runs before the rest")
	f.BoolVar(&renew, "renew", false, "sign the certificates for etcd in the folders of --data again, and do nothing else")
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
		if renew {
			return a.renew(data, file != "" || sqlOnly)
		}
		if file != "" {
			if f := firstChanged(cmd, "listen", "trust-domain", "log-level", "leaf-life", "scoring-url", "scoring-cert", "scoring-key"); f != "" {
				return app.Usagef("--%s says what the plan says", f)
			}
			return a.carryOut(cmd.Context(), plan.Config{Plan: file, Data: data, SQLOnly: sqlOnly, Options: a.options()})
		}
		if sqlOnly {
			return app.Usagef("--sql is of a --plan")
		}
		if err := scoring.absolute(); err != nil {
			return err
		}
		b, err := node.Bootstrap(cmd.Context(), node.BootstrapConfig{
			Data: data, Listen: listen, TrustDomain: domain, LeafLife: leaf, Log: node.Log{Level: level}, Options: a.options(),
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
		_, err = fmt.Fprintf(a.Out, "then: redoubt login --ask-password\n")
		return err
	}
	return c
}

func (a verbs) serve() *cobra.Command {
	var file string
	var set settingFlags
	c := &cobra.Command{Use: "serve NAME --config FILE", Short: "Run one service in this process", Args: app.Exactly(1), ValidArgs: node.Services}
	c.Flags().StringVar(&file, "config", "", "the service's configuration, as `redoubt bootstrap` writes it")
	set.add(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := a.serviceConfig(args[0], file, set)
		if err != nil {
			return err
		}
		if err := hide(); err != nil {
			return err
		}
		a.tune()
		go trim(cmd.Context())
		n, err := node.Start(cmd.Context(), cfg, a.options())
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

func (a verbs) serviceConfig(name, file string, set settingFlags) (node.Config, error) {
	switch {
	case !slices.Contains(node.Services, name):
		return node.Config{}, app.Usagef("there is no service %q; there are %s", name, strings.Join(node.Services, ", "))
	case file == "":
		return node.Config{}, app.Usagef("--config says where the configuration is; `redoubt bootstrap` writes it")
	}
	cfg, err := a.settings(file, set)
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
