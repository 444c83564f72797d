package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// carry is one run under way, from its assignment on.
type carry struct {
	a    *Agent
	task *computev1.Assignment
	end  context.CancelCauseFunc // ends all calls: the platform knows that the run is over

	serve  *serving // of a replica, else nil
	python func() python
	grace  time.Duration
	logs   *logs
	meter  *meter
	cancel chan struct{} // closed when the platform asks for the end
	once   sync.Once
}

func newCarry(a *Agent, task *computev1.Assignment, py func() python, end context.CancelCauseFunc) *carry {
	c := &carry{
		a: a, task: task, python: py, end: end, cancel: make(chan struct{}), grace: a.cfg.StopGrace,
		logs:  newLogs(a.link, a.cfg.Run, task.GetLogOffset(), a.cfg.LogBuffer),
		meter: newMeter(a.link, a.cfg.Run),
	}
	if spec := task.GetServe(); spec != nil {
		c.serve = &serving{spec: spec}
		c.grace = c.serve.stopGrace(c.grace)
		c.logs.lossy = true // answers do not wait for the log
	}
	return c
}

// outcome is how a run ended, as it is reported.
type outcome struct {
	state   computev1.Run_State
	code    int
	message string
	reason  faultv1.Reason
}

func failed(err error) outcome {
	return outcome{state: computev1.Run_STATE_FAILED, message: text(err), reason: fault.ReasonOf(err)}
}

func canceled(code int, message string) outcome {
	return outcome{state: computev1.Run_STATE_CANCELED, code: code, message: message, reason: faultv1.Reason_CALL_CANCELED}
}

// carry runs the command and reports. ctx ends when the agent is to stop, life when no further call can be made.
func (c *carry) carry(ctx, life context.Context) error {
	var pumps sync.WaitGroup
	defer pumps.Wait()
	life, stop := context.WithCancel(life)
	defer stop()
	pumps.Go(func() { c.heartbeats(life) })
	pumps.Go(func() { c.logs.run(life) })
	pumps.Go(func() { c.meter.run(life) })

	out, p := c.execute(ctx, life)
	if p != nil {
		defer p.Close()
	}
	if life.Err() != nil {
		return fmt.Errorf("agent: the run was not reported: %w", context.Cause(life))
	}
	grace := c.a.cfg.EndGrace
	if ctx.Err() != nil {
		grace = min(grace, c.a.cfg.StopGrace)
	}
	closing, done := context.WithTimeoutCause(life, grace, fault.New(codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED, "the gateway was away for too long after the run's end"))
	defer done()
	if err := c.conclude(closing, out, p); err != nil {
		return fmt.Errorf("agent: the run was not reported: %w", err)
	}
	c.a.cfg.Logger.Info("reported", "state", out.state.String(), "reason", out.reason.String())
	return nil
}

// execute starts the command and waits until it has ended. The process is nil if it could not be started.
func (c *carry) execute(ctx, life context.Context) (outcome, *sandbox.Process) {
	// What ends the preparation: any of the three.
	prepare, stop := context.WithCancel(life)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	go func() {
		select {
		case <-c.cancel:
			stop()
		case <-prepare.Done():
		}
	}()
	config, err := c.sandbox(prepare)
	var p *sandbox.Process
	if err == nil {
		p, err = sandbox.Start(prepare, config)
	}
	if err != nil {
		if kindOf(err) == over { // nothing is read for the run any more; a heartbeat hears whether it is over, or is to end in good order
			select {
			case <-c.cancel:
			case <-ctx.Done():
			case <-life.Done():
			}
		}
		select {
		case <-c.cancel:
			return canceled(0, "canceled before the command was started"), nil
		default:
		}
		if ctx.Err() != nil {
			err = errStopped
		}
		c.a.cfg.Logger.Warn("the command could not be started", "error", reasonText(err))
		c.logs.note("the command could not be started: %s", text(err))
		return failed(err), nil
	}
	iso := p.Isolation()
	c.a.cfg.Logger.Info("started", "landlock", iso.Landlock, "own_user", iso.OwnUser)
	c.a.running.Store(true)
	defer c.a.running.Store(false)
	server, closeServer, err := c.endpoint(config.Port)
	if err != nil {
		p.Kill()
		_, _ = p.Wait(context.WithoutCancel(life))
		return failed(err), p
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(limited{p.Listener(), make(chan struct{}, mostConns)}); !errors.Is(err, http.ErrServerClosed) && life.Err() == nil {
			c.a.cfg.Logger.Warn("the run's endpoint ended", "error", err)
		}
	}()
	asked := c.watch(ctx, life, p)
	closeServer() // nobody is left to be answered
	<-served
	exit, err := p.Wait(context.WithoutCancel(life))
	c.a.cfg.Logger.Info("ended", "how", string(exit.Reason), "code", exit.Code, "cpu", exit.CPU, "peak_memory", exit.PeakMemory)
	out := c.judge(exit, err, asked, config.Limits)
	if c.serve != nil && asked == nobody {
		out = c.serve.judge(out)
	}
	return out, p
}

// endpoint is the server of the run's endpoint, and what ends it.
func (c *carry) endpoint(port uint16) (*http.Server, func(), error) {
	if c.serve == nil {
		s := c.meter.server(c.a.name.ID(), port, c.a.cfg)
		return s, func() { _ = s.Close() }, nil
	}
	r, err := c.relay()
	if err != nil {
		return nil, nil, err
	}
	s := newServer(c.serve.handler(r, sandbox.Address(port)), c.a.cfg)
	return s, func() {
		_ = s.Close()
		r.Close()
	}, nil
}

// asker is who asked for the end.
type asker int

const (
	nobody asker = iota
	platform
	operator
)

// watch waits until the command has ended, by itself or because someone asked for it.
func (c *carry) watch(ctx, life context.Context, p *sandbox.Process) asker {
	var by asker
	select {
	case <-p.Done():
		return nobody
	case <-life.Done():
		c.logs.discard() // nobody takes them any more
		p.Kill()
		<-p.Done()
		return nobody
	case <-c.cancel:
		by = platform
	case <-ctx.Done():
		by = operator
	}
	c.a.cfg.Logger.Info("the command is asked to end")
	if terminate(p.Pid()) == nil {
		t := time.NewTimer(c.grace)
		defer t.Stop()
		select {
		case <-p.Done():
			return by
		case <-t.C:
		case <-life.Done():
			c.logs.discard()
		}
	}
	p.Kill()
	// What the command wrote is still being sent. A stopping agent does not wait for a gateway that is away.
	var late <-chan time.Time
	if by == operator {
		t := time.NewTimer(c.a.cfg.StopGrace)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-p.Done():
		return by
	case <-life.Done():
	case <-late:
	}
	c.logs.discard()
	<-p.Done()
	return by
}

// judge says what the end of the command means.
func (c *carry) judge(exit sandbox.Exit, err error, asked asker, limits sandbox.Limits) outcome {
	out := outcome{state: computev1.Run_STATE_FAILED, code: exit.Code, reason: faultv1.Reason_REASON_UNSPECIFIED}
	switch {
	case asked == platform && exit.Reason == sandbox.Killed:
		return canceled(exit.Code, fmt.Sprintf("canceled; the command did not end within %s and was killed", c.grace))
	case asked == platform:
		return canceled(exit.Code, "canceled; the command ended when it was asked to")
	case asked == operator:
		out.message, out.reason = text(errStopped), faultv1.Reason_CALL_CANCELED
	case exit.Reason == sandbox.Memory:
		out.message, out.reason = "killed: the run held more memory than it may; submit it with a higher memory limit", faultv1.Reason_LIMIT_EXCEEDED
		if limits.MemoryBytes > 0 {
			out.message = fmt.Sprintf("killed: the run held more than its %d MiB of memory; submit it with a higher limit", limits.MemoryBytes>>20)
		}
	case exit.Reason == sandbox.CPUTime:
		out.message, out.reason = "killed: the run computed for longer than it may", faultv1.Reason_LIMIT_EXCEEDED
	case exit.Reason == sandbox.Lost, exit.Reason == sandbox.Killed:
		out.message, out.reason = "the sandbox was ended from outside, perhaps because the machine ran out of memory", faultv1.Reason_INTERNAL_FAULT
	case exit.Reason == sandbox.Signaled:
		out.message = fmt.Sprintf("the command was ended by signal %d (%s)", int(exit.Signal), exit.Signal)
	case exit.Code != 0:
		out.message = fmt.Sprintf("the command ended with exit code %d", exit.Code)
	case err != nil:
		out.message, out.reason = text(err), fault.ReasonOf(err)
	default:
		out.state = computev1.Run_STATE_COMPLETED
	}
	return out
}

// conclude sends what is left, and then the report.
func (c *carry) conclude(ctx context.Context, out outcome, p *sandbox.Process) error {
	stored := int32(0)
	if p != nil {
		var err error
		if stored, err = c.outputs(ctx, p.Outputs()); err != nil {
			if kindOf(err) == over || ctx.Err() != nil {
				return err
			}
			c.logs.note("an output could not be stored: %s", text(err))
			if out.state == computev1.Run_STATE_COMPLETED {
				out.state, out.reason = computev1.Run_STATE_FAILED, fault.ReasonOf(fault.FromStatus(err))
				out.message = "the command succeeded, but not all outputs could be stored: " + text(err)
			}
		}
	}
	length, err := c.logs.drain(ctx)
	if err != nil {
		return err
	}
	if err := c.meter.drain(ctx); err != nil {
		return err
	}
	req := &computev1.ReportRunRequest{
		Name: c.a.cfg.Run, State: out.state, ExitCode: int32(out.code), Message: clip(out.message, 4096), LogBytes: length, Outputs: stored,
	}
	if out.reason != faultv1.Reason_REASON_UNSPECIFIED {
		req.Reason = out.reason.String()
	}
	tries := 0
	err = c.a.link.retryEach(ctx, 3*callTimeout, func(ctx context.Context) error {
		tries++
		_, err := c.a.link.runs.ReportRun(ctx, req)
		return err
	})
	ended := tries > 1 && err != nil && kindOf(err) == over
	ended = ended || ctx.Err() != nil && kindOf(context.Cause(ctx)) == over // a heartbeat heard it first
	if ended {
		return nil // an earlier try arrived, and its answer did not
	}
	return err
}

// heartbeats keep the run from being given up, and hear whether it is to end.
func (c *carry) heartbeats(life context.Context) {
	every := c.a.cfg.Heartbeat
	if d := c.task.GetHeartbeat().AsDuration(); d > 0 {
		every = d
	}
	refused := 0
	for pause(life, every) == nil {
		try, done := context.WithTimeout(life, max(every, time.Second))
		res, err := c.a.link.runs.Heartbeat(try, &computev1.HeartbeatRequest{Name: c.a.cfg.Run, Running: c.a.running.Load()})
		done()
		switch {
		case err == nil:
			refused = 0
			if res.GetCancel() {
				c.once.Do(func() { close(c.cancel) })
			}
		case life.Err() != nil:
			return
		default:
			c.a.cfg.Logger.Debug("no heartbeat", "error", reasonText(err))
			switch kindOf(err) {
			case over:
				c.end(fault.FromStatus(err))
				return
			case refusal, final:
				if refused++; refused >= mostRefusal {
					c.end(fault.FromStatus(err))
					return
				}
			}
		}
	}
}
