package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox/internal/rootfs"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox/internal/stage"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// MaybeStage becomes the inside of a sandbox and never returns, if this process was started as that by Start. Otherwise it
// does nothing.
func MaybeStage() { stage.Maybe() }

// Start makes a sandbox, fills its working folder, and executes the command in it. ctx bounds the start; when it ends later,
// nothing happens to the run. The caller owns the Process, and must Close it.
//
// Start fails with INVALID_ARGUMENT for a Config that cannot be, FAILED_PRECONDITION and TARGET_NO_ISOLATION where this
// machine cannot isolate, FAILED_PRECONDITION and RUN_COMMAND_MISSING where the command is missing or cannot be executed,
// RESOURCE_EXHAUSTED where the working folder does not fit, and else with what Populate returned.
func Start(ctx context.Context, config Config) (*Process, error) {
	return start(ctx, config, false)
}

func start(ctx context.Context, config Config, probe bool) (*Process, error) {
	config, err := config.complete()
	if err != nil {
		return nil, err
	}
	id, err := chooseIdentity()
	if err != nil {
		return nil, noIsolation(err)
	}
	extra, err := rootfs.Extra(config.ReadOnlyPaths)
	if err != nil {
		return nil, fault.FailedPrecondition("a path that runs shall see cannot be shown: %v", err)
	}
	system, err := rootfs.System()
	if err != nil {
		return nil, noIsolation(err)
	}
	p := &Process{config: config, isolation: Isolation{HostUID: id.uid, OwnUser: id.own}, done: make(chan struct{}), over: make(chan struct{})}
	if err := p.spawn(id); err != nil {
		return nil, noIsolation(err)
	}
	stop := context.AfterFunc(ctx, p.Kill)
	err = p.bringUp(id, append(system, extra...), probe)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		switch cause := ctx.Err(); {
		case errors.Is(cause, context.DeadlineExceeded):
			err = fault.Wrap(cause, codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED, "the sandbox was not ready in time")
		case cause != nil:
			err = fault.Wrap(cause, codes.Canceled, faultv1.Reason_CALL_CANCELED, "the start of the sandbox was given up")
		}
		p.Close()
		return nil, err
	}
	go p.await()
	return p, nil
}

// spawn starts process 1, and what copies the run's output.
func (p *Process) spawn(id identity) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "stage")
	defer func() { _ = theirs.Close() }()
	if p.conn, err = stage.NewConn(os.NewFile(uintptr(pair[0]), "stage")); err != nil {
		return err
	}
	program, err := ownProgram(id)
	if err != nil {
		_ = p.conn.Close()
		return err
	}
	if program != nil {
		defer func() { _ = program.Close() }()
	}
	stdout, stdoutW, err := os.Pipe()
	if err != nil {
		_ = p.conn.Close()
		return err
	}
	defer func() { _ = stdoutW.Close() }()
	stderr, stderrW, err := os.Pipe()
	if err != nil {
		_ = p.conn.Close()
		_ = stdout.Close()
		return err
	}
	defer func() { _ = stderrW.Close() }()
	p.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{stage.InitName}, Env: []string{}, Dir: "/",
		Stdout: stdoutW, Stderr: stderrW, ExtraFiles: []*os.File{theirs}, SysProcAttr: id.attributes(),
	}
	if program != nil {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, program)
		p.cmd.Path = "/proc/self/fd/4"
	}
	started := make(chan error, 1)
	go p.own(started)
	if err := <-started; err != nil {
		_ = p.conn.Close()
		_ = stdout.Close()
		_ = stderr.Close()
		return fmt.Errorf("start a process in namespaces of its own: %w", err)
	}
	p.copies.Go(func() { p.outputErr[0] = copyOut(p.config.Stdout, stdout) })
	p.copies.Go(func() { p.outputErr[1] = copyOut(p.config.Stderr, stderr) })
	return nil
}

// own starts process 1 and waits for it. The death signal comes when the starting thread ends, not the process, so this
// goroutine keeps its thread to itself, and lives as long as the run.
func (p *Process) own(started chan<- error) {
	runtime.LockOSThread()
	err := p.cmd.Start()
	started <- err
	if err == nil {
		_ = p.cmd.Wait() // how it ended was said on the socket, or it was killed
	}
	close(p.over)
}

// ownProgram is a copy of this program for a user who may not execute the file that it came from, nil where he may.
func ownProgram(id identity) (*os.File, error) {
	const self = "/proc/self/exe"
	info, err := os.Stat(self)
	if err != nil {
		return nil, err
	}
	if !id.own || info.Mode().Perm()&0o001 != 0 {
		return nil, nil
	}
	from, err := os.Open(self)
	if err != nil {
		return nil, err
	}
	defer func() { _ = from.Close() }()
	// What is open for writing cannot be executed: nothing may be forked until it is not.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.MemfdCreate("redoubt", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	to := os.NewFile(uintptr(fd), "redoubt")
	defer func() { _ = to.Close() }()
	if _, err := io.Copy(to, from); err != nil {
		return nil, err
	}
	if err := to.Chmod(0o555); err != nil {
		return nil, err
	}
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd))
}

// bringUp leads process 1 from its first breath to the command's.
func (p *Process) bringUp(id identity, entries []rootfs.Entry, probe bool) error {
	c := p.config
	setup := stage.Setup{
		Entries: entries, Files: c.Files, Opened: id.own, VolumeSize: c.Limits.DiskBytes, Port: c.Port, MemoryBytes: c.Limits.MemoryBytes,
		Command: stage.Command{
			Args: bytesOf(c.Command), Env: bytesOf(c.Env), RequireLandlock: c.RequireLandlock, Probe: probe,
			Limits: stage.Limits{
				AddressBytes: uint64(c.Limits.AddressBytes), FileBytes: uint64(c.Limits.FileBytes),
				OpenFiles: uint64(c.Limits.OpenFiles), Processes: uint64(c.Limits.Processes),
				CPUSeconds: uint64((c.Limits.CPUTime + time.Second - 1) / time.Second),
			},
		},
	}
	volume := -1
	if id.own {
		trees, err := openTrees(entries)
		defer closeAll(trees)
		if err != nil {
			return noIsolation(err)
		}
		if volume, err = rootfs.NewVolume(c.Limits.DiskBytes, id.uid, id.gid); err != nil {
			return noIsolation(err)
		}
		defer func() { _ = unix.Close(volume) }()
		if err := p.conn.Send(setup, append(trees, volume)...); err != nil {
			return p.silent(err)
		}
	} else if err := p.conn.Send(setup); err != nil {
		return p.silent(err)
	}
	var ready stage.Ready
	fds, err := p.conn.Receive(&ready)
	defer func() { closeAll(fds) }()
	switch {
	case err != nil:
		return p.silent(err)
	case ready.Problem != "":
		return noIsolation(errors.New(ready.Problem))
	case len(fds) != 2:
		return fault.Internal(fmt.Errorf("%d descriptors came with it", len(fds)), "the sandbox answered wrongly")
	}
	if err := p.adopt(fds[0], fds[1]); err != nil {
		return err
	}
	if err := p.populate(id); err != nil {
		return err
	}
	if err := p.conn.Send(stage.Go{}); err != nil {
		return p.silent(err)
	}
	var started stage.Started
	if _, err := p.conn.Receive(&started); err != nil {
		return p.silent(err)
	}
	switch {
	case started.NotFound:
		return missing("%s: there is no such command in the sandbox", c.Command[0])
	case strings.HasPrefix(started.Problem, stage.Execute):
		return missing("%s cannot be executed: %s", c.Command[0], strings.TrimPrefix(started.Problem, stage.Execute))
	case started.Problem != "":
		return noIsolation(errors.New(started.Problem))
	}
	p.isolation.Landlock = started.Landlock
	if started.Landlock == 0 {
		c.Logger.Warn("this kernel has no Landlock: runs are confined by namespaces and the system call filter alone")
	}
	return nil
}

// adopt takes over the run's listener and volume.
func (p *Process) adopt(listener, volume int) error {
	fd, err := unix.FcntlInt(uintptr(listener), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fault.Internal(err, "the run's endpoint could not be taken over")
	}
	f := os.NewFile(uintptr(fd), "endpoint")
	defer func() { _ = f.Close() }()
	if p.listener, err = net.FileListener(f); err != nil {
		return fault.Internal(err, "the run's endpoint could not be taken over")
	}
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(volume))
	if err != nil {
		return fault.Internal(err, "the run's volume could not be opened")
	}
	defer func() { _ = root.Close() }()
	if p.work, err = root.OpenRoot("work"); err == nil {
		p.outputs, err = root.OpenRoot("outputs")
	}
	if err != nil {
		return fault.Internal(err, "the run's volume could not be opened")
	}
	return nil
}

// populate fills the working folder, and makes it the run's.
func (p *Process) populate(id identity) error {
	defer func() { _ = p.work.Close() }()
	if p.config.Populate == nil {
		return nil
	}
	if err := p.config.Populate(p.work); err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return fault.Wrap(err, codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED,
				"the working folder does not fit on the run's disk of %d bytes: raise the limit, or send less", p.config.Limits.DiskBytes)
		}
		return err
	}
	if !id.own {
		return nil
	}
	err := fs.WalkDir(p.work.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return p.work.Lchown(name, id.uid, id.gid)
	})
	if err != nil {
		return fault.Internal(err, "the working folder could not be given to the run")
	}
	return nil
}

func openTrees(entries []rootfs.Entry) ([]int, error) {
	var trees []int
	for _, entry := range entries {
		fd, err := entry.Open()
		if err != nil {
			return trees, err
		}
		if fd >= 0 {
			trees = append(trees, fd)
		}
	}
	return trees, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func bytesOf(list []string) [][]byte {
	made := make([][]byte, len(list))
	for i, s := range list {
		made[i] = []byte(s)
	}
	return made
}

// silent is the error of a process 1 that ended, or could not be spoken to.
func (p *Process) silent(err error) error {
	return noIsolation(fmt.Errorf("the sandbox ended while it was set up: %w", err))
}

func missing(format string, args ...any) error {
	return fault.New(codes.FailedPrecondition, faultv1.Reason_RUN_COMMAND_MISSING, format, args...)
}

// Check tells whether this machine can isolate runs: by isolating one that does nothing. Its error says what to change.
func Check(ctx context.Context) error {
	p, err := start(ctx, Config{Command: []string{"probe"}}, true)
	if err != nil {
		return err
	}
	defer p.Close()
	exit, err := p.Wait(ctx)
	if err == nil && (exit.Reason != Exited || exit.Code != 0) {
		err = noIsolation(fmt.Errorf("the probe ended with %d (%s)", exit.Code, exit.Reason))
	}
	return err
}

// noIsolation says that this machine cannot isolate, why, and what would help.
func noIsolation(cause error) error {
	advice := "runs need Linux 5.14 or later with user namespaces; in a container, allow it to make namespaces and mounts"
	setting := func(name string) string {
		text, _ := os.ReadFile("/proc/sys/" + name)
		return strings.TrimSpace(string(text))
	}
	if errors.Is(cause, syscall.ENOSPC) || setting("user/max_user_namespaces") == "0" {
		advice = "raise sysctl user.max_user_namespaces"
	} else if setting("kernel/unprivileged_userns_clone") == "0" && os.Geteuid() != 0 {
		advice = "set sysctl kernel.unprivileged_userns_clone=1, or start the agent as root"
	} else if setting("kernel/apparmor_restrict_unprivileged_userns") == "1" && os.Geteuid() != 0 {
		advice = "AppArmor keeps ordinary users from isolating: give the program a profile with \"userns,\", or set sysctl kernel.apparmor_restrict_unprivileged_userns=0, or start the agent as root"
	}
	return fault.Wrap(cause, codes.FailedPrecondition, faultv1.Reason_TARGET_NO_ISOLATION, "this machine cannot isolate runs (%v): %s", cause, advice)
}
