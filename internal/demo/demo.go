package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/redoubt-ml/redoubt/examples"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// Config of a demo. The zero value is usable: a folder of its own, removed at the end, and the standard output.
type Config struct {
	// Data is the state folder; empty makes one below the system's folder for temporary files.
	Data string
	// Keep leaves the state folder where it is.
	Keep bool
	// Out takes what is shown.
	Out io.Writer
	// Server is an installation that runs already, https://host:port, to go the walk on; empty starts one. CAPEM are its roots. User and Password
	// sign in there, as somebody who may make workspaces and service principals.
	Server   string
	CAPEM    []byte
	User     string
	Password redact.Secret
	// Workspace is the id of the workspace that the walk makes, in the default resource group, and removes; without it demo. Target is the id
	// of its compute target; without it here.
	Workspace, Target string
	// Carry has this process carry the target's runs, where Server is set; otherwise some machine with `redoubt compute serve` does.
	Carry bool
	// AgentCommand starts the agent of the local target; empty is this binary with "agent".
	AgentCommand []string
	// Blobs is the bucket in place of the services' folders.
	Blobs node.Bucket
	// Now is the clock of the times that are shown; nil means time.Now.
	Now func() time.Time
}

// walk is a demo on its way.
type walk struct {
	cfg   Config
	out   sync.Mutex
	dir   string
	log   *os.File
	in    *node.Installation // nil where the installation is not the demo's own
	url   string
	ca    []byte
	admin *client.Client
	token redact.Secret
	steps []step

	workspace, snapshot, compute, run string

	model, endpoint, scoring   string
	primary, secondary, reader redact.Secret

	// What is to be removed from an installation that goes on, and the host of its runs.
	made    bool // the workspace
	robot   string
	carrier *carrier
	begun   time.Time
}

// remote says that the installation is not the demo's own.
func (w *walk) remote() bool { return w.cfg.Server != "" }

type step struct {
	what, result string
	took         time.Duration
}

// Run goes the whole walk.
func Run(ctx context.Context, cfg Config) (err error) {
	if cfg.Out == nil {
		cfg.Out = os.Stdout
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Workspace == "" {
		cfg.Workspace = "demo"
	}
	if cfg.Target == "" {
		cfg.Target = "here"
	}
	w := &walk{cfg: cfg, begun: cfg.Now()}
	if !w.remote() || cfg.Carry {
		if err := canCarry(ctx); err != nil {
			return fmt.Errorf("nothing was started: %w", err)
		}
	}
	if err := w.folder(); err != nil {
		return err
	}
	began := cfg.Now()
	defer func() {
		if e := w.cleanUp(); err == nil {
			err = e
		}
		if err == nil {
			w.table(cfg.Now().Sub(began))
		}
	}()
	for _, s := range w.way() {
		if err := w.step(ctx, s.what, s.do); err != nil {
			return err
		}
	}
	return nil
}

// canCarry tells whether runs can be carried on this machine.
func canCarry(ctx context.Context) error {
	if _, _, err := sandbox.Interpreter(ctx, "python3"); err != nil {
		return errors.New("the demo trains a model with Python's standard library, and there is no python3 on the PATH: install it (on Debian: apt-get install python3) and run the demo again")
	}
	if err := sandbox.Check(ctx); err != nil {
		return fmt.Errorf("this machine cannot isolate a run: %w", err)
	}
	return nil
}

// stage is one step of the way.
type stage struct {
	what string
	do   func(context.Context) (string, error)
}

// way is what is walked, from the first step to the last.
func (w *walk) way() []stage {
	first, last := []stage{{"start the mesh", w.start}}, []stage{{"stop the mesh", w.stop}}
	if w.remote() {
		first, last = []stage{{"find the installation", w.find}}, []stage{{"remove what was made", w.remove}}
	}
	return slices.Concat(first, []stage{
		{"sign in", w.signIn},
		{"create a workspace", w.createWorkspace},
		{"upload the code and data", w.upload},
		{"train, as a run in the sandbox", w.train},
		{"a Reader tries to submit", w.readerTries},
		{"a thief uses a run's token", w.thiefTries},
		{"download and check the model", w.check},
		{"register the model", w.register},
		{"deploy it", w.deploy},
		{"score the held-out rows", w.scoreAll},
		{"a wrong key, and a new one", w.keys},
		{"a Reader scores by his role", w.readerScores},
		{"read the scoring log", w.scoringLog},
		{"take the endpoint down", w.takeDown},
		{"read the activity log", w.activity},
	}, last)
}

// step shows one step with its time.
func (w *walk) step(ctx context.Context, what string, do func(context.Context) (string, error)) error {
	w.printf("\n── %d. %s\n", len(w.steps)+1, what)
	began := w.cfg.Now()
	result, err := do(ctx)
	took := w.cfg.Now().Sub(began)
	if err != nil {
		log := ""
		if w.in != nil {
			log = "\nthe log of the mesh is in " + w.log.Name()
			w.cfg.Keep = true
		}
		return fmt.Errorf("step %q failed after %s: %s%s", what, took.Round(time.Millisecond), client.Describe(err).String(), log)
	}
	w.steps = append(w.steps, step{what, result, took})
	w.printf("   %s  (%s)\n", result, took.Round(time.Millisecond))
	return nil
}

func (w *walk) printf(format string, args ...any) {
	w.out.Lock()
	defer w.out.Unlock()
	_, _ = fmt.Fprintf(w.cfg.Out, format, args...)
}

// folder makes the state folder, and the log beside the state.
func (w *walk) folder() (err error) {
	if w.dir = w.cfg.Data; w.dir == "" {
		if w.dir, err = os.MkdirTemp("", "redoubt-demo-"); err != nil {
			return err
		}
	} else if w.dir, err = filepath.Abs(w.dir); err != nil {
		return err
	}
	if entries, err := os.ReadDir(w.dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty: the demo wants a folder of its own", w.dir)
	}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return err
	}
	w.log, err = os.OpenFile(filepath.Join(w.dir, "redoubt.log"), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	return err
}

func (w *walk) start(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	in, err := node.Up(ctx, node.UpConfig{
		Data: filepath.Join(w.dir, "state"), Listen: "127.0.0.1:0", AgentCommand: w.cfg.AgentCommand, Blobs: w.cfg.Blobs,
		Options: node.Options{LogWriter: w.log, Password: password.Config{Apart: apart.Supported}},
	})
	if err != nil {
		return "", err
	}
	w.in, w.url, w.ca = in, in.URL, in.CA
	w.cfg.User, w.cfg.Password = strings.TrimPrefix(in.Admin, "users/"), in.FirstPassword
	return fmt.Sprintf("%d services and etcd answer over mTLS 1.3; the gateway is %s", len(node.Services), in.URL), nil
}

func (w *walk) connect(token redact.Secret) (*client.Client, error) {
	return client.Dial(client.Context{Name: "demo", Server: w.url, CAPEM: w.ca}, token)
}

func (w *walk) signIn(ctx context.Context) (string, error) {
	anyone, err := w.connect(redact.Secret{})
	if err != nil {
		return "", err
	}
	defer func() { _ = anyone.Close() }()
	s, err := anyone.SignIn(ctx, strings.TrimPrefix(w.cfg.User, "users/"), w.cfg.Password)
	if err != nil {
		return "", err
	}
	w.token = redact.FromString(s.GetAccessToken())
	if w.admin, err = w.connect(w.token); err != nil {
		return "", err
	}
	return "as " + s.GetPrincipal() + "; the token ends at " + s.GetExpireTime().AsTime().Local().Format("15:04"), nil
}

func (w *walk) stop(ctx context.Context) (string, error) {
	_ = w.admin.Close()
	w.admin = nil
	url := w.in.URL
	w.in.Stop()
	w.in = nil
	return left(ctx, w.dir, url)
}

// cleanUp takes down what still stands.
func (w *walk) cleanUp() error {
	w.carrier.stop()
	if w.admin != nil {
		w.giveUp()
		_ = w.admin.Close()
	}
	if w.in != nil {
		w.in.Stop()
	}
	_ = w.log.Close()
	if w.cfg.Keep {
		w.printf("\nThe folder %s was kept.\n", w.dir)
		return nil
	}
	return os.RemoveAll(w.dir)
}

// table closes the demo.
func (w *walk) table(total time.Duration) {
	w.printf("\n")
	t := tabwriter.NewWriter(w.cfg.Out, 0, 0, 2, ' ', 0)
	for i, s := range w.steps {
		_, _ = fmt.Fprintf(t, "%2d\t%s\t%s\t%s\n", i+1, s.what, s.took.Round(time.Millisecond), s.result)
	}
	_, _ = fmt.Fprintf(t, "\tthe whole walk\t%s\t\n", total.Round(time.Millisecond))
	_ = t.Flush()
}

// example writes the example's files into a folder.
func example(dir string) error {
	src, err := fs.Sub(examples.BreastCancer, "breast-cancer")
	if err != nil {
		return err
	}
	return os.CopyFS(dir, src)
}
