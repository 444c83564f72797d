// Package host owns what a machine does that carries runs of a self-hosted target: it asks for them, and makes the agent of each.
//
// Trust boundary: it calls as whoever the given client calls as, and can do no more than take runs of the target. What a run's agent
// may do comes with the run: a join token for one identity, which ends with it.
//
// Invariants: no more runs at once than the target says; a run that was taken is carried to its end, or given up and told of. Who is stopped takes no more.
// Each claim has an id, and is repeated with it until its answer has come: a run whose answer was lost is given again, and not lost.
//
// Failure: an installation that is away is asked again. Anything else that it answers ends Serve, but for a target that is not there,
// where Config.Wait says to wait for it.
package host

import (
	"context"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	// claimWait is how long one question for work waits for an answer.
	claimWait  = 30 * time.Second
	claimPause = 2 * time.Second
	// longestFollow bounds how soon the roots are asked for again.
	longestFollow = 5 * time.Minute
)

// Config of a Host. Computes, Server and Target must be set.
type Config struct {
	// Computes calls the installation.
	Computes computev1.ComputeServiceClient
	// Server is the installation's public URL, https://host:port, for the agents.
	Server string
	// Gateway is where that is dialled from here, host:port; empty is where Server says. Its certificate is for both hosts.
	Gateway string
	// Roots are believed by the agents; nil means the system's. Where Follow is set they take up what it gives.
	Roots *agent.Roots
	// Follow asks the installation for the roots of its mesh, DER, and says how soon to ask again. Nil follows no further than agents do.
	Follow func(ctx context.Context) (roots [][]byte, again time.Duration, err error)
	// Keep, where it is set, is called with roots that are others than before.
	Keep func(roots [][]byte)
	// Target is the full name of a self-hosted target.
	Target string
	// Drain is how long the runs that are going may take to end after Serve was stopped; then they are ended. 0 ends them at once.
	Drain time.Duration
	// Claim is the id of a claim that may have had no answer: of a Host of before. Empty begins with a new one.
	Claim string
	// KeepClaim, where it is set, is called with the id of each new claim before that is made.
	KeepClaim func(id string)
	// Wait keeps asking where the target is not there, or not to be seen, yet or any more: it may be made later.
	Wait bool
	// Beat, where it is set, is called whenever the installation has answered: at least every claimWait while all is well.
	Beat func()
	// Pause is how long to wait after the installation, or the target, was not there; 0 is two seconds.
	Pause time.Duration
	// Say tells the operator what begins and ends; nil is silent.
	Say func(format string, args ...any)
	// Logger gets what the agents warn of; nil drops it.
	Logger *slog.Logger
}

// Host takes runs of one target.
type Host struct {
	cfg   Config
	claim string                                                       // the claim that waits for its answer; "" for none. Only Serve's goroutine touches it
	run   func(ctx context.Context, b *computev1.AgentBootstrap) error // carries one run
}

// New checks the configuration.
func New(cfg Config) (*Host, error) {
	if cfg.Computes == nil || cfg.Target == "" {
		return nil, fault.InvalidArgument("a host of agents needs a target and a connection")
	}
	u, err := url.Parse(cfg.Server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil, fault.InvalidArgument("%q is no address of an installation: write https://host:port", cfg.Server)
	}
	if cfg.Gateway == "" {
		cfg.Gateway = u.Host
		if u.Port() == "" {
			cfg.Gateway = net.JoinHostPort(u.Hostname(), "443")
		}
	}
	if cfg.Pause == 0 {
		cfg.Pause = claimPause
	}
	if cfg.Roots == nil {
		if cfg.Roots, err = agent.NewRoots(nil); err != nil {
			return nil, err
		}
	}
	if cfg.Beat == nil {
		cfg.Beat = func() {}
	}
	if cfg.Keep == nil {
		cfg.Keep = func([][]byte) {}
	}
	if cfg.KeepClaim == nil {
		cfg.KeepClaim = func(string) {}
	}
	if cfg.Say == nil {
		cfg.Say = func(string, ...any) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Host{cfg: cfg, claim: cfg.Claim}
	h.run = h.carry
	return h, nil
}

// Serve takes runs and carries them until ctx ends; then it takes no more, and those that are going have Config.Drain to end.
func (h *Host) Serve(ctx context.Context) error {
	if h.cfg.Follow != nil {
		following, stop := context.WithCancel(context.WithoutCancel(ctx)) // runs that have time to end need it too
		var done sync.WaitGroup
		done.Go(func() { h.follow(following) })
		defer done.Wait()
		defer stop()
	}
	for {
		target, err := h.target(ctx)
		if err != nil || target == nil {
			return err
		}
		h.cfg.Say("taking runs for %s, %d at once", target.GetName(), target.GetMaxRuns())
		if again, err := h.carryRuns(ctx, target); !again {
			return err
		}
		h.cfg.Say("%s is gone; waiting for another of that name", target.GetName())
	}
}

// follow believes the mesh's roots of the moment, until ctx ends (D10).
func (h *Host) follow(ctx context.Context) {
	said := ""
	for {
		again := h.cfg.Pause
		roots, after, err := h.cfg.Follow(ctx)
		if err == nil {
			var changed bool
			if changed, err = h.cfg.Roots.Take(roots); changed {
				h.cfg.Keep(roots)
			}
			again = min(max(after, time.Second), longestFollow)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			said = ""
		case said == "" && !away(err):
			said = status.Convert(err).Message()
			h.cfg.Logger.WarnContext(ctx, "the roots of the installation cannot be followed", "error", said)
		}
		t := time.NewTimer(again)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// target looks the target up; nil when ctx has ended.
func (h *Host) target(ctx context.Context) (*computev1.Compute, error) {
	said := ""
	for ctx.Err() == nil {
		t, err := h.cfg.Computes.GetCompute(ctx, &computev1.GetComputeRequest{Name: h.cfg.Target})
		if err == nil || absent(err) {
			h.cfg.Beat()
		}
		switch {
		case ctx.Err() != nil:
			return nil, nil //nolint:nilerr,nilnil // stopped: there is neither a target nor an error
		case err == nil && t.GetKind() != computev1.Compute_KIND_SELF_HOSTED:
			return nil, fault.FailedPrecondition("%s is not self-hosted: the installation itself carries its runs", h.cfg.Target)
		case err == nil:
			return t, nil
		case !away(err) && !(h.cfg.Wait && absent(err)):
			return nil, err
		}
		if s := status.Convert(err).Message(); s != said { // once, and not every two seconds
			said = s
			h.cfg.Say("waiting for %s: %s", h.cfg.Target, s)
		}
		h.pause(ctx)
	}
	return nil, nil //nolint:nilnil // stopped: there is neither a target nor an error
}

// carryRuns claims runs and carries them, as many at once as the target takes. again says that the target has gone.
func (h *Host) carryRuns(ctx context.Context, target *computev1.Compute) (again bool, err error) {
	var going sync.WaitGroup
	var carried atomic.Int64
	life, end := context.WithCancel(context.WithoutCancel(ctx)) // of the runs
	defer end()
	stop := context.AfterFunc(ctx, func() { h.drain(life, carried.Load()); end() })
	defer stop()
	defer going.Wait()
	free := make(chan struct{}, max(target.GetMaxRuns(), 1))
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return false, nil
		}
		if h.claim == "" {
			h.claim = uuid.NewString()
			h.cfg.KeepClaim(h.claim)
		}
		r, err := h.cfg.Computes.ClaimRun(ctx, &computev1.ClaimRunRequest{Name: target.GetName(), Wait: durationpb.New(claimWait), ClaimId: h.claim})
		if err == nil {
			h.cfg.Beat()
		}
		if r.GetBootstrap() != nil || status.Code(err) == codes.AlreadyExists {
			h.claim = "" // answered, now or before
		}
		switch {
		case err == nil && r.GetBootstrap() != nil: // also when ctx has ended meanwhile: nobody else gets it
		case ctx.Err() != nil:
			return false, nil
		case err == nil:
			<-free
			continue
		case away(err):
			<-free
			h.pause(ctx)
			continue
		case status.Code(err) == codes.AlreadyExists: // the run of a claim of before has come to its agent, or to its end
			<-free
			continue
		default:
			return h.cfg.Wait && absent(err), err
		}
		carried.Add(1)
		going.Go(func() {
			defer func() { carried.Add(-1); <-free }()
			run := r.GetBootstrap().GetRun()
			run = run[strings.LastIndexByte(run, '/')+1:]
			h.cfg.Say("run %s: begins", run)
			if err := h.run(life, r.GetBootstrap()); err != nil {
				h.cfg.Say("run %s: given up: %s", run, status.Convert(err).Message())
				return
			}
			h.cfg.Say("run %s: has ended", run)
		})
	}
}

// drain waits until the runs have had their time.
func (h *Host) drain(life context.Context, carried int64) {
	if h.cfg.Drain <= 0 || carried == 0 {
		return
	}
	h.cfg.Say("taking no more runs; %d that are going have %v to end", carried, h.cfg.Drain)
	t := time.NewTimer(h.cfg.Drain)
	defer t.Stop()
	select {
	case <-t.C:
		h.cfg.Say("the runs that are still going are ended")
	case <-life.Done():
	}
}

// carry hosts the agent of one run.
func (h *Host) carry(ctx context.Context, b *computev1.AgentBootstrap) error {
	a, err := agent.New(agent.Config{
		Gateway: h.cfg.Gateway, PublicURL: h.cfg.Server, Roots: h.cfg.Roots, Run: b.GetRun(), RunUID: b.GetRunUid(), JoinToken: redact.FromString(b.GetJoinToken()),
		Logger: h.cfg.Logger,
	})
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	return a.Run(ctx)
}

// away tells whether the installation is only not there at the moment.
func away(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.ResourceExhausted || code == codes.Aborted
}

// absent tells whether the target is not there, which reads the same as not being allowed to see it.
func absent(err error) bool {
	code := status.Code(err)
	return code == codes.NotFound || code == codes.PermissionDenied
}

// pause waits, or until ctx ends.
func (h *Host) pause(ctx context.Context) {
	t := time.NewTimer(h.cfg.Pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
