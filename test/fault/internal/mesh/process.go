//go:build linux

package mesh

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/redoubt-ml/redoubt/test/fault/internal/netns"
)

const (
	// respawn is how long the supervisor waits before it starts a process again that has ended by itself.
	respawn = 300 * time.Millisecond
	// stopLimit is how long a process may take to end after SIGTERM.
	stopLimit = 15 * time.Second
)

// Process is one process of the installation, on a host and a disk of its own.
type Process struct {
	// Name is <service>-<instance>, Service one of node.Services, "etcd", "worker" or "postgres".
	Name, Service string
	Host          *netns.Host
	// Dir is its folder, a disk.
	Dir string

	program string
	args    []string
	env     func() []string
	user    *syscall.Credential
	log     string
	clock   string

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{}
	wanted bool
	// Fallen is how often it ended without having been asked to, and how last.
	fallen int
	how    error
}

// Start starts the process, and has it started again when it ends by itself.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = true
	if p.cmd != nil {
		return nil
	}
	return p.start()
}

func (p *Process) start() error {
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := p.Host.Command(p.program, p.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", out, out
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(netns.Root, "home"), "TMPDIR=" + filepath.Join(netns.Root, "tmp")}, p.env()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.cmd = nil
		unasked := p.wanted
		if unasked {
			p.fallen++
			p.how = err
		}
		close(ended)
		p.mu.Unlock()
		if !unasked {
			return
		}
		time.Sleep(respawn) // as a supervisor does
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.wanted && p.cmd == nil {
			if err := p.start(); err != nil {
				p.how = err
			}
		}
	}()
	return nil
}

// Kill ends the process with SIGKILL; it stays away until Start.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL) }

// Stop ends the process as an operator does; it stays away until Start.
func (p *Process) Stop() error {
	if p.Service == postgresService {
		return p.end(syscall.SIGINT) // its fast shutdown: SIGTERM waits for its clients
	}
	return p.end(syscall.SIGTERM)
}

func (p *Process) end(sig syscall.Signal) error {
	p.mu.Lock()
	p.wanted = false
	cmd, ended := p.cmd, p.ended
	p.mu.Unlock()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(sig) // it may have ended
	select {
	case <-ended:
		return nil
	case <-time.After(stopLimit):
		_ = cmd.Process.Kill()
		<-ended
		return fmt.Errorf("%s did not end %s after %s", p.Name, stopLimit, sig)
	}
}

// Freeze stops the process where it is, and returns when none of its threads runs. Thaw lets it go on.
func (p *Process) Freeze() error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for range 1000 {
		if p.still() {
			return nil
		}
		time.Sleep(time.Millisecond) // the kernel's own work
	}
	return errors.New(p.Name + " goes on after SIGSTOP")
}

// still reports whether every thread is stopped: SIGSTOP is taken when a thread comes back from the kernel, and not when it is sent.
func (p *Process) still() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return true
	}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	for _, t := range threads {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // it has ended
		}
		if _, after, ok := bytes.Cut(b, []byte(") ")); !ok || len(after) == 0 || after[0] != 'T' {
			return false
		}
	}
	return len(threads) > 0
}

// Thaw lets the process go on.
func (p *Process) Thaw() error { return p.signal(syscall.SIGCONT) }

func (p *Process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errors.New(p.Name + " does not run")
	}
	return p.cmd.Process.Signal(sig)
}

// Fallen says how often the process has ended without having been asked to, and how it did last.
func (p *Process) Fallen() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fallen, p.how
}

// Clock sets how much the process's clock is off.
func (p *Process) Clock(off time.Duration) error {
	if p.clock == "" {
		return errors.New(p.Name + " has the machine's clock")
	}
	f, err := os.OpenFile(p.clock, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	b := make([]byte, 8)
	binary.NativeEndian.PutUint64(b, uint64(off))
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Close())
}

// Jumps reports whether the process's clock can be set.
func (p *Process) Jumps() bool { return p.clock != "" }

// Output is the end of what the process has printed, over all its starts.
func (p *Process) Output(most int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}
