package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox/internal/stage"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Process is a run that was started. Its methods may be called from any goroutine, and after its end.
type Process struct {
	config    Config
	isolation Isolation
	cmd       *exec.Cmd
	conn      stage.Conn
	listener  net.Listener
	work      *os.Root // closed once it is filled
	outputs   *os.Root

	killed    atomic.Bool
	copies    sync.WaitGroup
	outputErr [2]error      // set before copies is done
	over      chan struct{} // closed when process 1, and so every process of the run, has ended
	done      chan struct{} // closed when exit and err are set: over, and all output is delivered
	exit      Exit
	err       error
	closeOnce sync.Once
}

// Listener is the run's endpoint: it listens at Address inside the run's own network, where nobody else can reach it.
// Serve it from the moment Start returns; connections wait until then. Close closes it.
func (p *Process) Listener() net.Listener { return p.listener }

// Outputs is the run's output folder. What is in it is the run's: names, links and kinds of files are as hostile as their
// contents, so prefer EachOutput. It stays readable after the run has ended, until Close.
func (p *Process) Outputs() *os.Root { return p.outputs }

// Isolation says what keeps the run apart, for the record.
func (p *Process) Isolation() Isolation { return p.isolation }

// Pid is the host's number of the run's process 1. It may be another process's once the run has ended.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Kill ends every process of the run, within milliseconds. It may be called again, and after the end.
func (p *Process) Kill() {
	p.killed.Store(true)
	_ = p.cmd.Process.Kill() // the only error is that it has ended
}

// Done is closed when the run has ended and its output is delivered.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits until the run has ended and all its output is delivered; so it never returns while a writer blocks. The error
// is ctx's, or says that output was lost since a writer refused it, or that the sandbox was ended from outside (Reason
// Lost). The Exit is valid unless the error is ctx's.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Close kills the run if it has not ended, waits until no process of it is left, and lets go of its endpoint and files. It
// does not wait for a writer that blocks.
func (p *Process) Close() {
	p.closeOnce.Do(func() {
		p.Kill()
		<-p.over
		_ = p.conn.Close()
		if p.listener != nil {
			_ = p.listener.Close()
		}
		for _, root := range []*os.Root{p.work, p.outputs} {
			if root != nil {
				_ = root.Close()
			}
		}
	})
}

// await hears how the run ended.
func (p *Process) await() {
	var ended stage.Ended
	_, heard := p.conn.Receive(&ended)
	<-p.over
	p.copies.Wait()
	switch {
	case heard == nil:
		p.exit = exitOf(ended, p.config.Limits.CPUTime)
	case p.killed.Load():
		p.exit = Exit{Code: 128 + int(syscall.SIGKILL), Signal: syscall.SIGKILL, Reason: Killed}
	default:
		p.exit = Exit{Code: 128 + int(syscall.SIGKILL), Signal: syscall.SIGKILL, Reason: Lost}
		p.err = fault.Internal(fmt.Errorf("process 1: %v", p.cmd.ProcessState), "the run was ended from outside, perhaps for the machine's memory")
	}
	if err := errors.Join(p.outputErr[:]...); err != nil {
		p.err = errors.Join(p.err, fault.Internal(err, "some of the run's output was lost"))
	}
	close(p.done)
}

func exitOf(ended stage.Ended, cpuTime time.Duration) Exit {
	status := syscall.WaitStatus(ended.Status)
	exit := Exit{Code: status.ExitStatus(), Reason: Exited, CPU: ended.CPU, PeakMemory: ended.PeakMemory}
	if status.Signaled() {
		exit.Signal = status.Signal()
		exit.Code = 128 + int(exit.Signal)
		exit.Reason = Signaled
		// The kernel sends SIGXCPU first, and a second later SIGKILL to whoever took no notice.
		if exit.Signal == syscall.SIGXCPU || exit.Signal == syscall.SIGKILL && cpuTime > 0 && exit.CPU >= cpuTime {
			exit.Reason = CPUTime
		}
	}
	if ended.Memory {
		exit.Reason = Memory
	}
	return exit
}

// copyOut delivers what the run writes, as fast as it is taken. When the writer refuses, the rest is dropped, so that the
// run does not hang or die of it; the error is kept.
func copyOut(to io.Writer, from *os.File) error {
	defer func() { _ = from.Close() }()
	// Only Write, and a buffer of a bounded size: no writer may choose another way.
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				_, _ = io.Copy(io.Discard, from)
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
