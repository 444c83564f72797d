package agent

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// Config of an Agent. Gateway, PublicURL, Roots, Run and JoinToken are required; every other zero value is usable.
type Config struct {
	// Gateway is where the gateway listens, "host:port". Its certificate must be for that host.
	Gateway string
	// PublicURL is the gateway's public base URL, "https://host:port", which proofs of possession name.
	PublicURL string
	// Roots are the only ones that are believed at the gateway. They take up what comes with each token.
	Roots *Roots
	// Run is the run's resource name, and RunUID its uid. An assignment for another run is refused.
	Run, RunUID string
	// JoinToken is what the run's agent enrols with, once.
	JoinToken redact.Secret
	// Heartbeat is how often the agent reports, until the assignment says it. Default 2 s.
	Heartbeat time.Duration
	// StopGrace is how long a cancelled command has between SIGTERM and SIGKILL. Default 10 s.
	StopGrace time.Duration
	// EndGrace bounds what comes after the command's end: sending what waits, uploading outputs, reporting. Default 10 min.
	EndGrace time.Duration
	// LogBuffer is how many bytes of log may wait for the gateway. Default 8 MiB.
	LogBuffer int
	// Python is where the target's Python was found by who starts the agent; it looks itself where that is nothing, or is gone.
	Python Python
	// Limits bound the run where its assignment does not.
	Limits sandbox.Limits
	// RequireLandlock refuses to run where the kernel has no Landlock.
	RequireLandlock bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger receives what the target's operator should know: no names and no contents of the run's. Nil drops it.
	Logger *slog.Logger
}

func (c Config) complete() (Config, error) {
	name, err := resource.Parse(c.Run)
	switch {
	case c.Gateway == "" || c.PublicURL == "" || c.Roots == nil:
		return c, errors.New("agent: Gateway, PublicURL and Roots are required")
	case c.JoinToken.Empty():
		return c, errors.New("agent: JoinToken is required")
	case err != nil || name.Kind() != resource.KindRun:
		return c, errors.New("agent: Run is not the name of a run")
	}
	for _, d := range []struct {
		p   *time.Duration
		def time.Duration
	}{{&c.Heartbeat, 2 * time.Second}, {&c.StopGrace, 10 * time.Second}, {&c.EndGrace, 10 * time.Minute}} {
		if *d.p <= 0 {
			*d.p = d.def
		}
	}
	if c.LogBuffer <= 0 {
		c.LogBuffer = 8 << 20
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("run_uid", c.RunUID)
	return c, nil
}

// Agent carries one run. Run is called once; the other methods may be called from any goroutine.
type Agent struct {
	cfg     Config
	name    resource.Name
	key     *ecdsa.PrivateKey
	link    *link
	used    atomic.Bool
	running atomic.Bool
}

// New makes an Agent and its key. It does not connect yet. Close it after Run.
func New(cfg Config) (*Agent, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	name, err := resource.Parse(cfg.Run)
	if err != nil {
		return nil, err
	}
	key, err := authn.GenerateKey()
	if err != nil {
		return nil, err
	}
	l, err := newLink(cfg, key)
	if err != nil {
		return nil, err
	}
	return &Agent{cfg: cfg, name: name, key: key, link: l}, nil
}

// Token is the run's token as it is now, empty before enrolment and after Close. It is for a host that makes further calls in
// the run's name, each with a proof by Key. It is not to be handed on: it is worth nothing without the key.
func (a *Agent) Token() redact.Secret { return a.link.current() }

// Key is the key that the token is bound to. It stays in this process.
func (a *Agent) Key() crypto.Signer { return a.key }

// Close ends the connection and wipes the token.
func (a *Agent) Close() error { return a.link.close() }

// startGrace bounds enrolment and assignment: a join token is good for less.
const startGrace = 5 * time.Minute

// errStopped is the cause when the agent itself is told to stop.
var errStopped = fault.New(codes.Canceled, faultv1.Reason_CALL_CANCELED, "the agent was stopped on its target")

// Run carries the run: it enrols, fetches the assignment, runs the command and reports how that ended. It returns nil when the
// report is in, whatever the report says; else what kept it from that. When ctx ends the command is killed, and reported as
// far as that takes no more than StopGrace.
func (a *Agent) Run(ctx context.Context) error {
	if a.used.Swap(true) {
		return errors.New("agent: Run is called once")
	}
	// Calls go on a little after ctx has ended: the end has to be reported.
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	start, started := context.WithTimeout(ctx, startGrace)
	defer started()
	py := seekPython(life, a.cfg.Python)
	if err := a.link.enrol(start, a.cfg.JoinToken); err != nil {
		return err
	}
	a.cfg.Logger.Info("enrolled")
	go func() { end(a.link.keepFresh(life)) }()
	var task *computev1.Assignment
	err := a.link.retry(start, func(ctx context.Context) (err error) {
		task, err = a.link.runs.GetAssignment(ctx, &computev1.GetAssignmentRequest{Name: a.cfg.Run})
		return err
	})
	if err != nil {
		return err
	}
	if task.GetRun() != a.cfg.Run || a.cfg.RunUID != "" && task.GetRunUid() != a.cfg.RunUID {
		return errors.New("agent: the assignment is another run's")
	}
	c := newCarry(a, task, py, end)
	return c.carry(ctx, life)
}
