//go:build linux

package stage

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox/internal/rootfs"
)

// Maybe becomes a stage and never returns, if this process was started as one.
func Maybe() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case InitName:
		initMain()
	case launcherName:
		launcherMain()
	}
}

// control is the descriptor of the socket to the agent.
const control = 3

// exitLost is the init's status when it cannot go on. What it knew has been sent before.
const exitLost = 70

func initMain() {
	// Signals that user code sends to process 1 arrive only where it has a handler, and Go has one for most: take them all.
	signal.Notify(make(chan os.Signal, 1))
	// Whatever the agent's starter left open goes no further than here.
	if err := unix.CloseRange(control, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		syscall.Exit(exitLost)
	}
	unix.Umask(0o022)
	conn, err := NewConn(os.NewFile(control, "agent"))
	if err != nil {
		syscall.Exit(exitLost)
	}
	if err := (&stage{conn: conn}).run(); err != nil {
		syscall.Exit(exitLost)
	}
	syscall.Exit(0)
}

// stage is the init's state.
type stage struct {
	conn     Conn
	launcher *launcher
	memory   atomic.Bool // the watcher killed the run
	peak     atomic.Int64
}

func (s *stage) run() (err error) {
	// The launcher starts first: it loads while the rest is told and opened.
	var launcherErr error
	s.launcher, launcherErr = newLauncher()
	var setup Setup
	fds, err := s.conn.Receive(&setup)
	if err != nil {
		return err
	}
	var handOut []int
	if err = launcherErr; err == nil {
		handOut, err = s.prepare(setup, fds)
	}
	if err != nil {
		_ = s.conn.Send(Ready{Problem: err.Error()})
		return err
	}
	if err := s.conn.Send(Ready{}, handOut...); err != nil {
		return err
	}
	closeAll(handOut)
	if _, err := s.conn.Receive(&Go{}); err != nil {
		return err
	}
	// What the init holds, a run must not see. It was needed dumpable until here, to reach its own /proc entries.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		_ = s.conn.Send(Started{Problem: "hide the init: " + err.Error()})
		return err
	}
	started := s.launcher.start(setup.Command)
	if err := s.conn.Send(started); err != nil || started.Problem != "" {
		return errors.Join(err, errors.New(started.Problem))
	}
	go s.endWithAgent()
	go s.watchMemory(setup.MemoryBytes)
	status, usage, err := s.reap()
	if err != nil {
		return err
	}
	return s.conn.Send(Ended{
		Status: status, Memory: s.memory.Load(), PeakMemory: s.peak.Load(),
		CPU: time.Duration(usage.Utime.Nano() + usage.Stime.Nano()),
	})
}

// prepare makes everything that needs the init's capabilities, and gives what is handed out.
func (s *stage) prepare(setup Setup, fds []int) ([]int, error) {
	trees, volume, err := open(setup, fds)
	if err != nil {
		return nil, err
	}
	// The dynamic linker may still be at work for the launcher, and its libraries are in the old tree.
	if err := s.launcher.loaded(); err != nil {
		return nil, err
	}
	if err := rootfs.Build(setup.Entries, trees, volume, setup.Files); err != nil {
		return nil, err
	}
	closeAll(trees)
	if err := unix.Sethostname([]byte("run")); err != nil {
		return nil, fmt.Errorf("set the host name: %w", err)
	}
	listener, err := listen(setup.Port)
	if err != nil {
		return nil, err
	}
	return []int{listener, volume}, nil
}

// open gives the trees by entry and the volume: those that came with the setup, or new ones.
func open(setup Setup, fds []int) (trees []int, volume int, err error) {
	trees = make([]int, len(setup.Entries))
	for i, entry := range setup.Entries {
		switch {
		case entry.Link != "":
			trees[i] = -1
		case !setup.Opened:
			if trees[i], err = entry.Open(); err != nil {
				return nil, -1, err
			}
		case len(fds) == 0:
			return nil, -1, errors.New("a tree's descriptor is missing")
		default:
			trees[i], fds = fds[0], fds[1:]
		}
	}
	if !setup.Opened {
		volume, err = rootfs.NewVolume(setup.VolumeSize, UID, GID)
		return trees, volume, err
	}
	if len(fds) != 1 {
		return nil, -1, fmt.Errorf("%d descriptors are left for the volume", len(fds))
	}
	return trees, fds[0], nil
}

// listen brings the loopback device up and listens there. The port is free: nothing else is in this network.
func listen(port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
	}
	if err != nil {
		return -1, fmt.Errorf("bring the loopback device up: %w", err)
	}
	addr := &unix.SockaddrInet4{Port: int(port), Addr: [4]byte(net.IPv4(127, 0, 0, 1).To4())}
	if err := unix.Bind(fd, addr); err != nil {
		return -1, fmt.Errorf("bind port %d: %w", port, err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return -1, fmt.Errorf("listen: %w", err)
	}
	return fd, nil
}

// endWithAgent ends process 1, and with it the run, when the agent has gone.
func (s *stage) endWithAgent() {
	_, _ = s.conn.Receive(&struct{}{})
	syscall.Exit(exitLost)
}

// reap waits for the command, and takes what else dies meanwhile.
func (s *stage) reap() (uint32, *syscall.Rusage, error) {
	for {
		var status syscall.WaitStatus
		var usage syscall.Rusage
		pid, err := syscall.Wait4(-1, &status, 0, &usage)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, nil, err
		case pid == s.launcher.pid:
			return uint32(status), &usage, nil
		}
	}
}

// launcher is the init's side of the process that becomes the command.
type launcher struct {
	pid    int
	spec   *os.File
	report *bufio.Reader // has all that the launcher says
}

func newLauncher() (*launcher, error) {
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{launcherName}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{0, 1, 2, specR.Fd(), reportW.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start the launcher: %w", err)
	}
	_ = specR.Close()
	_ = reportW.Close()
	// The init keeps no end of the run's output open: it ends when the last process of the run closes it.
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return nil, err
		}
	}
	return &launcher{pid: pid, spec: specW, report: bufio.NewReader(reportR)}, nil
}

// loaded waits until the launcher has come to its main function.
func (l *launcher) loaded() error {
	if _, err := l.report.ReadString('\n'); err != nil {
		return fmt.Errorf("hear from the launcher: %w", err)
	}
	return nil
}

// start has the launcher execute the command, and says what came of it.
func (l *launcher) start(command Command) Started {
	command.Limits.Processes += ownThreads()
	err := json.NewEncoder(l.spec).Encode(command)
	if err := errors.Join(err, l.spec.Close()); err != nil {
		return Started{Problem: "tell the launcher: " + err.Error()}
	}
	// One line when it is about to execute, and the error's number only if that failed: the pipe closes on execution.
	line, err := l.report.ReadBytes('\n')
	if err != nil {
		return Started{Problem: "hear from the launcher: " + err.Error()}
	}
	var started Started
	if err := json.Unmarshal(line, &started); err != nil {
		return Started{Problem: "understand the launcher: " + err.Error()}
	}
	if started.Problem != "" {
		return started
	}
	errno, err := io.ReadAll(l.report)
	switch {
	case err != nil:
		return Started{Problem: "hear from the launcher: " + err.Error()}
	case len(errno) > 0:
		return Started{Problem: Execute + syscall.Errno(errno[0]).Error()}
	}
	return started
}

// ownThreads is how many threads the init may have: they count against the run's limit, since they have its user.
func ownThreads() uint64 {
	const spare = 8 // the Go runtime starts more when it needs them
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 2 * spare
	}
	return uint64(len(entries)) + spare
}
