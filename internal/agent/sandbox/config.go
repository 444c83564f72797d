package sandbox

import (
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/machine"
)

// Where a run finds its files, and whom it finds itself to be.
const (
	WorkDir    = "/work"    // working folder, filled by Config.Populate
	OutputDir  = "/outputs" // read by Process.Outputs and EachOutput
	ScratchDir = "/scratch" // its home folder
	TempDir    = "/tmp"
	// PlatformDir holds Config.Files.
	PlatformDir = "/redoubt"
)

// mostFiles bounds Config.Files, in bytes.
const mostFiles = 1 << 20

// DefaultPort is where the run's endpoint listens inside, unless Config says otherwise.
const DefaultPort = 7460

// Config says what to run, and within which bounds. Command is required; every other zero value is usable and strict.
type Config struct {
	// Command is the program and its arguments, at most 64 KiB each as the kernel has it. A program without a slash is
	// looked for along the PATH of Env, inside the sandbox.
	Command []string
	// Env is the whole environment; nothing is inherited. BaseEnv gives what programs expect. It is readable by the run:
	// secrets do not belong here.
	Env []string
	// ReadOnlyPaths are files and folders of the machine that the run sees besides the system's programs, at the same
	// place and read-only, such as an interpreter (see Interpreter). An agent that is root can show what only root reaches.
	ReadOnlyPaths []string
	// Files are files of the platform's that the run sees read-only below PlatformDir, by their names there: no folders, 1 MiB in all.
	Files map[string][]byte
	// Populate fills the working folder before the command starts. It runs in the agent, with the agent's rights, and
	// what it made belongs to the run afterwards. Nil leaves the folder empty.
	Populate func(work *os.Root) error
	// Port is where the run's endpoint listens, on 127.0.0.1 of the run's own network. 0 is DefaultPort.
	Port uint16
	// Limits bound the run.
	Limits Limits
	// Stdout and Stderr receive the run's output, byte by byte as it was written, each from one goroutine; equal writers
	// must be safe for two. Output that is not taken stops the run's writes, and is never gathered. Nil drops it.
	Stdout, Stderr io.Writer
	// RequireLandlock refuses to start where the kernel has no Landlock.
	RequireLandlock bool
	// Logger receives what the operator should know. Nil drops it.
	Logger *slog.Logger
}

// Limits bound a run. Zero is the default, never no limit, but for CPUTime.
type Limits struct {
	// MemoryBytes is what all processes of the run may hold together, apart from the volume. The run is killed when they
	// hold more. Default: half of the machine's memory, at most 4 GiB.
	MemoryBytes int64
	// AddressBytes is the address space of each process; an allocation past it fails. Default: MemoryBytes and 1 GiB.
	AddressBytes int64
	// DiskBytes is the size of the volume, which lies in memory. Default: a quarter of the machine's memory, at most 2 GiB.
	DiskBytes int64
	// FileBytes is the size of one file. Default: twice DiskBytes, so that a full disk is told as that.
	FileBytes int64
	// Processes is how many processes and threads the run may have at once; about eight more may fit. Default: 512.
	Processes int
	// OpenFiles is how many descriptors a process may have open. Default: 1024.
	OpenFiles int
	// CPUTime is how long each process may compute; rounded up to seconds. 0 is no limit.
	CPUTime time.Duration
}

// Reason says why a run ended.
type Reason string

// The ways a run ends.
const (
	Exited   Reason = "exited"   // the command ended by itself
	Signaled Reason = "signaled" // a signal ended it, that was not one of those below
	Memory   Reason = "memory"   // it went over Limits.MemoryBytes
	CPUTime  Reason = "cpu-time" // it went over Limits.CPUTime
	Killed   Reason = "killed"   // Kill was called
	Lost     Reason = "lost"     // the sandbox itself was ended from outside
)

// Exit is how a run ended.
type Exit struct {
	// Code is the command's exit code, or 128 and the signal's number.
	Code int
	// Signal ended the command; 0 if it exited.
	Signal syscall.Signal
	Reason Reason
	// CPU is the time that the command and its awaited children computed. PeakMemory is the highest count of the run's
	// memory, in bytes, of ten a second; a short run may have none. Both are 0 when the run was killed or lost.
	CPU        time.Duration
	PeakMemory int64
}

// Isolation is what keeps a run apart beside namespaces and the system call filter, which it always has.
type Isolation struct {
	Landlock int // version that applies, 0 for none
	HostUID  int // the run's user, as the machine numbers it
	OwnUser  bool
}

// BaseEnv is the least environment that programs expect: PATH (the given folders first), HOME, TMPDIR, LANG.
func BaseEnv(path ...string) []string {
	path = append(path, "/usr/local/bin", "/usr/bin", "/bin")
	return []string{"PATH=" + strings.Join(path, ":"), "HOME=" + ScratchDir, "TMPDIR=" + TempDir, "USER=run", "LANG=C.UTF-8"}
}

// Address is where a run with this port finds its endpoint. It is known before the start, so that Env can carry it.
func Address(port uint16) string {
	if port == 0 {
		port = DefaultPort
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
}

// complete fills in defaults and refuses what cannot work.
func (c Config) complete() (Config, error) {
	if len(c.Command) == 0 || c.Command[0] == "" {
		return c, fault.InvalidArgument("a run needs a command").Field("command", "must not be empty")
	}
	for _, arg := range c.Command {
		if strings.ContainsRune(arg, 0) {
			return c, fault.InvalidArgument("an argument holds a zero byte").Field("command", "must not hold zero bytes")
		}
	}
	for _, entry := range c.Env {
		if name, _, ok := strings.Cut(entry, "="); !ok || name == "" || strings.ContainsRune(entry, 0) {
			return c, fault.InvalidArgument("an environment variable is not of the form NAME=value").Field("environment", "must be NAME=value without zero bytes")
		}
	}
	size := 0
	for name, content := range c.Files {
		if size += len(content); !fs.ValidPath(name) || name == "." || strings.Contains(name, "/") || size > mostFiles {
			return c, fault.InvalidArgument("a file of the platform's has a name without folders, and all together have at most %d bytes", mostFiles)
		}
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Stdout == nil {
		c.Stdout = io.Discard
	}
	if c.Stderr == nil {
		c.Stderr = io.Discard
	}
	l, err := c.Limits.complete(machineMemory())
	c.Limits = l
	return c, err
}

func (l Limits) complete(machine int64) (Limits, error) {
	for _, one := range []struct {
		name  string
		value int64
	}{
		{"memory", l.MemoryBytes}, {"address space", l.AddressBytes}, {"disk", l.DiskBytes}, {"file size", l.FileBytes},
		{"processes", int64(l.Processes)}, {"open files", int64(l.OpenFiles)}, {"processor time", int64(l.CPUTime)},
	} {
		if one.value < 0 {
			return l, fault.InvalidArgument("the limit of %s is below zero", one.name).Field("limits", one.name+" must not be below zero")
		}
	}
	const gib = 1 << 30
	setDefault(&l.MemoryBytes, min(machine/2, 4*gib))
	setDefault(&l.AddressBytes, l.MemoryBytes+gib)
	setDefault(&l.DiskBytes, min(machine/4, 2*gib))
	setDefault(&l.FileBytes, 2*l.DiskBytes)
	setDefault(&l.Processes, 512)
	setDefault(&l.OpenFiles, 1024)
	return l, nil
}

func setDefault[T int | int64](value *T, otherwise T) {
	if *value == 0 {
		*value = otherwise
	}
}

// machineMemory is the memory of the machine, or of the container, in bytes; 4 GiB where that cannot be told.
func machineMemory() int64 {
	if b := machine.Memory(); b > 0 {
		return b
	}
	return 4 << 30
}
